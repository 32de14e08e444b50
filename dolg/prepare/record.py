"""The manifest of a prepared data set, and what is said of it."""
import json
from pathlib import Path

from dolg.core.logging import say
from dolg.data.manifest import FILE, FORMAT, read_manifest
from dolg.errors import UserError
from dolg.files import file_digest, write_atomically
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Work


def write_manifests(work: Work, prepared: Prepared, options: dict) -> None:
    """Write what was made into manifest.json of the data set's folder, and of the folders beside it.

    The same files and options give the same bytes, wherever they lie: its digest names the data set.
    """
    published = work.dataset.counts
    counts = {what: {"found": found, "published": published.get(what)}
              for what, found in prepared.counts.items()}
    common = {"format": FORMAT, "title": work.dataset.title, "page": work.dataset.page,
              "licence": work.dataset.licence, "variant": prepared.variant, "files": work.files()}
    for name, lists in {work.dataset.name: prepared.lists, **prepared.folders}.items():
        folder, truth = work.folder.parent / name, f"gnd_{name}.pkl"
        lists = [*lists, truth] if (folder / truth).exists() else lists
        made = {"counts": counts,
                "lists": {file: {**_facts(folder / file), "options": options} for file in lists}}
        if prepared.replaces is not None:
            made = _with_others(folder, made, prepared.replaces)
        manifest = {**common, "name": name, "beside": sorted(set(prepared.folders) - {name}), **made}
        write_atomically(folder / FILE, json.dumps(manifest, indent=1) + "\n")


def _with_others(folder: Path, made: dict, replaces: frozenset[str]) -> dict:
    """What was made, and what the folder's manifest has of earlier runs that made something else."""
    try:
        before = read_manifest(folder) or {}
    except UserError:       # a damaged one, which is now written anew
        before = {}
    others = {key: {name: facts for name, facts in before.get(key, {}).items() if name not in replaces}
              for key in made}
    return {key: {**others[key], **value} for key, value in made.items()}


def say_counts(work: Work, prepared: Prepared) -> None:
    """A table of what was found and what is published, and what lies where."""
    published = work.dataset.counts
    width = max(map(len, prepared.counts), default=0)
    say(f"{work.folder}: {work.dataset.title}" + (f", {prepared.variant}" if prepared.variant else ""))
    for what, found in prepared.counts.items():
        note = ""
        if what in published:
            same = found == published[what]
            note = "  as published" if same else f"  NOT as published: {published[what]:,}"
        say(f"  {what:{width}} {found:>11,}{note}")
    for name, lists in {work.dataset.name: prepared.lists, **prepared.folders}.items():
        if lists:
            say(f"  {work.folder.parent / name}: {', '.join(lists)}")


def _facts(file: Path) -> dict:
    with open(file, "rb") as lines:
        count = sum(block.count(b"\n") for block in iter(lambda: lines.read(2 ** 20), b""))
    return {"lines": count, "sha256": file_digest(file)}
