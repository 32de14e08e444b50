"""Classes spread over 2 and 4 processes against the whole loss in one.

This file is also what each of those processes runs: `test_shards.py RANK PROCESSES FOLDER`. They do
all the cases at once and leave what they found in the folder, since starting them costs seconds.
"""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dolg.errors import UserError
from dolg.losses import shards
from dolg.losses.base import SumOfLosses
from dolg.losses.margin import AdaptiveArcFace, ArcFace, CosFace, CurricularFace
from dolg.losses.shards import ClassShard, sharded_parameters
from dolg.losses.softmax import LinearSoftmax

FAMILY = ["arcface", "cosface", "curricularface", "subcenter_arcface", "adaptive_arcface"]
PROCESSES = [2, 4]
CLASSES, DIM, BATCH, STEPS = 11, 6, 8, 4
COUNTS = np.array([500, 3, 40, 40, 1, 7, 90, 2, 11, 5, 23])
MANY = 2_000_000
# Images of each process in two evaluation steps; a third step has none at all
UNEVEN = {2: [[3, 0], [1, 4], [0, 0]], 4: [[2, 0, 1, 5], [0, 3, 3, 0], [0, 0, 0, 0]]}


def make_loss(name, **options):
    if name == "adaptive_arcface":
        return AdaptiveArcFace(DIM, COUNTS, 16.0, low=0.1, high=0.6, power=0.5, **options)
    if name == "subcenter_arcface":
        return ArcFace(DIM, CLASSES, 0.3, 16.0, centres=3, **options)
    kinds = {"arcface": ArcFace, "cosface": CosFace, "curricularface": CurricularFace}
    return kinds[name](DIM, CLASSES, 0.3, 16.0, **options)


def whole_state(loss, name):
    """The same random weights (and t) for every process and for the loss in one."""
    rows = CLASSES * loss.centres
    generator = torch.Generator().manual_seed(len(name))
    state = {"weight": torch.randn(rows, DIM, generator=generator, dtype=torch.double)}
    return state | ({"t": torch.tensor([0.3])} if name == "curricularface" else {})


