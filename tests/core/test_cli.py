"""What the commands' command lines have in common."""
import sys

import pytest

from dolg.core.cli import config_parser, parse_with_keys


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    parser = config_parser("a command")
    parser.add_argument("--methods", default="")
    return parse_with_keys(parser)


@pytest.mark.parametrize("words", [
    "--cfg a.yaml --methods x KEY 1 OTHER -0.5",
    "--cfg a.yaml KEY 1 OTHER -0.5 --methods x",
    "KEY 1 --methods x OTHER -0.5 --cfg a.yaml",
    "KEY 1 --cfg a.yaml OTHER -0.5 --methods x",
])
def test_keys_may_stand_anywhere(monkeypatch, words):
    args = parsed(monkeypatch, *words.split())
    assert (args.cfg, args.methods, args.opts) == ("a.yaml", "x", ["KEY", "1", "OTHER", "-0.5"])


def test_an_unknown_option_is_no_key(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "--cfg", "a.yaml", "KEY", "1", "--method", "x", "--gpus", "8", "-o", "x")
    assert "unrecognized arguments: --gpus -o" in capsys.readouterr().err
