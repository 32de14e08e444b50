"""Lists: which images are there, which are held out, and what is written."""
import numpy as np
import pytest

from dolg.data import presence
from dolg.data.image_list import read_image_list
from dolg.errors import UserError
from dolg.prepare import lists
from dolg.prepare.lists import contiguous, held_out, name_digests, present, write_list


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_lists_are_written_whole_in_blocks(tmp_path, monkeypatch, count):
    monkeypatch.setattr(lists, "_BLOCK", 4)
    paths, labels = [f"a b/{i}.jpg" for i in range(count)], [i * 3 for i in range(count)]
    write_list(tmp_path / "labelled.txt", iter(paths), iter(labels))
    write_list(tmp_path / "plain.txt", iter(paths))
    labelled, plain = (tmp_path / "labelled.txt").read_text(), (tmp_path / "plain.txt").read_text()
    assert labelled == "".join(f"a b/{i}.jpg {i * 3}\n" for i in range(count))
    assert plain == "".join(f"a b/{i}.jpg\n" for i in range(count))
    if count:
        images = read_image_list(tmp_path / "labelled.txt")
        assert [images.name(i) for i in range(count)] == [str(tmp_path / path) for path in paths]
        assert images.labels.tolist() == labels


@pytest.mark.parametrize("block", [1, 3, 100])
def test_present_finds_what_is_missing_or_empty(tmp_path, monkeypatch, block):
    monkeypatch.setattr(presence, "_BLOCK", block)
    paths = [f"d/{i}.jpg" for i in range(10)]
    (tmp_path / "d").mkdir()
    for i, path in enumerate(paths):
        if i not in (2, 5, 7):
            (tmp_path / path).write_bytes(b"x")
    (tmp_path / paths[5]).touch()
    (tmp_path / paths[7]).mkdir()
    found = present(tmp_path, paths, "images", partial=True)
    assert np.flatnonzero(~found).tolist() == [2, 5, 7]
    message = "of the 10 images, 3 are not in .*: d/2.jpg, d/5.jpg, d/7.jpg .--partial"
    with pytest.raises(UserError, match=message):
        present(tmp_path, paths, "images", partial=False)
    with pytest.raises(UserError, match="of the 3 images, 3 are not"):
        present(tmp_path, [paths[2], paths[5], paths[7]], "images", partial=True)
    (tmp_path / paths[2]).write_bytes(b"x")
    assert present(tmp_path, paths[:5], "images", partial=False).all()


def test_contiguous_follows_the_order_of_the_classes():
    assert contiguous(np.array([70, 5, 5, 900, 70])).tolist() == [1, 0, 0, 2, 1]
    assert contiguous(np.array(["b", "a", "c", "a"])).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_held_out_leaves_every_class_an_image(seed, share):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(400), rng.integers(1, 12, 400))
    names = [f"{i:016x}" for i in rng.permutation(len(labels))]
    held = held_out(names, labels, share, seed)
    sizes, out = np.bincount(labels), np.bincount(labels, held)
    assert (out < sizes).all()
    # Each class has its share, rounded down or up, but for the one image that has to stay
    assert (out >= np.minimum(np.floor(share * sizes), sizes - 1)).all()
    assert (out <= np.ceil(share * sizes)).all()
    # And rounding favours neither side: the sum is that of fair draws
    expected = np.minimum(share * sizes, sizes - 1).sum()
    assert abs(out.sum() - expected) < 4 * np.sqrt(400 * 0.25) + 1


def test_held_out_depends_on_names_and_seed_alone():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, 500)
    names = np.array([f"{i:016x}".encode() for i in rng.integers(0, 2 ** 60, 500)])
    held = held_out(names, labels, 0.3)
    order = rng.permutation(500)
    assert np.array_equal(held_out(names[order], labels[order], 0.3), held[order])
    assert np.array_equal(held_out([name.decode() for name in names], labels, 0.3), held)
    some = labels < 20      # whichever other classes there are
    assert np.array_equal(held_out(names[some], labels[some], 0.3), held[some])
    assert not np.array_equal(held_out(names, labels, 0.3, seed=1), held)
    assert held_out([], np.empty(0, int), 0.5).shape == (0,)


def test_digests_are_those_of_blake2(monkeypatch):
    """Held against the published function, one by one: other versions must draw the same images."""
    import hashlib

    monkeypatch.setattr(lists, "_BLOCK", 3)
    names = ["", "a", "é/b c.jpg", "x" * 500]
    salt = (5).to_bytes(8, "little")
    digests = [hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest() for name in names]
    expected = [int.from_bytes(digest, "big") for digest in digests]
    assert name_digests(names, 5).tolist() == expected
    assert name_digests([name.encode() for name in names], 5).tolist() == expected
    assert name_digests(np.array([b"a", b"bb"]), 5).tolist() == name_digests(["a", "bb"], 5).tolist()