def batch(seed, count, dtype=torch.double):
    """Some features near a direction that several share, and labels with repeats."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIM, generator=generator, dtype=torch.double)
    return (x + x[:1]).to(dtype), torch.randint(CLASSES, (count,), generator=generator)


class Net(nn.Module):
    """A model of two outputs, and losses on both: the margin softmax is one of them."""

    def __init__(self, name, **options):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Linear(DIM, DIM)
        local = LinearSoftmax(DIM, CLASSES, "local")
        margin = make_loss(name, **options)
        margin.load_state_dict(whole_state(margin, name))
        self.loss = SumOfLosses({"margin": margin, "local_softmax": local}, [0.5, 2.0])

    def forward(self, x, labels):
        x = self.body(x)
        return self.loss({"global": x, "local": x[:, :, None, None]}, labels)


def train(net, forward, own, dtype, factor):
    """Steps of SGD on the rows `own` of each batch; what is to be the same."""
    record = []
    for step in range(STEPS):
        x, labels = batch(step, BATCH, dtype)
        result = forward(x[own], labels[own])
        net.zero_grad()
        (factor * result["total"]).backward()       # as a GradScaler would
        for parameter in net.parameters():
            parameter.grad /= factor
        margin = net.loss.terms["global"]
        record.append({
            "margin": result["margin"], "weight_grad": margin.shard.gather(margin.weight.grad),
            "body_grad": net.body.weight.grad.clone(), "better": better_of(result, labels[own]),
            "t": getattr(margin, "t", torch.zeros(1)).clone()})
        with torch.no_grad():       # by hand: importing torch's optimizers takes seconds
            for parameter in net.parameters():
                parameter -= 0.05 * parameter.grad
    return record


def better_of(result, labels):
    if "better" in result:
        return result["better"]
    logits = result["logits"]
    return (logits > logits.gather(1, labels[:, None])).sum(1)


def share_of(rank, processes):
    return slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)


# ---------------------------------------------------------------------- in each of the processes


def training_case(rank, processes, name, dtype, factor):
    net = Net(name, sharded=True).to(dtype)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        net, list(sharded_parameters(net)))
    return train(net, DistributedDataParallel(net), share_of(rank, processes), dtype, factor)


def evaluation_case(rank, processes, name):
    loss = make_loss(name, sharded=True).double().eval()
    loss.load_state_dict(whole_state(loss, name))
    record = []
    for step, counts in enumerate(UNEVEN[processes]):
        x, labels = batch(step, sum(counts))
        own = slice(sum(counts[:rank]), sum(counts[:rank + 1]))
        x = x[own].requires_grad_()
        result = loss({"global": x}, labels[own])
        loss.weight.grad = None
        result["total"].backward()
        record.append({"total": result["total"].detach(), "better": result["better"],
                       "grad": x.grad, "weight_grad": loss.shard.gather(loss.weight.grad)})
    return record


def sampling_case(rank, processes, name):
    loss = make_loss(name, sharded=True, sampled=0.5).double().train()
    loss.load_state_dict(whole_state(loss, name))
    x, labels = batch(5, BATCH)
    own = share_of(rank, processes)
    torch.manual_seed(rank)
    state, record = torch.get_rng_state(), []
    for restored in (False, False, True):
        if restored:
            torch.set_rng_state(state)
        loss.load_state_dict(whole_state(loss, name))
        mine = x[own].clone().requires_grad_()
        loss.weight.grad = None
        result = loss({"global": mine}, labels[own])
        result["total"].backward()
        record.append({"total": result["total"].detach(), "better": result["better"],
                       "grad": mine.grad, "weight_grad": loss.shard.gather(loss.weight.grad)})
    return record


def state_case(rank, processes, folder):
    """Weights as drawn, by blocks; and as another number of processes left them."""
    shards._BLOCK, usual = 3, shards._BLOCK
    torch.manual_seed(7)
    loss = ArcFace(DIM, CLASSES, 0.3, 16.0, centres=3, sharded=True)
    shards._BLOCK = usual
    found = {"drawn": loss.shard.gather(loss.weight), "rows": len(loss.weight),
             "names": list(sharded_parameters(SumOfLosses({"arcface": loss}, [1.0]))),
             "own": list(loss.state_dict())}
    before = folder / f"state_{processes // 2}.pt"
    if before.exists():
        loss.load_state_dict({"weight": torch.load(before)})
        found["handed_over"] = loss.shard.gather(loss.weight)
        loss.load_state_dict(loss.state_dict())
    elif rank == 0:
        torch.save(found["drawn"], folder / f"state_{processes}.pt")
    momentum = torch.arange(len(loss.weight)) + 1000 * rank
    found["momentum"] = loss.shard.gather(momentum.half())
    return found


def mistakes_case(rank):
    found = []
    for make in (lambda: ArcFace(DIM, dist.get_world_size() - 1, 0.3, 16.0, sharded=True),
                 lambda: make_loss("arcface", sharded=True).train()(
                     {"global": torch.randn(2 + rank, DIM)}, torch.zeros(2 + rank, dtype=int))):
        try:
            make()
        except UserError as error:
            found.append(str(error))
    unknown = make_loss("arcface", sharded=True)({"global": torch.randn(1, DIM)},
                                                 torch.tensor([CLASSES]))
    return {"messages": found, "unknown label": unknown["total"].detach()}


def memory_case(name, sampled):
    """Sizes of what two million classes need: rows held, and the tensors kept for backward."""
    kind = {"arcface": ArcFace, "curricularface": CurricularFace}[name]
    loss = kind(2, MANY, 0.3, 16.0, sharded=True, sampled=sampled).train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(2, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = loss({"global": x}, torch.arange(2))["total"]
    images = 2 * dist.get_world_size()
    matrices = [t.untyped_storage().nbytes() for t in kept.values()
                if t.shape == (images, loss.shard.classes)]
    total.backward()
    return {"rows": len(loss.weight), "matrix_bytes": sum(matrices),
            "largest": max(t.numel() for t in kept.values()),
            "finite": bool(torch.isfinite(loss.weight.grad).all())}


def main(rank, processes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous_{processes}",
                            rank=rank, world_size=processes)
    found = {"state": state_case(rank, processes, folder), "mistakes": mistakes_case(rank)}
    for name in FAMILY:
        found[f"{name} train"] = training_case(rank, processes, name, torch.double, 1.0)
        found[f"{name} scaled"] = training_case(rank, processes, name, torch.float, 65536.0)
        found[f"{name} eval"] = evaluation_case(rank, processes, name)
        found[f"{name} sampled"] = sampling_case(rank, processes, name)
    for name, sampled in [("arcface", 1.0), ("curricularface", 1.0), ("arcface", 0.01)]:
        found[f"{name} memory {sampled}"] = memory_case(name, sampled)
    torch.save(found, folder / f"found_{processes}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# ---------------------------------------------------------------------- in the test's process


@pytest.fixture(scope="module")
def everyones(tmp_path_factory, start_command):
    """What each process found, by the number of processes: the four go on from the two's state."""
    folder = tmp_path_factory.mktemp("processes")
    root = Path(__file__).resolve().parents[2]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    found = {}
    for processes in PROCESSES:
        running = [start_command([__file__, rank, processes, folder], env=env)
                   for rank in range(processes)]
        for process in running:
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 0, errors
        found[processes] = [torch.load(folder / f"found_{processes}_{rank}.pt")
                            for rank in range(processes)]
    return found


