"""The manifest of a prepared data set, and what is said of it."""
import json
from pathlib import Path

import dolg
from dolg.core.logging import say
from dolg.data.manifest import FILE, FORMAT, read_manifest
from dolg.files import file_digest, write_atomically
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Work


def write_manifests(work: Work, prepared: Prepared, options: dict) -> None:
    """Write what was made into manifest.json of the data set's folder, and of the folders beside it.

    The same files and options give the same bytes, so that its digest names the data set.
    """
    published = work.dataset.counts
    counts = {what: {"found": found, "published": published.get(what)}
              for what, found in prepared.counts.items()}
    common = {"format": FORMAT, "library": f"dolg {dolg.__version__}", "title": work.dataset.title,
              "page": work.dataset.page, "licence": work.dataset.licence, "variant": prepared.variant,
              "files": work.marks()}
    for name, lists in {work.dataset.name: prepared.lists, **prepared.folders}.items():
        folder = work.folder.parent / name
        made = {"options": options, "counts": counts,
                "lists": {file: _list_facts(folder / file) for file in lists}}
        if prepared.adds:
            made = _added(folder, made)
        manifest = {**common, "name": name, "beside": sorted(set(prepared.folders) - {name}), **made}
        write_atomically(folder / FILE, json.dumps(manifest, indent=1) + "\n")


def _added(folder: Path, made: dict) -> dict:
    """What was made, and what the folder's manifest names of an earlier run that is there still."""
    before = read_manifest(folder) or {}
    merged = {key: {**before.get(key, {}), **value} for key, value in made.items()}
    there = {name: facts for name, facts in merged["lists"].items() if (folder / name).exists()}
    return {**merged, "lists": there}


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


def _list_facts(file: Path) -> dict:
    with open(file, "rb") as lines:
        count = sum(block.count(b"\n") for block in iter(lambda: lines.read(2 ** 20), b""))
    return {"lines": count, "sha256": file_digest(file)}
