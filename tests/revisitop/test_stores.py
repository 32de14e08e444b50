"""Stores and chunks that are damaged, of another store, or claim what is not there."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from revisitop import Store, StoreError
from revisitop.stores import Chunk, row_sums


def write(path: Path, count: int, seed: int = 0, names=None, chunk_size: int = 2, dim: int = 3, **how) -> Path:
    """A store of random unit vectors, of which image 1 failed."""
    table = np.random.default_rng(seed).standard_normal((count, dim))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    writer = StoreWriter(path, names or [f"{path.name} {row}" for row in range(count)], dim, chunk_size,
                         {"weights_digest": "w", "scales": [1.0], **how})
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        writer.write_chunk(chunk, table[rows.start:rows.stop], {1: "no photo"} if chunk == 0 and count > 1 else {},
                           stamps=np.full((len(rows), 2), -1))
    return path


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_seen(tmp_path):
    """By `verify` wherever it is; by reading where it is in descriptors or their status."""
    path = write(tmp_path / "a", 2, names=["é", "b"], dim=2)
    file = path / "chunk-000000.safetensors"
    content = file.read_bytes()
    store = FeatureStore(path)
    store.verify()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    read = [range(8 * (start + begin), 8 * (start + end)) for begin, end in
            (header[name]["data_offsets"] for name in ("global", "status"))]
    unseen = []
    for bit in range(8 * len(content)):
        file.write_bytes(_flipped(content, bit))
        try:
            store.verify()
            unseen.append(bit)
        except StoreError:
            pass
        if any(bit in part for part in read):
            with pytest.raises(StoreError, match="is damaged: 1 of 2 rows read have other bits"):
                store.chunk(0).read(0, np.empty((2, 2), np.float32), np.empty(2, np.uint8))
            with pytest.raises(StoreError, match="is damaged"):
                list(store.chunks())
    assert unseen == [] and sum(map(len, read)) == 8 * (2 * 2 * 4 + 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_of_rows(dtype):
    table = np.random.default_rng(0).standard_normal((5, 7)).astype(dtype)
    status = np.array([0, 1, 0, 2, 0], np.uint8)
    words = np.frombuffer(table.tobytes(), f"<u{table.itemsize}").reshape(5, 7).astype(object)
    expected = [(sum(row) + int(code)) % 2**32 for row, code in zip(words, status)]
    assert row_sums(table, status).tolist() == expected


def test_flipped_bits_are_told_by_the_commands(run_tool, tmp_path, make_ground_truth):
    query, database, far = (write(tmp_path / name, 4, seed) for seed, name in enumerate(("q", "d", "far")))
    gnd = make_ground_truth(tmp_path / "gnd_x.pkl", [f"d {i}" for i in range(4)], [f"q {i}" for i in range(4)],
                            [{"easy": [0], "hard": [2], "junk": []}] * 4)
    evaluate = ["revisitop/evaluate.py", "--gnd", gnd, "--query", query, "--database", database,
                "--distractors", far]
    assert run_tool(*evaluate).returncode == 0
    file = far / "chunk-000001.safetensors"
    content = file.read_bytes()
    place = content.index(Store(far).chunk(1).descriptors.tobytes())
    file.write_bytes(_flipped(content, 8 * place + 3))       # a low bit of a mantissa
    for command in (evaluate, ["tools/store.py", "verify", far], ["tools/search.py", "build", tmp_path / "i", far]):
        done = run_tool(*command)
        assert done.returncode == 1 and f"{file} is damaged" in done.stderr and done.stderr.count("\n") == 1
    done = run_tool("tools/info.py", far)
    assert done.returncode == 0 and f"damaged      {file} is damaged: 1 of 2 rows" in done.stdout


@pytest.mark.parametrize("strange, message", [
    (lambda path: write(path.parent / "a", 5, scales=[0.5]) / "chunk-000001.safetensors", "is of another store"),
    (lambda path: write(path.parent / "b", 5) / "chunk-000001.safetensors", "is of another store"),
    (lambda path: path / "chunk-000000.safetensors", "is chunk 0 of this store, and in the place of chunk 1")])
def test_chunks_of_elsewhere_are_refused(run_tool, tmp_path, strange, message):
    """Another model's, another store's, and one from another place in the store."""
    path = write(tmp_path / "own", 5)
    file = path / "chunk-000001.safetensors"
    shutil.copy(strange(path), file)
    for open_it in (lambda: FeatureStore(path).verify(), lambda: Store(path).rows(np.arange(5)),
                    lambda: list(Store(path).chunks()), lambda: Store(path).status):
        with pytest.raises(StoreError, match=message):
            open_it()
    with pytest.raises(UserError, match=message):       # an extraction that goes on
        StoreWriter(path, [f"own {row}" for row in range(5)], 3, 2, {"weights_digest": "w", "scales": [1.0]})
    done = run_tool("tools/store.py", "verify", path)
    assert done.returncode == 1 and message in done.stderr and str(file) in done.stderr
    done = run_tool("tools/info.py", path)
    assert message in done.stdout


def test_a_changed_manifest_is_seen_and_a_grown_store_is_whole(tmp_path):
    path = write(tmp_path / "own", 4)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "scales": [2.0]}))
    with pytest.raises(StoreError, match="or the manifest was changed"):
        Store(path)
    (path / "manifest.json").write_text(json.dumps({**manifest, "count": 6, "images_digest": "more"}))
    table = np.eye(3)[:2]
    StoreWriter(path, [f"own {row}" for row in range(6)], 3, 2, {
        "weights_digest": "w", "scales": [1.0], "images_digest": "more"}).write_chunk(2, table, {})
    FeatureStore(path).verify()
    assert Store(path).rows(np.array([4, 5])).tolist() == table.tolist()


def test_equal_chunks_are_equal_files(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first, second = write(tmp_path / "a", 5), write(tmp_path / "elsewhere" / "a", 5)
    for number in range(3):
        name = f"chunk-{number:06d}.safetensors"
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_chunks_from_before_they_were_sealed_are_read(tmp_path):
    path = write(tmp_path / "a", 5)
    expected = np.concatenate([table.copy() for table in Store(path).chunks()])
    for number in range(3):
        file = path / f"chunk-{number:06d}.safetensors"
        tensors, chunk = load_file(file), Store(path).chunk(number)
        del tensors["sums"], tensors["stamps"]
        save_file(tensors, file, {"images": json.dumps({"names": chunk.names, "errors": {"1": "no photo"} if number == 0 else {}})})
    FeatureStore(path).verify()
    np.testing.assert_array_equal(np.concatenate(list(Store(path).chunks())), expected)
    assert Store(path).names == [f"a {row}" for row in range(5)]


@pytest.mark.parametrize("changes, message", [
    ({"count": 10**11}, "lacks 49999999999 of 50000000000 chunks (chunk-000001.safetensors, "
                        "chunk-000002.safetensors, chunk-000003.safetensors, ...; the first is of images 2 to 3)"),
    ({"count": 10**11, "chunk_size": 10**11}, "'global' as F32 (2, 3), where the manifest asks for"),
    ({"chunk_size": 10**11}, "chunk_size"), ({"dim": 10**11}, "'global' as F32 (2, 3)"),
    ({"count": 10**400}, "as count: it must be a whole number from 0 to"),
    ({"dim": float("nan")}, "has nan as dim"), ({"count": True}, "has True as count"),
    ({"local_dim": 4}, "has None as local_dtype"), ({"local_dim": []}, "has [] as local_dim"),
    ({"weights_digest": float("nan")}, "the manifest was changed"), (None, "is not JSON")])
def test_manifests_that_claim_what_is_not_there(run_tool, tmp_path, changes, message):
    path = write(tmp_path / "a", 2)
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text("[" * 100_000 if changes is None else json.dumps({**manifest, **changes}))
    if changes == {"chunk_size": 10**11}:
        message = "is of another store, or the manifest was changed"
    with pytest.raises(StoreError) as caught:
        FeatureStore(path).verify()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if changes in ({"count": 10**11}, {"dim": 10**11}):
        done = run_tool("tools/store.py", "verify", path, timeout=20)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
        done = run_tool("tools/info.py", path, timeout=20)
        assert done.returncode == 0 and f"{path}: " in done.stdout
        with pytest.raises(UserError):
            StoreWriter(path, ["a 0", "a 1"], 3, 2, {"weights_digest": "w", "scales": [1.0]})


def _file(header: object, data: bytes = b"\0" * 34) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


_GLOBAL = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
_STATUS = {"dtype": "U8", "shape": [2], "data_offsets": [32, 34]}


@pytest.mark.parametrize("content, message", [
    (_file(b"[" * 50_000), "is not JSON"), (_file([]), "is not a table"), ((2**62).to_bytes(8, "little"), "is cut"),
    (_file({"global": _GLOBAL, "status": {**_STATUS, "data_offsets": [30, 32]}}, b"\0" * 32), "bytes 30 to 32"),
    (_file({"global": _GLOBAL, "status": _STATUS}, b"\0" * 33), "is cut off: it has"),
    (_file({"global": _GLOBAL, "status": _STATUS}, b"\0" * 35), "1 bytes follow its tensors"),
    (_file({"global": _GLOBAL, "status": {**_STATUS, "data_offsets": [32, 10**30]}}), "is cut off"),
    (_file({"global": _GLOBAL, "status": {**_STATUS, "data_offsets": [32, 1e400]}}), "where its tensors are"),
    (_file({"global": {**_GLOBAL, "data_offsets": [-2, 32]}, "status": _STATUS}), "bytes -2 to 32"),
    (_file({"global": _GLOBAL, "status": [1]}), "where its tensors are"),
    (_file({"global": {**_GLOBAL, "dtype": []}, "status": _STATUS}), "has 'global' as []"),
    (_file({"global": {**_GLOBAL, "shape": 3}, "status": _STATUS}), "has no tensor 'global'")])
def test_headers_that_are_wrong(tmp_path, content, message):
    (tmp_path / "chunk").write_bytes(content)
    with pytest.raises(StoreError) as caught:
        Chunk(str(tmp_path / "chunk"), 2, 4)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [
    "[" * 50_000, "{}", '{"names": "ab"}', '{"names": ["a", "b"], "errors": [1]}',
    '{"names": ["a", "b"], "warnings": {"7": "cut"}}', '{"names": ["a", "b"], "errors": {"x": "cut"}}'])
def test_images_that_are_named_wrongly(tmp_path, images):
    (tmp_path / "chunk").write_bytes(_file({"__metadata__": {"images": images}, "global": _GLOBAL,
                                            "status": _STATUS}, b"\0" * 32 + b"\1\1"))
    with pytest.raises(StoreError, match="does not name its 2 images"):
        Chunk(str(tmp_path / "chunk"), 2, 4).errors()


def test_chunks_that_are_no_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "chunk")
    with pytest.raises(StoreError, match="is not a regular file"):
        Chunk(str(tmp_path / "chunk"), 2, 4)
    (tmp_path / "chunk").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(StoreError, match="is not a regular file"):
        Store(tmp_path)
