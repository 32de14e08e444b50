"""The curves of a training, from its log."""
import json

import pytest

from dolg.errors import UserError
from dolg.report import charts
from dolg.report.training import read_training


def write(folder, *records, end=""):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return folder


def epoch(kind, number, **figures):
    return {"kind": f"{kind}_epoch", "step": 10 * number, "epoch": number, **figures}


def test_later_lines_of_an_epoch_count(tmp_path):
    log = read_training(write(
        tmp_path / "run", {"kind": "train", "step": 3, "epoch": 1, "loss": 99.0},
        epoch("train", 1, loss=4.0, images_per_s=7.0), epoch("test", 1, loss=5.0),
        epoch("train", 2, loss=3.0, lr="nan"), epoch("train", 2, loss=2.5), epoch("train", 10, loss=1),
        epoch("test", 2, loss=4.5, pair_acc=0.5), end='{"kind": "tra'))
    assert log.name == "run"
    assert log.figures == {"loss": {"train": [(1, 4.0), (2, 2.5), (10, 1)], "test": [(1, 5.0), (2, 4.5)]},
                           "pair_acc": {"test": [(2, 0.5)]}}


def test_logs_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the training log .*No such file"):
        read_training(tmp_path)
    with pytest.raises(UserError, match="no figures of a whole epoch"):
        read_training(write(tmp_path, {"kind": "train", "step": 1, "loss": 2.0}))
    (tmp_path / "log.jsonl").write_text('[1]\n{"kind": "train"}\n')
    with pytest.raises(UserError, match="log.jsonl, line 1: it is no record"):
        read_training(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_training(tmp_path)


@pytest.mark.parametrize("losses", [
    [1e17, 1e17], [1e17, 1e17 + 16], [1e308, -1e308, 2.0], [1e300, -1e300], [0.0, 5e-324], [0.0, 0.0]])
def test_runs_that_diverged_have_charts(tmp_path, losses):
    log = read_training(write(tmp_path, *(epoch("train", n, loss=loss) for n, loss in enumerate(losses)),
                              epoch("train", 10**400, loss=1.0), epoch("train", 7, loss=10**400)))
    assert log.figures["loss"]["train"] == [(n, loss) for n, loss in enumerate(losses) if abs(loss) < 1e308]
    chart = charts.training_chart([log], "loss")
    assert chart.count("<polyline") == 1 and "nan" not in chart and "inf" not in chart
    one = charts.training_chart([read_training(write(tmp_path, epoch("train", 10**17, loss=1)))], "loss")
    assert one.count("<polyline") == 1


def test_charts_have_a_line_for_each_place(tmp_path):
    logs = [read_training(write(tmp_path / name, *records)) for name, records in {
        "a": [epoch("train", 1, loss=4.0), epoch("train", 3, loss=2.0), epoch("test", 1, loss=3.0)],
        "b": [epoch("train", 1, other=1.0)]}.items()]
    chart = charts.training_chart(logs, "loss")
    assert chart.count("<polyline") == 2 and chart.count("dashed") == 1
    assert 'points="44.0,8.0 308.0,196.0"' in chart         # from the highest to the lowest
    one = charts.training_chart(logs, "other")              # a single figure has an axis, too
    assert one.count("<polyline") == 1 and 'colour-1' in one
