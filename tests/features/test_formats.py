"""Other codes' files in and out, and stores made of stores."""
import os
import pickle
import struct

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dolg.errors import UserError
from dolg.features.editing import merge, project, subset
from dolg.features.formats import export_store, import_file, store_imported
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.search.whitening import pca_whitening

NAMES = ["a", "dir/b c", "ü.d", "e"]


@pytest.fixture(scope="module")
def table():
    table = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def _local(rng, counts):
    vectors = rng.normal(size=(sum(counts), 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = (100 * rng.random((sum(counts), 4))).astype(np.float32)
    return LocalTable(np.cumsum([0, *counts]), vectors, numbers[:, :2], numbers[:, 2], numbers[:, 3])


def _store(path, table, names=NAMES, failed=(), local=None, made_by=None):
    writer = StoreWriter(path, names, table.shape[1], 3, made_by or {"model": "m"},
                         5 if local else 0)
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        errors = {row - rows.start: "broken" for row in failed if row in rows}
        writer.write_chunk(chunk, table[rows.start:rows.stop], errors,
                           local and local.of_images(rows.start, rows.stop))
    return FeatureStore(path)


def _again(path, tmp_path, **options) -> FeatureStore:
    store_imported(import_file(path, **options), tmp_path / "again", path, 3)
    store = FeatureStore(tmp_path / "again")
    store.verify()
    return store


@pytest.mark.parametrize("ending", [".pickle", ".pkl", ".npy", ".h5", ".hdf5"])
def test_out_and_in_again(table, tmp_path, ending):
    export_store(_store(tmp_path / "s", table), tmp_path / f"f{ending}")
    store = _again(tmp_path / f"f{ending}", tmp_path)
    order = [store.names.index(name) for name in NAMES]     # HDF5 has its own
    np.testing.assert_array_equal(np.asarray(store.global_descriptors())[order], table)


def test_dolg_pickles_are_what_the_original_reads(table, tmp_path):
    export_store(_store(tmp_path / "s", table, failed=[1]), tmp_path / "f.pickle")
    with open(tmp_path / "f.pickle", "rb") as file:
        entries = pickle.load(file)
    assert list(entries) == ["a", "ü.d", "e"]
    assert entries["e"].shape == (1, 6) and entries["e"].dtype == np.float32


def test_matlab_has_a_column_per_image(table, tmp_path):
    export_store(_store(tmp_path / "s", table, failed=[1]), tmp_path / "f.mat")
    columns = loadmat(tmp_path / "f.mat")["X"]
    np.testing.assert_array_equal(columns.T[[0, 2, 3]], table[[0, 2, 3]])
    assert np.isnan(columns[:, 1]).all()
    store = _again(tmp_path / "f.mat", tmp_path)
    assert store.names == ["0", "1", "2", "3"] and store.reasons() == {1: "no descriptor in f.mat"}
    savemat(tmp_path / "two.mat", {"Q": table[:1].T, "X": table.T})
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    imported = import_file(tmp_path / "two.mat", key="X", names=tmp_path / "names.txt")
    assert imported.names == NAMES
    np.testing.assert_array_equal(imported.descriptors, table)
    with pytest.raises(UserError, match="holds the tables Q, X: say which with --key"):
        import_file(tmp_path / "two.mat")
    with pytest.raises(UserError, match="names 4 images, but .* has 1"):
        import_file(tmp_path / "two.mat", key="Q", names=tmp_path / "names.txt")


def test_the_million_as_the_original_dolg_saves_it(table, tmp_path):
    """A list of (1,D) rows under X."""
    savemat(tmp_path / "1M.mat", {"X": [row[None] for row in table]})
    np.testing.assert_array_equal(import_file(tmp_path / "1M.mat").descriptors, table)


def test_local_features_of_the_original_delg(tmp_path):
    """A pickled dictionary; its locations are rows and columns."""
    rng = np.random.default_rng(0)
    local = _local(rng, [2, 3])
    entries = {name: {"locations": part.xy[:, ::-1], "descriptors": part.descriptors,
                      "scores": part.scores}
               for name, part in (("x", local.of_images(0, 1)), ("y", local.of_images(1, 2)))}
    (tmp_path / "local.pickle").write_bytes(pickle.dumps(entries, protocol=2))
    store = _again(tmp_path / "local.pickle", tmp_path)
    found = store.local(1)
    np.testing.assert_array_equal(found.xy, local.xy[2:])
    np.testing.assert_allclose(found.descriptors, local.descriptors[2:], atol=1e-3)


def test_hdf5_is_hlocs(table, tmp_path):
    local = _local(np.random.default_rng(0), [2, 0, 3, 1])
    export_store(_store(tmp_path / "s", table, failed=[3], local=local), tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        assert "e" not in file
        group = file["dir/b c"]
        np.testing.assert_array_equal(group["global_descriptor"][()], table[1])
        assert file["ü.d"]["descriptors"].shape == (5, 3)
        np.testing.assert_array_equal(file["ü.d"]["keypoints"][()], local.xy[2:5])
    found = _again(tmp_path / "f.h5", tmp_path)
    np.testing.assert_array_equal(found.local(found.names.index("ü.d")).scores, local.scores[2:5])


def test_hdf5_without_all_fields(tmp_path):
    """Keypoints of some images alone, and no descriptors; then a file of something else."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x/keypoints"], file["x/scores"] = [[1.0, 2.0], [3.0, 4.0]], [0.5, 0.25]
        file["x/descriptors"] = np.eye(5)[:, :2]
        file["y/image_size"] = [640, 480]
    store = _again(tmp_path / "f.h5", tmp_path)
    assert store.dim == 0 and not store.errors() and store.local_dim == 5
    np.testing.assert_array_equal(store.local(0).xy, [[1, 2], [3, 4]])
    assert len(store.local(1).xy) == 0
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["x/image_size"] = [640, 480]
    with pytest.raises(UserError, match="neither global_descriptor nor keypoints"):
        import_file(tmp_path / "g.h5")


def test_names_that_are_no_text(table, tmp_path, run_tool):
    """Linux lets file names be any bytes."""
    names = [os.fsdecode(b"caf\xe9.jpg"), "b", "c", "d"]
    _store(tmp_path / "s", table, names, failed=[0])
    done = run_tool("tools/info.py", tmp_path / "s", env={"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr
    assert r"caf\udce9.jpg: broken" in done.stdout
    export_store(FeatureStore(tmp_path / "s"), tmp_path / "f.npy")
    assert (tmp_path / "f.txt").read_bytes() == b"caf\xe9.jpg\nb\nc\nd\n"
    assert import_file(tmp_path / "f.npy").names == names


def _message(*fields: tuple[int, int, bytes]) -> bytes:
    """Protocol buffer fields by hand: number, wire type (2: bytes, 5: four bytes), content."""
    parts = []
    for number, wire, content in fields:
        parts.append(bytes([number << 3 | wire]))
        parts.append(_varint(len(content)) + content if wire == 2 else content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _datum(vector: np.ndarray) -> bytes:
    return _message((1, 2, _message((1, 2, _varint(len(vector))))),
                    (2, 2, _message((1, 2, vector.astype("<f4").tobytes()))))


def test_tensorflow_delg(table, tmp_path):
    """Files written byte by byte, after the .proto files of tensorflow/models."""
    local = _local(np.random.default_rng(0), [2, 0])
    folder = tmp_path / "delg"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["sub/x.y", "z"]):
        part = local.of_images(number, number + 1)
        (folder / f"{name}.delg_global").write_bytes(_datum(table[number]))
        features = [_message((1, 2, _datum(part.descriptors[i])), *(
            (field, 5, struct.pack("<f", value)) for field, value in
            ((2, part.xy[i, 0]), (3, part.xy[i, 1]), (4, part.scales[i]), (5, 0.0),
             (6, part.scores[i])))) for i in range(len(part.xy))]
        (folder / f"{name}.delg_local").write_bytes(_message(*((1, 2, f) for f in features)))
    store = _again(folder, tmp_path)
    assert store.names == ["sub/x.y", "z"]
    np.testing.assert_array_equal(np.asarray(store.global_descriptors()), table[:2])
    for name in ("xy", "scales", "scores"):
        np.testing.assert_array_equal(getattr(store.local(0), name), getattr(local, name))
    np.testing.assert_allclose(store.local(0).descriptors, local.descriptors, atol=1e-3)
    assert len(store.local(1).xy) == 0
    (folder / "z.delg_global").write_bytes(b"\xff\xff\xff no message")
    with pytest.raises(UserError, match="z.delg_global is not a file of TensorFlow's DELG"):
        import_file(folder)


@pytest.mark.parametrize("name, content, message", [
    ("f.pickle", pickle.dumps([1, 2]), "holds no dictionary"),
    ("f.pickle", pickle.dumps(print), "builtins.print.*nothing was executed"),
    ("f.pickle", pickle.dumps({"a": np.ones(2), "b": np.ones(3)}), "different lengths"),
    ("f.npy", b"nothing", "not a table that NumPy can read"), ("f.mat", b"nothing", "damaged, or not a file of its kind"),
    ("f.npy", b"", "not a table that NumPy can read"), ("f.npy", b"\x93NUMPY", "not a table that NumPy can"),
    ("f.pickle", pickle.dumps({"a": {"scores": [1.0]}}), "a has no locations and no descriptors"),
    ("f.pickle", pickle.dumps({"a": "b"}), "a holds text; descriptors are real numbers"),
    ("f.txt", b"", "ends in none of"), ("", b"", "holds no .delg_global files")])
def test_files_that_are_not_what_they_say(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_file(tmp_path / name)


def test_merged_and_cut_down(table, tmp_path):
    local = _local(np.random.default_rng(0), [2, 0, 3, 1])
    first = _store(tmp_path / "1", table, failed=[1], local=local)
    second = _store(tmp_path / "2", table[::-1], ["p", "q", "r", "s"], failed=[3],
                    local=_local(np.random.default_rng(1), [1, 1, 1, 4]))
    merge([first, second], tmp_path / "both")
    both = FeatureStore(tmp_path / "both")
    both.verify()
    assert both.names == [*NAMES, "p", "q", "r", "s"] and both.reasons() == {1: "broken", 7: "broken"}
    fine = [0, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(both.rows(np.array(fine)), np.concatenate([table, table[::-1]])[fine])
    np.testing.assert_array_equal(both.local(2).xy, local.xy[2:5])
    subset(both, ["s", "a", "q"], tmp_path / "some")
    some = FeatureStore(tmp_path / "some")
    assert some.names == ["s", "a", "q"] and some.reasons() == {0: "broken"}
    np.testing.assert_array_equal(some.rows(np.array([1, 2])), [table[0], table[2]])
    np.testing.assert_array_equal(some.local(1).descriptors, both.local(0).descriptors)
    with pytest.raises(UserError, match="made by other settings: made_of was"):
        subset(both, ["s", "a", "r"], tmp_path / "some")
    with pytest.raises(UserError, match="lacks 1 of 2 images, such as nobody"):
        subset(both, ["a", "nobody"], tmp_path / "none")
    with pytest.raises(UserError, match="name an image twice: a"):
        merge([first, some], tmp_path / "none")
    other = _store(tmp_path / "3", table, ["t", "u", "v", "w"], local=local, made_by={"model": "n"})
    with pytest.raises(UserError, match=r"different ways \(model differ\)"):
        merge([first, other], tmp_path / "none")


def test_projected(table, tmp_path):
    table = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    names = [f"i{number}" for number in range(40)]
    store = _store(tmp_path / "s", table, names, failed=[5])
    whitening = pca_whitening(store.global_descriptors(), 3)
    project(store, tmp_path / "w", whitening, made_by={"whitening": "digest"})
    result = FeatureStore(tmp_path / "w")
    assert result.dim == 3 and result.reasons() == {5: "broken"}
    assert result.manifest["whitening"] == "digest"
    rows = np.array([0, 4, 39])
    expected = (table[rows] - whitening.mean.numpy()) @ whitening.projection.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result.rows(rows), expected, atol=1e-5)


def test_a_damaged_chunk_is_found(table, tmp_path):
    store = _store(tmp_path / "s", table)
    file = tmp_path / "s" / "chunk-000001.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1           # a bit of a descriptor, or of a status
    file.write_bytes(data)
    with pytest.raises(Exception, match="chunk-000001.safetensors is damaged"):
        store.verify()


def test_what_is_still_true_of_the_images_is_kept(table, tmp_path):
    """A whitened store is of the same images, cropped or not, as it was; of some of them only cropped."""
    made_by = {"model": "m", "cropped": True, "images_digest": "d"}
    store = _store(tmp_path / "s", table, made_by=made_by)
    other = _store(tmp_path / "t", table, [f"t{i}" for i in range(4)],
                   made_by={**made_by, "cropped": False})
    project(store, tmp_path / "white", pca_whitening([table], 2))
    subset(store, ["e"], tmp_path / "some")
    merge([store], tmp_path / "one")
    merge([store, other], tmp_path / "mixed")
    manifests = {name: FeatureStore(tmp_path / name).manifest for name in ("white", "some", "one", "mixed")}
    assert {name: manifest.get("cropped") for name, manifest in manifests.items()} == {
        "white": True, "some": True, "one": True, "mixed": None}
    assert {name for name, manifest in manifests.items() if "images_digest" in manifest} == {"white"}
