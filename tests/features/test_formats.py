"""Other codes' files in and out, and stores made of stores."""
import os
import pickle
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from benchmarks.fuzz import tables
from benchmarks.fuzz.harness import fuzz
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
    ("f.pickle", pickle.dumps({"a": {"locations": 1.0, "descriptors": [[1.0]], "scores": [1.0]}}), "not laid out"),
    ("f.pickle", pickle.dumps({"a": "b"}), "a holds text; descriptors are real numbers"),
    ("f.txt", b"", "ends in none of"), ("", b"", "holds no .delg_global files")])
def test_files_that_are_not_what_they_say(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_file(tmp_path / name)


def _refused(done) -> str:
    """The one line that a command said before it stopped with status 1."""
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: "), done.stderr
    return done.stderr


def _external(file, secret):
    file.create_dataset("y/global_descriptor", (6,), "f4", external=[(str(secret), 0, 24)])


def _virtual(file, secret):
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x/global_descriptor", (6,))
    file.create_virtual_dataset("y/global_descriptor", layout)


@pytest.mark.parametrize("add, message", [
    (_external, "the data of y/global_descriptor lie in other files"),
    (_virtual, "the data of y/global_descriptor lie in other files"),
    (lambda file, secret: file.__setitem__("y", h5py.ExternalLink(str(secret), "/x")), "y is a link"),
    (lambda file, secret: file.__setitem__("x/loop", h5py.SoftLink("/x")), "x/loop is a link"),
    (lambda file, secret: file.create_dataset("y/global_descriptor", (2 ** 40,), "f4", chunks=(2 ** 20,),
                                              compression="gzip"), "claims more data than a file of")])
def test_hdf5_copies_no_other_file_and_takes_no_memory_for_claims(tmp_path, table, run_tool, add, message):
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["x/global_descriptor"] = table[1]
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x/global_descriptor"] = table[0]
        add(file, secret)
    line = _refused(run_tool("tools/store.py", "import", tmp_path / "f.h5", tmp_path / "store"))
    assert message in line and "f.h5" in line
    assert not (tmp_path / "store").exists()


def test_a_file_that_crashes_its_reader(tmp_path, table, run_tool):
    """A byte of an element's type makes SciPy 1.17 read beyond a table of its own (signal 11)."""
    savemat(tmp_path / "f.mat", {"X": table})
    content = bytearray((tmp_path / "f.mat").read_bytes())
    assert content[176:180] == b"\7\0\0\0"         # float32
    content[177] = 1
    (tmp_path / "f.mat").write_bytes(content)
    line = _refused(run_tool("tools/store.py", "import", tmp_path / "f.mat", tmp_path / "store"))
    assert "f.mat is damaged, or not a file of its kind" in line


@pytest.mark.parametrize("value, what", [
    (np.ones((3, 2), complex), "complex numbers"), (np.ones((3, 2), bool), "booleans"),
    (np.full((3, 2), "a"), "text"), (np.zeros((3, 2), "M8[s]"), "dates"),
    (np.zeros((3, 2), "f4,f4"), "records"), (np.array([["a", 1]], object), "")])
def test_what_is_not_a_number_is_not_a_descriptor(tmp_path, value, what):
    np.save(tmp_path / "f.npy", value)
    with pytest.raises(UserError, match=f"f.npy .*{what}"):
        import_file(tmp_path / "f.npy")
    if value.dtype.kind not in "MO":        # HDF5 has no dates, and text of other kinds
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file["a/global_descriptor"] = value[0].astype("S") if what == "text" else value[0]
        with pytest.raises(UserError, match=f"a/global_descriptor holds {what}"):
            import_file(tmp_path / "f.h5")
    if value.dtype.kind in "bU":
        savemat(tmp_path / "f.mat", {"X": value})
        with pytest.raises(UserError, match="X is of MATLAB's kind '(logical|char)'"):
            import_file(tmp_path / "f.mat")


def test_tables_that_claim_more_than_they_hold(tmp_path, run_tool):
    for shape in ((2 ** 40, 64), (2 ** 62, 2 ** 62), (-3, 2)):
        with open(tmp_path / "f.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.write(bytes(64))
        with pytest.raises(UserError, match="f.npy is not a table that NumPy can read"):
            import_file(tmp_path / "f.npy")
    np.save(tmp_path / "f.npy", np.empty((2 ** 40, 0)))
    with pytest.raises(UserError, match="f.npy holds no numbers"):
        import_file(tmp_path / "f.npy")
    os.mkfifo(tmp_path / "fifo.npy")
    line = _refused(run_tool("tools/store.py", "import", tmp_path / "fifo.npy", tmp_path / "store"))
    assert "fifo.npy is not a regular file" in line


@pytest.mark.parametrize("change, message", [
    (("scores", [0.5]), r"dir/b.jpg has descriptors \(2, 4\), keypoints \(2, 2\), scores \(1,\)"),
    (("descriptors", np.ones((4, 3))), r"dir/b.jpg has descriptors \(3, 4\), keypoints \(2, 2\)"),
    (("scales", np.ones(3)), r"dir/b.jpg has .*scales \(3,\)"),
    (("keypoints", np.ones((2, 3))), r"dir/b.jpg has .*keypoints \(2, 3\)"),
    (("scores", None), "dir/b.jpg has keypoints, descriptors, but no scores"),
    (("keypoints", None), "dir/b.jpg has descriptors, scores, but no keypoints"),
    (("descriptors", np.full((4, 2), np.nan)), "dir/b.jpg: its descriptors have values that are not finite"),
    (("descriptors", np.ones((5, 2))), "local descriptors of different lengths: 4, 5")])
def test_hlocs_counts_agree(tmp_path, change, message):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("a.jpg", "dir/b.jpg"):
            fields = {"keypoints": np.ones((2, 2)), "descriptors": np.ones((4, 2)), "scores": np.ones(2)}
            fields.update([change] if name == "dir/b.jpg" else [])
            for field, value in fields.items():
                if value is not None:
                    file[f"{name}/{field}"] = value
    with pytest.raises(UserError, match=message):
        import_file(tmp_path / "f.h5")


def test_delg_files_whose_shape_is_not_that_of_their_numbers(tmp_path):
    for shape in ([3], [-1], [2 ** 40, 2 ** 40], []):
        dims = _message(*((1, 0, _varint(dim % 2 ** 64)) for dim in shape))
        values = _message((1, 2, np.ones(4, "<f4").tobytes()))
        (tmp_path / "a.delg_global").write_bytes(_message((1, 2, dims), (2, 2, values)))
        with pytest.raises(UserError, match="a.delg_global is damaged: it claims an array of shape .* 4 numbers"):
            import_file(tmp_path)


def test_import_says_which_lengths_descriptors_have(tmp_path, run_tool):
    """F20: 40 unit vectors times 0.2 to 8 (the 18th: 0.9986), then zeros, a row partly of NaN, one of NaN."""
    unit = np.random.default_rng(0).normal(size=(43, 8))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    scaled = unit * np.append(np.geomspace(0.2, 8, 40), [1, 1, 1])[:, None].astype(np.float32)
    scaled[40], scaled[41, 3], scaled[42] = 0, np.nan, np.nan
    np.save(tmp_path / "f.npy", scaled)
    plain = run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "plain")
    assert plain.returncode == 0
    assert "warning: 40 of 41 descriptors are not of unit length: their norms are from 0 to 8" in plain.stderr
    assert "--normalize" in plain.stderr
    assert plain.stdout == (f"{tmp_path / 'plain'}: 43 images of 8 dimensions, 2 images are marked as failed, such "
                            "as 41 (its descriptor has values that are not finite)\n")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "plain").rows(np.arange(41)), scaled[:41])
    made = run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "unit", "--normalize")
    assert made.returncode == 0 and made.stderr == "" and "3 images are marked as failed" in made.stdout
    store = FeatureStore(tmp_path / "unit")
    np.testing.assert_allclose(store.rows(np.arange(40)), unit[:40], atol=1e-6)
    assert sorted(store.reasons()) == [40, 41, 42]
    np.save(tmp_path / "f.npy", np.full((3, 2), np.inf))
    line = _refused(run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "none"))
    assert "holds no descriptor that is finite" in line