@pytest.fixture(params=PROCESSES, ids=lambda processes: f"{processes} processes")
def found(request, everyones):
    return everyones[request.param]


def _close(got, expected, tolerance):
    """Relative to the largest number."""
    size = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(size, 1e-3))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("case, dtype, tolerance", [("train", torch.double, 1e-12),
                                                    ("scaled", torch.float, 1e-4)])
def test_steps_are_those_of_the_whole_loss(found, name, case, dtype, tolerance):
    net = Net(name).to(dtype)
    expected = train(net, net, slice(0, BATCH), dtype, 1.0)
    everyones = [process[f"{name} {case}"] for process in found]
    for step, whole in enumerate(expected):
        first = everyones[0][step]
        _close(first["weight_grad"], whole["weight_grad"], tolerance)
        for rank, got in enumerate(steps[step] for steps in everyones):
            _close(got["body_grad"], whole["body_grad"], tolerance)
            for key in ("margin", "t"):
                _close(got[key], whole[key], tolerance)
                assert torch.equal(got[key], first[key])
            assert torch.equal(got["better"], whole["better"][share_of(rank, len(found))])
    if name == "curricularface":
        moves = [float(whole["t"]) for whole in expected]
        assert len(set(moves)) == STEPS


@pytest.mark.parametrize("name", FAMILY)
def test_evaluation_of_different_numbers_of_images(found, name):
    loss = make_loss(name).double().eval()
    loss.load_state_dict(whole_state(loss, name))
    for step, counts in enumerate(UNEVEN[len(found)]):
        x, labels = batch(step, sum(counts))
        x.requires_grad_()
        loss.weight.grad = None
        result = loss({"global": x}, labels)
        result["total"].backward()
        better = better_of(result, labels).split(counts)
        mine = [process[f"{name} eval"][step] for process in found]
        for got, above, grad in zip(mine, better, x.grad.split(counts), strict=True):
            _close(got["total"], result["total"].detach(), 1e-12)
            _close(got["grad"], len(found) * grad, 1e-12)
            assert torch.equal(got["better"], above) and got["better"].dtype == torch.int64
        _close(mine[0]["weight_grad"], loss.weight.grad, 1e-12)


def _chosen(weight_grad, centres):
    return weight_grad.unflatten(0, (-1, centres)).abs().sum((1, 2)).nonzero()[:, 0]


