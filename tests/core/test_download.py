"""Weights by name: what is fetched, checked, and what is said where it fails."""
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from dolg.core import download
from dolg.core.download import fetch, torchvision_url, weights_file
from dolg.errors import UserError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.requests.append(self.path)


@pytest.fixture
def server(tmp_path):
    """A web server for tmp_path/web; `server.url`, `server.requests`."""
    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "web"))
    server.url, server.requests = f"http://127.0.0.1:{server.server_port}", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _publish(tmp_path, content: bytes, digest: str | None = None) -> str:
    name = f"net-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "web" / name).write_bytes(content)
    return name


def test_a_file_is_fetched_once_and_whole(server, tmp_path):
    name = _publish(tmp_path, b"weights" * 5000)
    file = fetch(f"{server.url}/{name}", tmp_path / "cache")
    assert file.read_bytes() == b"weights" * 5000
    assert fetch(f"{server.url}/{name}", tmp_path / "cache") == file
    assert len(server.requests) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_other_contents_than_the_name_says_are_refused(server, tmp_path):
    name = _publish(tmp_path, b"something else", "0123abcd")
    with pytest.raises(UserError, match="cannot fetch .*invalid hash"):
        fetch(f"{server.url}/{name}", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_the_file_or_a_network_the_line_says_what_to_do(server, tmp_path):
    with pytest.raises(UserError, match="404.*fetch it yourself and give its path"):
        fetch(f"{server.url}/absent.pth", tmp_path / "cache")
    with pytest.raises(UserError, match="cannot fetch http://127.0.0.1:9/R-50.pyth"):
        fetch("http://127.0.0.1:9/R-50.pyth", tmp_path / "cache")


def test_names_of_torchvision(server, tmp_path, monkeypatch):
    assert torchvision_url("resnet50").endswith("resnet50-0676ba61.pth")     # the first version
    assert torchvision_url("resnet50/IMAGENET1K_V2").endswith("resnet50-11ad3fa6.pth")
    with pytest.raises(UserError, match="no network 'resnet51' .did you mean 'resnet50'"):
        torchvision_url("resnet51")
    with pytest.raises(UserError, match="no weights 'V3' of resnet50: choose one of IMAGENET1K_V1"):
        torchvision_url("resnet50/V3")
    name = _publish(tmp_path, b"weights")
    monkeypatch.setattr(download, "torchvision_url", lambda network: f"{server.url}/{name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert weights_file("torchvision://resnet50").read_bytes() == b"weights"
    assert str(weights_file("a/b.pyth")) == "a/b.pyth"


def test_weights_by_name_in_extraction_and_in_python(run_tool, tiny, toy_images, tmp_path, monkeypatch):
    """TEST.WEIGHTS takes the names that TRAIN.WEIGHTS takes; the file is there, so that nothing is fetched."""
    import torchvision

    import dolg

    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    file = tmp_path / "hub" / "checkpoints" / torchvision_url("resnet18").rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    options = [*tiny[2:], "MODEL.ARCH", "gem", "MODEL.DEPTH", 18, "RESNET.STEM_WIDTH", 64,
               "MODEL.HEADS.REDUCTION_DIM", 0, "INFER.DATASET", "", "INFER.SCALES", "[1.0]"]
    command = ["tools/infer.py", *tiny[:2], *options, "INFER.IMAGES", toy_images / "toy" / "val_list.txt",
               "INFER.OUT_DIR", tmp_path / "out", "TEST.WEIGHTS"]
    done = run_tool(*command, "torchvision://resnet18", env={"TORCH_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert f"{file} (torchvision)" in done.stdout + done.stderr
    done = run_tool(*command, "torchvision://resnet81")
    assert done.returncode == 1 and "torchvision has no network 'resnet81'" in done.stderr
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    describer = dolg.load(tiny[1], "torchvision://resnet18", options)
    assert describer.dim == 512
