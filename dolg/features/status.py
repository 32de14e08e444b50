"""What is in a feature store, finished or not."""
import json
from pathlib import Path

from dolg.errors import UserError
from dolg.features.claims import claimants
from revisitop.printing import one_line
from revisitop.settings import settings_digest
from revisitop.stores import Chunk, StoreError, chunk_name, present_chunks, read_manifest

_SHOWN = 20


def describe_store(path: Path) -> str:
    """How much of a store is there, what made it, which images failed and why, who is at work; in some
    lines. Raises UserError where the folder is no store."""
    try:
        manifest = read_manifest(path)
    except StoreError as error:
        raise UserError(str(error)) from None
    count, size, dim = manifest["count"], manifest["chunk_size"], manifest["dim"]
    chunks, done, disk, failed, warned, damaged = -(-count // size), 0, 0, [], [], []
    present = present_chunks(path, chunks)
    digest = _digest(path, manifest, present)
    for index in present:
        file, rows = path / chunk_name(index), min(size, count - index * size)
        done, disk = done + rows, disk + file.stat().st_size
        try:
            chunk = Chunk(str(file), rows, dim, (digest, index) if digest else None)
            chunk.check()
            failed += chunk.errors()
            warned += chunk.warnings()
        except StoreError as error:
            damaged.append(str(error))
    there = len(present)
    lines = [f"{path}: {'whole' if there == chunks else 'NOT WHOLE'}",
             f"  images       {done} of {count} ({there} of {chunks} chunks), {disk / 1e6:.1f} MB",
             f"  descriptors  {dim} dimensions"]
    if "local_dim" in manifest:
        lines.append(f"  local        {manifest['local_dim']} dimensions, {manifest['local_dtype']}")
    lines += [f"  {key:<12} {_short(value)}" for key, value in manifest.items()
              if key not in ("format", "version", "count", "dim", "chunk_size", "local_dim",
                             "local_dtype")]
    lines += [f"  at work      {worker}" for worker in claimants(path / ".claims")]
    lines += _listed("failed", failed) + (_listed("warnings", warned) if warned else [])
    return "\n".join(map(one_line, lines + [f"  damaged      {problem}" for problem in damaged]))


def _digest(path: Path, manifest: dict, present: list[int]) -> str:
    """By which the chunks know this store; "" where that cannot be told without the first."""
    if present[:1] != [0]:
        return ""
    try:
        rows = min(manifest["chunk_size"], manifest["count"])
        return settings_digest(manifest, Chunk(str(path / chunk_name(0)), rows, manifest["dim"]).names[0])
    except StoreError:      # told of with the other chunks
        return ""


def _listed(what: str, images: list[tuple[str, str]]) -> list[str]:
    """How many images there are, and the first few with what is said of them."""
    more = [f"    ... and {len(images) - _SHOWN} more"] if len(images) > _SHOWN else []
    return [f"  {what:<12} {len(images)}" + (" images:" if images else ""),
            *(f"    {name}: {reason}" for name, reason in images[:_SHOWN]), *more]


def _short(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