def _check_sampled(name, found, chosen):
    """A loss that knows the chosen classes alone gives the same; `found` of each process."""
    loss = make_loss(name).double().train()
    loss.load_state_dict(whole_state(loss, name))
    weight = loss.weight.detach().unflatten(0, (-1, loss.centres))[chosen].flatten(0, 1)
    loss.weight = nn.Parameter(weight)
    if name == "adaptive_arcface":
        loss.class_margins = loss.class_margins[chosen]
    x, labels = batch(5, BATCH)
    assert set(labels.tolist()) <= set(chosen.tolist())
    labels = (labels[:, None] == chosen).nonzero()[:, 1]
    x.requires_grad_()
    result = loss({"global": x}, labels)
    result["total"].backward()
    _close(torch.cat([got["grad"] for got in found]), len(found) * x.grad, 1e-12)
    assert torch.equal(torch.cat([got["better"] for got in found]), better_of(result, labels))
    _close(found[0]["total"], result["total"].detach(), 1e-12)
    got = found[0]["weight_grad"].unflatten(0, (-1, loss.centres))[chosen].flatten(0, 1)
    _close(got, loss.weight.grad, 1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_sampled_classes_of_all_shards(found, name):
    processes, labels = len(found), batch(5, BATCH)[1]
    mine = [process[f"{name} sampled"] for process in found]
    centres = 3 if name == "subcenter_arcface" else 1
    draws = [_chosen(draw["weight_grad"], centres) for draw in mine[0]]
    for call, chosen in enumerate(draws):
        _check_sampled(name, [process[call] for process in mine], chosen)
        for rank in range(processes):
            shard = ClassShard(CLASSES, 1, rank, processes)
            part = [c for c in chosen.tolist() if shard.start <= c < shard.stop]
            positives = {c for c in labels.tolist() if shard.start <= c < shard.stop}
            assert len(part) == max(round(0.5 * shard.classes), len(positives), 1)
    assert torch.equal(draws[0], draws[2])      # the generator was put back
    assert torch.equal(mine[0][0]["weight_grad"], mine[0][2]["weight_grad"])


def test_state_does_not_depend_on_the_number_of_processes(everyones, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", 3)
    torch.manual_seed(7)
    alone = ArcFace(DIM, CLASSES, 0.3, 16.0, centres=3, sharded=True)
    assert sharded_parameters(alone) == {}
    assert len(torch.unique(alone.weight.detach(), dim=0)) == 3 * CLASSES
    for processes, found in everyones.items():
        states = [process["state"] for process in found]
        assert torch.equal(states[0]["drawn"], alone.weight)
        assert sum(state["rows"] for state in states) == 3 * CLASSES
        assert max(state["rows"] for state in states) <= 3 * -(-CLASSES // processes)
        momentum = [torch.arange(state["rows"]) + 1000 * rank for rank, state in enumerate(states)]
        assert torch.equal(states[0]["momentum"], torch.cat(momentum).half())
        for state in states:
            assert state["names"] == ["terms.global.weight"] and state["own"] == ["weight"]
            assert (state["drawn"] is None) == (state is not states[0])
    assert torch.equal(everyones[4][0]["state"]["handed_over"], alone.weight)


def test_mistakes(found):
    processes = len(found)
    for process in found:
        few, unequal = process["mistakes"]["messages"]
        assert f"MODEL.NUM_CLASSES {processes - 1} among {processes} processes" in few
        assert f"{list(range(2, 2 + processes))}" in unequal and "\n" not in few + unequal
        assert process["mistakes"]["unknown label"] == float("inf")


def test_two_million_classes_by_their_sizes(found):
    processes = len(found)
    for process in found:
        images, held = 2 * processes, MANY // processes
        for name, matrices in [("arcface", 1), ("curricularface", 2.25)]:
            sizes = process[f"{name} memory 1.0"]
            assert sizes["rows"] == held and sizes["finite"]
            assert sizes["matrix_bytes"] == matrices * images * held * 4
            assert sizes["largest"] <= held * max(images, 2)      # 2: dimensions
        sampled = process["arcface memory 0.01"]
        assert sampled["rows"] == held and sampled["finite"]
        assert sampled["largest"] <= held // 100 * max(images, 2)


def test_only_the_blocks_needed_are_drawn(monkeypatch):
    drawn, randn = [], torch.randn
    monkeypatch.setattr(shards, "_BLOCK", 10)
    monkeypatch.setattr(torch, "randn", lambda *size, **keys: (drawn.append(size[0]),
                                                               randn(*size, **keys))[1])
    shard = ClassShard(100, 2, index=3, parts=8)
    weight = torch.empty(shard.classes * 2, 4)
    shard.draw_normal(weight, std=0.5)
    assert (shard.start, shard.stop) == (37, 50) and drawn == [20, 20]
    assert 0.35 < weight.std() < 0.65


@pytest.mark.parametrize("classes, parts", [(11, 4), (4, 4), (81313, 64), (7, 1)])
def test_parts_cover_the_classes_evenly(classes, parts):
    whole = torch.arange(classes * 2)
    shares = [ClassShard(classes, 2, index, parts) for index in range(parts)]
    assert torch.equal(torch.cat([shard.part(whole) for shard in shares]), whole)
    assert {shard.classes for shard in shares} <= {classes // parts, -(-classes // parts)}


# ---------------------------------------------------------------------- one process, all classes


@pytest.mark.parametrize("name", FAMILY)
def test_sampled_classes_of_one_process(name):
    loss = make_loss(name, sampled=0.2).double().train()
    (x, labels), draws = batch(5, BATCH), []
    labels = labels % 3         # so that there is room for others
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for restored in [False] * 20 + [True]:
        if restored:
            torch.set_rng_state(state)
        loss.load_state_dict(whole_state(loss, name))
        loss.weight.grad = None
        result = loss({"global": x}, labels)
        result["total"].backward()
        chosen = _chosen(loss.weight.grad, loss.centres).tolist()
        assert len(chosen) == max(2, len(labels.unique())) and set(labels.tolist()) <= set(chosen)
        assert "logits" not in result and result["better"].shape == (BATCH,)
        draws.append(tuple(chosen))
    assert draws[-1] == draws[0]
    assert "logits" in loss.eval()({"global": x}, labels)


def test_every_other_class_is_drawn_equally_often():
    torch.manual_seed(0)
    loss = make_loss("arcface", sampled=0.5).train()       # 6 of 11, two of them positives
    times = torch.zeros(CLASSES)
    for _ in range(400):
        loss.weight.grad = None
        loss({"global": torch.randn(2, DIM)}, torch.tensor([4, 9]))["total"].backward()
        times[_chosen(loss.weight.grad, 1)] += 1
    assert times[4] == times[9] == 400
    others = times[[0, 1, 2, 3, 5, 6, 7, 8, 10]]
    # 4 of 9: 178 expected, standard deviation 10
    assert others.sum() == 1600 and others.min() > 130 and others.max() < 225


@pytest.mark.parametrize("name", FAMILY)
def test_sampling_all_is_sampling_none(name):
    x, labels = batch(6, BATCH)
    results = []
    for options in ({}, {"sampled": 1.0}, {"sampled": 0.999}):
        loss = make_loss(name, **options).double().train()
        loss.load_state_dict(whole_state(loss, name))
        result = loss({"global": x}, labels)
        result["total"].backward()
        results.append((result["total"].detach(), loss.weight.grad, better_of(result, labels)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("name", FAMILY)
def test_sampling_without_images(name):
    loss = make_loss(name, sampled=0.3).train()
    x = torch.zeros(0, DIM, requires_grad=True)
    result = loss({"global": x}, torch.zeros(0, dtype=torch.long))
    result["total"].backward()
    assert result["total"] == 0 and torch.equal(loss.weight.grad, torch.zeros_like(loss.weight))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
