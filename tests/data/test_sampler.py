"""Steps of an epoch, balanced or not, on any number of processes."""
from collections import Counter

import numpy as np
import pytest

from dolg.data.sampler import BalancedStepSampler, StepSampler
from dolg.errors import UserError


def _labels(seed, classes=30, count=400):
    """Labels with gaps between them, from single images to a class of a third of all."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, classes + 1) ** rng.uniform(0.3, 1.2)
    labels = rng.choice(classes, count, p=shares / shares.sum())
    labels[:classes] = np.arange(classes)
    return rng.permutation(labels) * 3 + 5


def _steps(labels, batch, per_class, rank=0, world=1, seed=1, epoch=0):
    sampler = BalancedStepSampler(labels, batch, per_class, rank, world, seed)
    sampler.epoch = epoch
    steps = list(sampler)
    assert len(steps) == len(sampler)
    assert {e for step in steps for e, _ in step} == {epoch}
    return [[index for _, index in step] for step in steps]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch, per_class", [(16, 4), (24, 2), (9, 3), (8, 8), (12, 1), (60, 2)])
def test_each_step_has_p_classes_with_k_images(seed, batch, per_class):
    labels = _labels(seed)
    sizes = Counter(labels.tolist())
    for step in _steps(labels, batch, per_class):
        assert len(step) == batch
        groups = [step[i:i + per_class] for i in range(0, batch, per_class)]
        kinds = [{int(labels[index]) for index in group} for group in groups]
        assert all(len(kind) == 1 for kind in kinds)
        assert len(set.union(*kinds)) == batch // per_class
        for group, (label,) in zip(groups, kinds):
            # All different, unless the class has too few
            repeats = Counter(group)
            assert len(repeats) == min(per_class, sizes[label])
            assert max(repeats.values()) == -(-per_class // min(per_class, sizes[label]))


@pytest.mark.parametrize("seed", range(6))
def test_an_epoch_sees_images_about_once(seed):
    labels, per_class = _labels(seed), 4
    steps = _steps(labels, 16, per_class)
    seen = Counter(index for step in steps for index in step)
    for label, size in Counter(labels.tolist()).items():
        members = [index for index in range(len(labels)) if labels[index] == label]
        groups = sum(seen[index] for index in members) / per_class
        assert groups <= min(-(-size // per_class), len(steps))
        if size >= per_class:
            # Filling the last group up repeats at most K - 1 images
            assert sum(seen[index] > 1 for index in members) < per_class
            assert max(seen[index] for index in members) <= 2


@pytest.mark.parametrize("sizes", [
    [8] * 10, [8] * 9 + [400], [1] * 12, [5, 6, 7, 8] * 3, [4] * 3,
    *((1 + 5 * np.random.default_rng(seed).pareto(0.5, 3 + seed)).clip(max=400).astype(int).tolist()
      for seed in range(20))])
def test_no_more_steps_could_be_dealt(sizes):
    """Against a greedy deal, which is as long as can be: the classes with most groups left."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    left, count = [-(-size // 4) for size in sizes], 0
    while sum(groups > 0 for groups in left) >= 3:
        for place in sorted(range(len(left)), key=lambda i: -left[i])[:3]:
            left[place] -= 1
        count += 1
    assert len(_steps(labels, 12, 4)) == count > 0


def test_equal_classes_are_all_seen_whole():
    labels = np.repeat(np.arange(8), 12)
    steps = _steps(labels, 16, 4)
    assert len(steps) == 6
    assert sorted(sum(steps, [])) == list(range(96))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_each_step_is_the_same_on_any_number_of_processes(world):
    labels = _labels(0)
    alone = _steps(labels, 24, 4, epoch=5)
    parts = [_steps(labels, 24, 4, rank, world, epoch=5) for rank in range(world)]
    for number, step in enumerate(alone):
        shares = [part[number] for part in parts]
        assert sorted(sum(shares, [])) == sorted(step)
        for share in shares:
            assert len(share) == 24 // world
            assert set(Counter(labels[share].tolist()).values()) == {4}


