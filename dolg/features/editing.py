"""Stores made of stores: merged, subsets, projected."""
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.search.whitening import Whitening
from revisitop.names import find_names, names_like

# What a manifest says that is no matter of how descriptors were made
_OF_THE_FILE = {"format", "version", "count", "dim", "chunk_size", "local_dim", "local_dtype",
                "images_digest", "cropped", "made_of"}


def merge(stores: Sequence[FeatureStore], path: Path) -> None:
    """One store of several, one after another. Raises UserError where they were made in different
    ways, or name an image twice."""
    first = _made_by(stores[0])
    for store in stores[1:]:
        other = _made_by(store)
        # config_digest decides, also where an older store does not have its keys
        changed = sorted(key for key in (first.keys() | other.keys()) - {"config"}
                         if first.get(key) != other.get(key))
        if changed or (store.dim, store.local_dim) != (stores[0].dim, stores[0].local_dim):
            raise UserError(f"{stores[0].path} and {store.path} were made in different ways "
                            f"({', '.join(changed) or 'dimensions'} differ): they cannot be one store")
    names = [name for store in stores for name in store.names]
    if len(set(names)) < len(names):
        double = Counter(names).most_common(1)[0][0]
        raise UserError(f"the stores name an image twice: {double}")
    cropped = {store.manifest.get("cropped") for store in stores}
    if len(cropped) == 1:
        first.update(_kept(stores[0], ["cropped"]))
    _write(path, [(store, np.arange(store.count)) for store in stores], first)


def subset(store: FeatureStore, names: Sequence[str], path: Path) -> None:
    """The images `names` of a store, in their order, whose endings may be missing or others. Raises
    UserError for those it lacks."""
    rows = find_names(names, store.names)
    missing = [name for name, row in zip(names, rows) if row < 0]
    if missing:
        raise UserError(f"the store {store.path} lacks {len(missing)} of {len(names)} images, such as "
                        f"{missing[0]!r}; it has {names_like(missing, store.names)}")
    made_by = {**_made_by(store), **_kept(store, ["cropped"])}
    _write(path, [(store, rows)], made_by)


def project(store: FeatureStore, path: Path, whitening: Whitening | None,
            local: Whitening | None = None, made_by: dict | None = None) -> None:
    """A store's descriptors, and its local features, after a whitening each; None leaves them."""
    made_by = {**_made_by(store), **_kept(store, ["cropped", "images_digest"]), **(made_by or {})}
    _write(path, [(store, np.arange(store.count))], made_by, whitening, local)


def _kept(store: FeatureStore, keys: Sequence[str]) -> dict:
    """What a manifest says of the images and is still true of the new store's."""
    return {key: store.manifest[key] for key in keys if key in store.manifest}


def _made_by(store: FeatureStore) -> dict:
    return {key: value for key, value in store.manifest.items() if key not in _OF_THE_FILE}


def _write(path: Path, parts: list[tuple[FeatureStore, np.ndarray]], made_by: dict,
           whitening: Whitening | None = None, local_whitening: Whitening | None = None) -> None:
    """A store of some rows of some stores."""
    first = parts[0][0]
    names = [store.names[row] for store, rows in parts for row in rows.tolist()]
    owner = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])
    rows = np.concatenate([rows for _, rows in parts])
    reasons = [store.reasons() for store, _ in parts]
    writer = StoreWriter(
        path, names, whitening.dim if whitening else first.dim, first.chunk_size,
        {**made_by, "made_of": _digest(parts)},
        local_whitening.dim if local_whitening else first.local_dim,
        first.manifest.get("local_dtype", "float16"))
    for chunk in writer.missing_chunks():
        here = np.array(writer.rows(chunk))
        table, errors, local = np.empty((len(here), first.dim), np.float32), {}, []
        for number, (store, _) in enumerate(parts):
            mine = np.flatnonzero(owner[here] == number)
            table[mine] = store.rows(rows[here[mine]])
            errors.update({int(place): reasons[number][row] for place, row in
                           zip(mine, rows[here[mine]].tolist()) if row in reasons[number]})
        if first.local_dim:
            local = [parts[owner[place]][0].local(int(rows[place])) for place in here]
        if whitening:
            table = whitening(torch.from_numpy(table)).numpy()
        writer.write_chunk(chunk, table, errors,
                           _joined(local, local_whitening) if first.local_dim else None)


def _digest(parts: list[tuple[FeatureStore, np.ndarray]]) -> str:
    """SHA-256 of the rows taken, and of the chunks that they are taken of."""
    digest = hashlib.sha256()
    for store, rows in parts:
        chunks = [store.chunk(index).digest for index in range(store.num_chunks)]
        digest.update(json.dumps([store.manifest, chunks], sort_keys=True).encode())
        digest.update(rows.astype(np.int64))
    return digest.hexdigest()


def _joined(images: list[LocalTable], whitening: Whitening | None) -> LocalTable:
    table = LocalTable.joined([(image.descriptors, image.xy, image.scales, image.scores)
                               for image in images])
    if whitening:
        table.descriptors = whitening(torch.from_numpy(table.descriptors)).numpy()
    return table
