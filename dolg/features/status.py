"""What is in a feature store, finished or not."""
import json
from pathlib import Path

from dolg.errors import UserError
from dolg.features.claims import claimants
from revisitop.stores import Chunk, StoreError, chunk_name, read_manifest

_SHOWN = 20


def describe_store(path: Path) -> str:
    """How much of a store is there, what made it, which images failed and why, who is at work; in some
    lines. Raises UserError where the folder is no store."""
    try:
        manifest = read_manifest(path)
    except StoreError as error:
        raise UserError(str(error)) from None
    count, size, dim = manifest["count"], manifest["chunk_size"], manifest["dim"]
    chunks, there, done, disk, failed, damaged = -(-count // size), 0, 0, 0, [], []
    for index in range(chunks):
        file, rows = path / chunk_name(index), min(size, count - index * size)
        if not file.exists():
            continue
        there, done, disk = there + 1, done + rows, disk + file.stat().st_size
        try:
            failed += Chunk(str(file), rows, dim).errors()
        except StoreError as error:
            damaged.append(str(error))
    lines = [f"{path}: {'whole' if there == chunks else 'NOT WHOLE'}",
             f"  images       {done} of {count} ({there} of {chunks} chunks), {disk / 1e6:.1f} MB",
             f"  descriptors  {dim} dimensions"]
    if "local_dim" in manifest:
        lines.append(f"  local        {manifest['local_dim']} dimensions, {manifest['local_dtype']}")
    lines += [f"  {key:<12} {_short(value)}" for key, value in manifest.items()
              if key not in ("format", "version", "count", "dim", "chunk_size", "local_dim",
                             "local_dtype")]
    lines += [f"  at work      {worker}" for worker in claimants(path / ".claims")]
    lines.append(f"  failed       {len(failed)}" + (" images:" if failed else ""))
    lines += [f"    {name}: {reason}" for name, reason in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"    ... and {len(failed) - _SHOWN} more")
    return "\n".join(lines + [f"  damaged      {problem}" for problem in damaged])


def _short(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
