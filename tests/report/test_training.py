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
    for content in (b'[1]\n{"kind": "train"}\n', b"\xff\xfe\n", b"[" * 100_000):
        (tmp_path / "log.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="no figures of a whole epoch; 1 of its lines hold no record"):
            read_training(tmp_path)


def test_torn_records_are_passed_over_with_a_word(tmp_path):
    write(tmp_path, epoch("train", 1, loss=4.0), epoch("train", 3, loss=2.0))
    whole = (tmp_path / "log.jsonl").read_bytes().splitlines()
    torn = whole[0][:20] + whole[0]     # a full disk, and the next record on the same line
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([whole[0], torn, b"\0\0\xff", b"", whole[1], b""]))
    log = read_training(tmp_path)
    assert log.figures == {"loss": {"train": [(1, 4.0), (3, 2.0)]}}
    assert log.notes == [f"{tmp_path}/log.jsonl: 2 damaged line(s) without a record were passed over, the "
                         "first line 2"]


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
