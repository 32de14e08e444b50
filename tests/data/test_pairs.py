"""Triplets, their steps, and sides of stored features, against slow code."""
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dolg.data.pairs import Triplets, TripletSampler, pair_rows
from dolg.data.sides import FeatureLoader, StoredFeatures, side_of, take
from dolg.errors import UserError
from revisitop.stores import StoreError


def _problem(seed: int, count: int = 200, k: int = 9):
    """Labels with gaps; neighbours of few classes, some -1, some the image itself; failed images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 25, count) * 3 + 5
    neighbours = rng.integers(-1, count, (count, k)).astype(np.int32)
    for row in range(count):        # half of the lists: images of the same class
        same = np.flatnonzero(labels == labels[row])
        neighbours[row, ::2] = rng.choice(same, len(neighbours[row, ::2]))
    usable = rng.random(count) > 0.1
    return labels, neighbours, usable


def _slow(labels, neighbours, usable, from_class):
    """Positives and negatives that each image may draw, as lists."""
    everything = []
    for row in range(len(labels)):
        near = [j for j in neighbours[row] if j >= 0 and j != row and usable[j]]
        among = [j for j in range(len(labels)) if j != row and usable[j]] if from_class else near
        everything.append(([j for j in among if labels[j] == labels[row]],
                           [j for j in near if labels[j] != labels[row]]))
    return everything


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least, from_class", [(1, False), (3, False), (5, False), (1, True), (8, True)])
def test_anchors_and_what_is_drawn_for_them(seed, least, from_class):
    labels, neighbours, usable = _problem(seed)
    allowed = _slow(labels, neighbours, usable, from_class)
    triplets = Triplets(labels, neighbours, usable, least, from_class)
    expected = [row for row, (positives, negatives) in enumerate(allowed)
                if usable[row] and len(positives) >= least and negatives]
    assert triplets.anchors.tolist() == expected and expected
    drawn = triplets.draw(np.repeat(triplets.anchors, 40), np.random.default_rng(seed))
    np.testing.assert_array_equal(drawn[:, 0], np.repeat(triplets.anchors, 40))
    for anchor, positive, negative in drawn.tolist():
        assert positive in allowed[anchor][0] and negative in allowed[anchor][1]


def test_all_neighbours_of_a_kind_are_drawn_equally():
    labels = np.array([4, 9, 4, 9, 4, 8, 9, 4, 4])
    neighbours = np.full((9, 8), -1)
    neighbours[2] = [3, 0, 2, 7, -1, 1, 5, 8]       # of image 8 no use can be made
    triplets = Triplets(labels, neighbours, np.arange(9) < 8, 2, False)
    assert triplets.anchors.tolist() == [2]
    drawn = triplets.draw(np.full(3000, 2), np.random.default_rng(0))
    for column, images in ((1, [0, 7]), (2, [3, 1, 5])):
        counts = np.bincount(drawn[:, column], minlength=9)
        assert counts[images].sum() == 3000
        assert (abs(counts[images] - 3000 / len(images)) < 120).all()


def test_all_mates_of_a_class_are_drawn_equally():
    labels = np.array([4, 9, 4, 4, 9, 4, 4])
    neighbours = np.array([[1]] + [[0]] + [[1]] * 2 + [[0]] + [[1]] * 2)
    usable = np.array([True] * 6 + [False])
    triplets = Triplets(labels, neighbours, usable, 1, from_class=True)
    positives = triplets.draw(np.full(3000, 2), np.random.default_rng(0))[:, 1]
    counts = np.bincount(positives, minlength=7)
    assert counts[[1, 2, 4, 6]].sum() == 0 and (abs(counts[[0, 3, 5]] - 1000) < 120).all()
    assert triplets.draw(np.array([1, 4]), np.random.default_rng(0))[:, 1].tolist() == [4, 1]


def test_neighbours_on_disk_are_not_copied(tmp_path):
    labels, neighbours, usable = _problem(0)
    np.save(tmp_path / "lists.npy", neighbours)
    mapped = np.load(tmp_path / "lists.npy", mmap_mode="r")[:, :7]
    triplets = Triplets(labels, mapped, usable, 2, False)
    assert triplets.neighbours is mapped
    whole = Triplets(labels, neighbours[:, :7], usable, 2, False)
    np.testing.assert_array_equal(triplets.anchors, whole.anchors)


def test_blocks_change_nothing(monkeypatch):
    problem = _problem(1)
    whole = Triplets(*problem, 2, False).anchors
    monkeypatch.setattr("dolg.data.pairs._BLOCK", 7)
    np.testing.assert_array_equal(Triplets(*problem, 2, False).anchors, whole)


def test_nothing_can_be_an_anchor():
    labels, usable = np.array([0, 0, 0, 1, 1, 2]), np.array([True] * 5 + [False])
    near = np.array([[1, 3], [0, 3], [3, 4], [4, 0], [0, 1], [0, 1]])
    with pytest.raises(UserError, match="no image has 2 others of its class among its 2 neighbours, as "
                                        "TRAIN.PAIRS.MIN_POSITIVES asks: 2 have 0, 3 have 1"):
        Triplets(labels, near, usable, 2, False)
    with pytest.raises(UserError, match="no image has 3 others .* in its class,.* asks: 2 have 1, 3 have 2"):
        Triplets(labels, near, usable, 3, True)
    with pytest.raises(UserError, match="2 images have 1 or more others .* none of them has a neighbour of "
                                        "another class"):
        Triplets(labels[:2], np.array([[1, -1], [0, 1]]), usable[:2], 1, False)
    with pytest.raises(UserError, match="none is usable"):
        Triplets(labels, near, np.zeros(6, bool), 1, True)
    with pytest.raises(UserError, match="labels of 6 images, and neighbours of 5: TRAIN.PAIRS.NEIGHBOURS"):
        Triplets(labels, near[:5], usable, 1, False)


def _steps(triplets, batch, rank=0, world=1, seed=1, epoch=0, start=0):
    sampler = TripletSampler(triplets, batch, rank, world, seed)
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


@pytest.fixture
def triplets():
    return Triplets(*_problem(2), 2, False)


def test_an_epoch_takes_each_anchor_once(triplets):
    steps = _steps(triplets, 12)
    assert len(steps) == len(triplets.anchors) // 4 == len(TripletSampler(triplets, 12, 0, 1, 1))
    anchors = [index for step in steps for _, index in step[::3]]
    assert len(set(anchors)) == len(anchors) == 4 * len(steps) and set(anchors) <= set(triplets.anchors)
    assert anchors != sorted(anchors)
    others = [[index for step in _steps(triplets, 12, **change) for _, index in step]
              for change in ({}, {"epoch": 1}, {"seed": 2})]
    assert [index for step in steps for _, index in step] == others[0]
    assert others[0] != others[1] != others[2] != others[0]
    # Anew in each epoch: what is drawn for an anchor is not always the same
    positives = [{step[i][1]: step[i + 1][1] for step in _steps(triplets, 12, epoch=epoch)
                  for i in range(0, 12, 3)} for epoch in (0, 1)]
    both = positives[0].keys() & positives[1].keys()
    assert any(positives[0][anchor] != positives[1][anchor] for anchor in both)


def test_views_never_come_twice(triplets):
    views = [view for epoch in range(3) for step in _steps(triplets, 12, epoch=epoch) for view, _ in step]
    assert len(set(views)) == len(views)


def test_steps_are_the_same_on_any_number_of_processes(triplets):
    alone = _steps(triplets, 12, epoch=3)
    for world in (2, 4):
        shares = [_steps(triplets, 12, rank, world, epoch=3) for rank in range(world)]
        for step, *parts in zip(alone, *shares, strict=True):
            assert {len(part) for part in parts} == {12 // world}
            whole = {tuple(step[i:i + 3]) for i in range(0, 12, 3)}
            assert whole == {tuple(part[i:i + 3]) for part in parts for i in range(0, len(part), 3)}


def test_a_later_start_leaves_the_steps_before_out(triplets):
    assert _steps(triplets, 12, epoch=2)[5:] == _steps(triplets, 12, epoch=2, start=5)


def test_too_few_anchors_for_a_step(triplets):
    count = len(triplets.anchors)
    with pytest.raises(UserError, match=f"{count} images can be anchors, fewer than the {count + 1} of"):
        TripletSampler(triplets, 3 * (count + 1), 0, 1, 1)


def test_pairs_of_triplets():
    query, candidate = pair_rows(9, "cpu")
    assert query.tolist() == [0, 0, 3, 3, 6, 6] and candidate.tolist() == [1, 2, 4, 5, 7, 8]


SCALES = np.array([0.5, 1, 2], np.float32)


def _nearest_scale(scales: np.ndarray) -> np.ndarray:
    if (scales > 2).any():
        raise UserError("no such scale")
    return np.abs(scales[:, None] - SCALES).argmin(axis=1)


class _Store:
    """What StoredFeatures reads of a store, made up row by row; row 7 is damaged."""

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        return np.stack([np.arange(5) + 100 * row for row in wanted]).astype(np.float32)

    def local(self, row: int) -> SimpleNamespace:
        if row == 7:
            raise StoreError("row 7 is damaged")
        rng = np.random.default_rng(row)
        count = int(rng.integers(0, 9))
        scales = np.full(count, 4.0) if row == 8 else rng.choice(SCALES, count)
        return SimpleNamespace(descriptors=rng.standard_normal((count, 3)).astype(np.float32),
                               xy=rng.random((count, 2), np.float32), scales=scales.astype(np.float32))


@pytest.mark.parametrize("rows, most", [([0, 1, 2, 3], 100), ([4, 5, 4], 4), ([2], 1)])
def test_sides_are_padded_and_masked(rows, most):
    store = _Store()
    tables = [store.local(row) for row in rows]
    side = side_of(store.rows(np.array(rows)), tables, most, _nearest_scale)
    counts = [min(most, len(table.scales)) for table in tables]
    shape = (len(rows), max(counts))
    assert {name: (tuple(t.shape), t.dtype) for name, t in side.items()} == {
        "global": ((len(rows), 5), torch.float32), "local": ((*shape, 3), torch.float32),
        "positions": ((*shape, 2), torch.float32), "mask": (shape, torch.bool),
        "scales": (shape, torch.int64)}
    for i, (row, table, count) in enumerate(zip(rows, tables, counts)):
        assert side["global"][i].tolist() == [100 * row + j for j in range(5)]
        assert side["mask"][i].tolist() == [False] * count + [True] * (shape[1] - count)
        for j in range(count):
            np.testing.assert_array_equal(side["local"][i, j], table.descriptors[j])
            np.testing.assert_array_equal(side["positions"][i, j], table.xy[j])
            assert SCALES[side["scales"][i, j]] == table.scales[j]
        for name in ("local", "positions", "scales"):
            assert not side[name][i, count:].any()


def test_sides_without_any_local_feature():
    empty = SimpleNamespace(descriptors=np.empty((0, 3), np.float32), xy=np.empty((0, 2), np.float32),
                            scales=np.empty(0, np.float32))
    side = side_of(np.ones((2, 5), np.float32), [empty, empty], 10, _nearest_scale)
    assert side["local"].shape == (2, 0, 3) and side["mask"].shape == side["scales"].shape == (2, 0)


def test_taking_images_of_a_side():
    store = _Store()
    side = side_of(store.rows(np.arange(4)), [store.local(row) for row in range(4)], 9, _nearest_scale)
    for rows in (torch.tensor([3, 3, 0]), slice(1, 3)):
        taken = take(side, rows)
        assert taken.keys() == side.keys() and all(torch.equal(taken[k], side[k][rows]) for k in side)


class _Steps:
    """A sampler of two epochs with two steps each."""

    epoch = start = 0

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        return iter([[(self.epoch, row) for row in step] for step in self.steps[self.start:]])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader(workers):
    labels, load = np.arange(20) * 2, partial(FeatureLoader, most=6, scale_indexes=_nearest_scale,
                                              workers=workers, pin_memory=False, device="cpu")
    steps = [[0, 1, 2], [9, 0, 3], [5, 6, 4]]
    loader = load(StoredFeatures(_Store(), labels), _Steps(steps))
    assert len(loader) == 3
    for start in (0, 2):
        batches = list(loader.epoch(0, start))
        assert [batch.indexes.tolist() for batch in batches] == steps[start:]
        for batch, rows in zip(batches, steps[start:]):
            assert batch.labels.tolist() == [2 * row for row in rows] and batch.labels.dtype == torch.int64
            expected = side_of(_Store().rows(np.array(rows)), [_Store().local(row) for row in rows], 6,
                               _nearest_scale)
            assert all(torch.equal(batch.side[name], expected[name]) for name in expected)
    for row, message in ((7, "^row 7 is damaged$"), (8, "^no such scale$")):
        with pytest.raises(UserError, match=message):
            list(load(StoredFeatures(_Store(), labels), _Steps([[row]])).epoch(0))