def test_tables_on_their_side(tmp_path, table, run_tool):
    """F21: .npy with a column per image; the names or --transpose settle it."""
    wide = np.ascontiguousarray(table[:, :5].T[:3])     # 4 images of 3 dimensions, a column each
    np.save(tmp_path / "f.npy", wide)
    norms = "warning: 3 of 3 descriptors are not of unit length"
    done = run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "0")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / '0'}: 3 images of 4 dimensions\n"
    assert "was read as 3 images of 4 dimensions; if it is 4 images of 3 dimensions, import it with " \
           "--transpose" in done.stderr and norms in done.stderr
    done = run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "1", "--transpose", "--normalize")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / '1'}: 4 images of 3 dimensions\n"
    assert done.stderr == ""
    (tmp_path / "f.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode() + b"\r\n")
    done = run_tool("tools/store.py", "import", tmp_path / "f.npy", tmp_path / "2")
    assert done.returncode == 0 and "f.txt names 4 images" in done.stderr and "it was transposed" in done.stderr
    store = FeatureStore(tmp_path / "2")
    assert store.names == NAMES
    np.testing.assert_array_equal(np.asarray(store.global_descriptors()), wide.T)
    with pytest.raises(UserError, match="--transpose is for .mat and .npy"):
        export_store(store, tmp_path / "f.h5")
        import_file(tmp_path / "f.h5", transpose=True)


@pytest.mark.parametrize("layout", ["columns", "rows"])
def test_matlab_73(tmp_path, table, run_tool, layout):
    """F22: HDF5 behind a header of 512 bytes, with the axes of MATLAB in reverse order."""
    value = table.T if layout == "columns" else np.stack([row[None] for row in table])
    with h5py.File(tmp_path / "f.mat", "w", userblock_size=512) as file:
        file["X"], file["Q"] = value.T.astype(float), value.T[:1].astype(float)
        file["X"].attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("#refs#")
    with open(tmp_path / "f.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    savemat(tmp_path / "old.mat", {"X": value})
    for name in ("f.mat", "old.mat"):
        done = run_tool("tools/store.py", "import", tmp_path / name, tmp_path / f"of {name}", "--key", "X")
        assert done.returncode == 0, done.stderr
        store = FeatureStore(tmp_path / f"of {name}")
        np.testing.assert_array_equal(np.asarray(store.global_descriptors()), table)
    with pytest.raises(UserError, match="holds the tables Q, X: say which with --key"):
        import_file(tmp_path / "f.mat")


def test_files_that_expand(tmp_path):
    """128 MiB in 70 kB, and 2 GiB that are not there."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("a/global_descriptor", (1 << 24,), "f4", chunks=(1 << 24,), compression="gzip",
                            fillvalue=1.0)[:] = 0
        file.create_dataset("b/global_descriptor", (1 << 24,), "f4", chunks=(1 << 24,), compression="gzip")
    with pytest.raises(UserError, match="claims more data than a file of"):
        import_file(tmp_path / "f.h5")
    (tmp_path / "f.mat").write_bytes(_mat_bomb())
    with pytest.raises(UserError, match="f.mat is damaged, or not a file of its kind"):
        import_file(tmp_path / "f.mat")


def _mat_bomb() -> bytes:
    """A compressed element of version 5 that claims 2 GiB, and has one MiB, for a table of one row."""
    size = 2 << 30
    start = struct.pack("<18I", 14, size + 56, 6, 8, 6, 0, 5, 8, 1, size // 8, 0x10001, ord("X"), 9, size, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    packed = packer.compress(start) + packer.compress(bytes(1 << 20)) + packer.flush()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    return header + struct.pack("<2I", 15, len(packed)) + packed


@pytest.mark.parametrize("kind, target", [
    ("hdf5", tables.HDF5), ("mat", tables.MAT), ("npy", tables.NPY), ("delg", tables.DELG)])
def test_damaged_files_are_read_or_refused(kind, target):
    outcome = fuzz(kind, target, count=150, seed=1)
    assert outcome.failures == [] and outcome.counts["refused"] > 50 and outcome.counts["read"] > 5


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
    with pytest.raises(UserError, match="lacks 1 of 2 images, such as 'nobody'; it has 'a'"):
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