def test_steps_depend_on_seed_and_epoch_alone():
    labels = _labels(2)
    first = _steps(labels, 16, 4, seed=3, epoch=7)
    assert first == _steps(list(labels), 16, 4, seed=3, epoch=7)
    assert first != _steps(labels, 16, 4, seed=4, epoch=7)
    assert first != _steps(labels, 16, 4, seed=3, epoch=8)
    sampler = BalancedStepSampler(labels, 16, 4, 0, 1, 3)
    list(sampler)
    sampler.epoch = 7
    assert first == [[index for _, index in step] for step in sampler]


def test_classes_meet_all_others_and_images_all_of_theirs():
    labels = np.repeat(np.arange(40), 60)
    met, mates = set(), set()
    for step in _steps(labels, 32, 4):
        kinds = sorted({int(labels[index]) for index in step})
        met |= {(a, b) for a in kinds for b in kinds if a < b}
    # 15 steps for each class, 7 others in each: a given pair meets 2.7 times on average
    assert len(met) > 0.8 * (40 * 39 / 2)
    for epoch in range(60):
        for step in _steps(labels[:600], 32, 4, epoch=epoch):
            mates |= {index for group in range(0, 32, 4) if 0 in step[group:group + 4]
                      for index in step[group:group + 4]}
    assert len(mates) > 50 and mates <= set(range(60))


@pytest.mark.parametrize("batch, per_class, world, message", [
    (16, 3, 1, "TRAIN.IMAGES_PER_CLASS is 3: give a divisor of TRAIN.BATCH_SIZE 16"),
    (16, 0, 1, "TRAIN.IMAGES_PER_CLASS is 0"),
    (16, -4, 1, "TRAIN.IMAGES_PER_CLASS is -4"),
    (248, 4, 1, "asks for 62 classes per step, but the training images have 30"),
    (12, 4, 2, "asks for 3 classes per step, which 2 processes cannot share evenly"),
])
def test_numbers_that_do_not_go_together(batch, per_class, world, message):
    with pytest.raises(UserError, match=message):
        BalancedStepSampler(_labels(0), batch, per_class, 0, world, 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_step_has_the_same_images_on_any_number_of_processes(world_size):
    def steps(world, rank, epoch=3, shuffle=True):
        sampler = StepSampler(30, 8, rank, world, seed=7, shuffle=shuffle)
        sampler.epoch = epoch
        return [[index for _, index in step] for step in sampler]

    alone, parts = steps(1, 0), [steps(world_size, rank) for rank in range(world_size)]
    assert len(alone) == 3
    for number, step in enumerate(alone):
        shares = [part[number] for part in parts]
        assert sorted(sum(shares, [])) == sorted(step)
        assert {len(share) for share in shares} == {8 // world_size}
    seen = sum(alone, [])
    assert len(set(seen)) == 24
    assert seen != sum(steps(1, 0, epoch=4), [])
    tested = sum((sum(steps(world_size, rank, shuffle=False), []) for rank in range(world_size)),
                 [])
    assert sorted(tested) == list(range(30))


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("count", [29, 25, 24, 3, 1])
def test_every_process_has_as_many_steps_and_an_empty_one_where_it_has_no_image(world, count):
    parts = []
    for rank in range(world):
        sampler = StepSampler(count, 8, rank, world, seed=7, shuffle=False)
        parts.append([[index for _, index in step] for step in sampler])
        assert len(parts[-1]) == len(sampler) == -(-count // 8)
    for number in range(-(-count // 8)):
        step = sorted(sum((part[number] for part in parts), []))
        assert step == list(range(8 * number, min(8 * number + 8, count)))
    if (world, count) == (4, 25):
        assert [part[-1] for part in parts] == [[24], [], [], []]


@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
def test_starting_later_leaves_out_the_first_steps_alone(rank, world):
    labels = _labels(0)
    for sampler in (StepSampler(100, 8, rank, world, 7, shuffle=True),
                    StepSampler(100, 8, rank, world, 7, shuffle=False),
                    BalancedStepSampler(labels, 24, 4, rank, world, 7)):
        sampler.epoch = 2
        whole = list(sampler)
        for start in (0, 1, 5, len(whole) - 1, len(whole)):
            sampler.start = start
            assert list(sampler) == whole[start:]
            assert len(sampler) == len(whole)
