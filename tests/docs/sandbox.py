"""A folder like the repository's root, in which bash executes a page's commands.

Bash runs the page as it is. The first folders on its PATH hold stand-ins (standin.py) for `python`,
`torchrun` and what is not on every machine; they ask this process, which makes the command small
(miniature.py), starts it in a process that has PyTorch imported, and gives its output and status back.
"""
import json
import os
import re
import shlex
import shutil
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from dolg.config import load_cfg
from dolg.errors import UserError
from tests.conftest import ROOT
from tests.docs import miniature
from tests.docs.data import ALIASES, MAKERS, Published, write_weights
from tests.docs.pages import Block, Page
from tests.docs.preloaded import Command

HERE = Path(__file__).parent
# What a page's folder has of the repository; documents are a copy, for what is written beside them
LINKED = ("benchmarks", "configs", "dolg", "requirements.txt", "revisitop", "setup.py", "tests", "tools")
COPIED = ("docs", "README.md")
TIMEOUT = 120       # seconds of one command


class Sandbox:
    """The folder `root`, and the execution of a page in it.

    :param start: starts a command: script and arguments, folder, environment
    :param finished: what the scripts of miniature.ONCE wrote
    """

    def __init__(self, folder: Path, page: Page, published: Published, start: Callable[..., Command],
                 finished: dict[str, Path]):
        self.root, self.page, self.published = folder / "dolg", page, published
        self._finished, self._session = finished, None
        self._start, self._lock = start, threading.Lock()
        self._bin, self._scripts = folder / "bin", folder / "python"
        self._log, self._failures = folder / "log", folder / "failures"
        self._fill()
        self._make_standins()

    def _fill(self) -> None:
        (self.root / "scripts").mkdir(parents=True)
        for name in LINKED:
            (self.root / name).symlink_to(ROOT / name)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.root / name)
        for script in (ROOT / "scripts").iterdir():
            copy = self.root / "scripts" / script.name
            name = f"scripts/{script.name}"
            if name in miniature.EXEMPT:
                copy.write_text("exit 0\n")
            elif name in self._finished:
                output = f'"${{1:-{miniature.ONCE[name]}}}"'
                copy.write_text(f"mkdir -p {output} && cp -a {self._finished[name]}/. {output}\n")
            else:
                copy.symlink_to(script)
        (self.root / "datasets" / "data").mkdir(parents=True)
        (self.root / "datasets" / "README.md").symlink_to(ROOT / "datasets" / "README.md")
        (self.root / "output").mkdir()
        for folder in data_sets_of(self.page, self.published):
            (self.root / "datasets" / "data" / folder.name).symlink_to(folder)

    def _make_standins(self) -> None:
        self._bin.mkdir()
        self._scripts.mkdir()
        source = (HERE / "standin.py").read_text()
        for name in self.standins:
            file = self._bin / name
            file.write_text(f"#!{sys.executable} -IS\n{source}")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    @property
    def standins(self) -> dict[str, Callable]:
        return {"python": self._python, "python3": self._python, "torchrun": self._torchrun,
                "python-block": self._session_block, "pip": self._exempt,
                "srun": self._srun, "sbatch": self._sbatch, "scontrol": self._scontrol}

    # ------------------------------------------------------------------ the page

    def run(self, timeout: float = 300) -> list[str]:
        """Execute the page; what failed, a message for each command."""
        script = self.page.script(self._python_block)
        (self._scripts / "before.sh").write_text(before(self.page))
        first, _, rest = script.partition("\n")
        (self._scripts / "page.sh").write_text(f"{self._preamble()}{first}\n{rest}")
        with _Server(self) as server:
            env = {**os.environ, **self._environment(server)}
            with self._log.open("a") as log:
                process = subprocess.Popen(["bash", str(self._scripts / "page.sh")], cwd=self.root, env=env,
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                           start_new_session=True)
                try:
                    status = process.wait(timeout)
                finally:
                    with suppress(ProcessLookupError):      # else all is over already
                        os.killpg(process.pid, signal.SIGKILL)
        if self._session:
            self._session.send_signal(9)
        return self._reports(status)

    def _preamble(self) -> str:
        """One line that has each failed command reported with its line, and the end of its output."""
        report = ('{ printf "%s:%s: status %s: %s\\n" "${BASH_SOURCE##*/}" "$LINENO" "$?" "$BASH_COMMAND"; '
                  f'tail -n 12 {self._log}; printf "\\f"; }} >> {self._failures}; : > {self._log}')
        return f"set -u -o pipefail; trap {shlex.quote(report)} ERR; source {self._scripts}/before.sh; "

    def _environment(self, server: "_Server") -> dict[str, str]:
        home = self.root.parent / "home"
        home.mkdir()
        (self.root.parent / "env").mkdir()
        own = {name: str(value) for name, value in
               miniature.VARIABLES.get(str(self.page), {}).items()}
        return {"PATH": f"{self._bin}:{os.environ['PATH']}", "HOME": str(home), "OMP_NUM_THREADS": "1",
                "DOLG_SANDBOX": f"127.0.0.1:{server.server_address[1]}", "no_proxy": "127.0.0.1",
                "PYTHON_EXEC": str(self._bin / "python"), "TORCH_HOME": str(home / "torch"),
                "VIRTUAL_ENV": str(self.root.parent / "env"), **own}

    def _reports(self, status: int) -> list[str]:
        reports = []
        if self._failures.exists():
            texts = self._failures.read_text().split("\f")[:-1]
            reports = [text.replace("page.sh", str(self.page), 1) for text in texts]
        if status and not reports:
            reports = [f"{self.page}: bash ended with status {status}:\n{self._log.read_text()[-2000:]}"]
        return reports

    def _python_block(self, block: Block) -> str:
        """The command of a block of Python, in which lines keep the numbers that they have on the page."""
        if str(self.page) in miniature.PYTHON_ELSEWHERE:
            return ":"
        file = self._scripts / f"{self.page.path.name}-{block.line}.py"
        code = re.sub(miniature.LAST_EPOCH, miniature.ONLY_EPOCH, block.code)
        before = miniature.PREAMBLES.get(str(self.page), "")
        file.write_text("\n" * (block.line - 1) + before + code + "\n")
        return f"python-block {file}"

    # ------------------------------------------------------------------ the commands

    def answer(self, task: dict) -> dict:
        """What a stand-in does: {"stdout", "stderr", "status"}, or {"exec": [...], "env": {...}}."""
        name, *arguments = task["argv"]
        try:
            return self.standins[name](arguments, task)
        except Exception as error:
            return _said(f"{type(error).__name__} in the test: {error}\n", status=70)

    def _python(self, arguments: list[str], task: dict) -> dict:
        while arguments and arguments[0] == "-u":
            arguments = arguments[1:]
        if arguments[:3] == ["-m", "pip", "install"]:
            return self._exempt(arguments, task)
        if arguments[:1] in (["-c"], ["-"]):
            file = self._scripts / f"typed-{time.monotonic_ns()}.py"
            code = arguments[1] if arguments[0] == "-c" else task["stdin"]
            file.write_text(f"import sys; sys.path[0] = {task['cwd']!r}; {code}")
            arguments = [str(file), *arguments[1 + (arguments[0] == "-c"):]]
        if arguments[0].endswith("prepare_data.py"):
            arguments = self._download(arguments)
        else:
            arguments = miniature.shrunk(arguments)
            arguments = self._with_weights(arguments, Path(task["cwd"]))
        if arguments[0].endswith("tools/serve.py"):
            return self._serve(arguments, task)
        return self._start_and_wait(arguments, task)

    def _serve(self, arguments: list[str], task: dict) -> dict:
        """A page served at a free port: it is asked for, then Ctrl-C ends the command, as its user does."""
        script, *rest = arguments
        rest = [re.sub("^\\d{4}$", "0", text) if before == "--port" else text
                for before, text in zip(["", *rest], rest)]
        with self._lock:
            command = self._start([script, "--port", "0", *rest], task["cwd"], task["env"])
        said, end = "", time.monotonic() + TIMEOUT
        while not said and time.monotonic() < end:
            time.sleep(0.02)
            with self._lock:
                if command.poll() is not None:
                    break
            found = re.search(r"http://127\.0\.0\.1:\d+/\S*", command.said())
            said = urlopen(found[0], timeout=10).read().decode() if found else ""
        with self._lock:
            command.send_signal(signal.SIGINT)
        ended = self._end(command)
        return ended if "<html" in said else _said("no page was served\n", status=1)

    def _session_block(self, arguments: list[str], task: dict) -> dict:
        """Execute a block of Python where the page's others are; see session.py."""
        file, fifo = Path(arguments[0]), self._scripts / "blocks"
        with self._lock:
            if self._session is None:
                os.mkfifo(fifo)
                self._session = self._start([str(HERE / "session.py"), str(fifo)], str(self.root),
                                            task["env"])
                self._blocks = fifo.open("w", buffering=1)
        self._blocks.write(f"{file}\n")
        status, end = file.with_suffix(".status"), time.monotonic() + TIMEOUT
        while not status.exists():
            with self._lock:
                died = self._session.poll() is not None
            if died or time.monotonic() > end:
                return _said("the blocks' process has died, or takes too long\n", status=124)
            time.sleep(0.005)
        return {"stdout": file.with_suffix(".said").read_text(), "stderr": "",
                "status": int(status.read_text())}

    def _start_and_wait(self, arguments: list[str], task: dict) -> dict:
        with self._lock:
            command = self._start(arguments, task["cwd"], task["env"])
        return self._end(command)

    def _end(self, command: Command) -> dict:
        """Wait for a command's end."""
        end = time.monotonic() + TIMEOUT
        while True:
            with self._lock:
                status = command.poll()
            if status is not None:
                break
            if time.monotonic() > end:
                command.send_signal(9)
                return _said(f"killed after {TIMEOUT} s\n", status=124)
            time.sleep(0.005)
        output, errors = command.communicate(1)
        return {"stdout": output, "stderr": errors, "status": status % 256}

    def _download(self, arguments: list[str]) -> list[str]:
        """tools/prepare_data.py's, which downloads miniatures."""
        names = [name for name in arguments if name in MAKERS]
        if not names or "--check" in arguments:
            return arguments
        options = self.published.options(names[0])
        if "--from" in arguments:
            options = ["--unverified"]
        return [*arguments, *options]

    def _with_weights(self, arguments: list[str], cwd: Path) -> list[str]:
        """Make the weights that a command names, and replace those that its file downloads."""
        if "--cfg" not in arguments:
            return arguments
        config = arguments[arguments.index("--cfg") + 1]
        options = _pairs(arguments)
        for argument in arguments:
            file = cwd / argument
            if file.name in miniature.WEIGHTS and not file.exists():
                write_weights(file, miniature.WEIGHTS[file.name], str(cwd / config), options)
        if not arguments[0].endswith("tools/train.py"):
            return arguments
        return [*arguments, *self._instead_of_downloads(cwd / config, options)]

    def _instead_of_downloads(self, config: Path, options: list[str]) -> list[str]:
        """TRAIN.WEIGHTS with weights of this very network, where torchvision's would be downloaded."""
        try:
            cfg = load_cfg(str(config), options)
        except UserError:       # the command says so itself
            return []
        if not cfg.TRAIN.WEIGHTS.startswith("torchvision://"):
            return []
        file = self.root.parent / f"{config.stem}.pth"
        write_weights(file, "torchvision", str(config), options)
        return ["TRAIN.WEIGHTS", str(file)]

    def _torchrun(self, arguments: list[str], task: dict) -> dict:
        return self._start_and_wait(
            ["-m", "torch.distributed.run", *miniature.shrunk_torchrun(arguments)], task)

    def _exempt(self, arguments: list[str], _task: dict) -> dict:
        return _said("")

    # ------------------------------------------------------------------ Slurm

    def _srun(self, arguments: list[str], task: dict) -> dict:
        options, command = _options(arguments, ("--nodes", "--ntasks-per-node"))
        nodes = min(int(options.get("--nodes", task["env"].get("SLURM_NNODES", 1))), miniature.NODES)
        each = " && ".join(f"SLURM_NODEID={node} {shlex.join(command)}" for node in range(nodes))
        return {"exec": ["bash", "-c", each], "env": {"SLURM_NNODES": str(nodes)}}

    def _sbatch(self, arguments: list[str], task: dict) -> dict:
        _, (script, *rest) = _options(arguments, ("--nodes",))
        assert "#SBATCH" in (Path(task["cwd"]) / script).read_text(), f"{script} is no job"
        return {"exec": ["bash", script, *rest], "env": {
            "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "1",
            "SLURM_GPUS_ON_NODE": "1"}}

    def _scontrol(self, arguments: list[str], _task: dict) -> dict:
        assert arguments[:2] == ["show", "hostnames"], arguments
        return {"stdout": "localhost\n", "stderr": "", "status": 0}


class _Server(socketserver.ThreadingTCPServer):
    """Answers the stand-ins of a sandbox."""

    daemon_threads = True

    def __init__(self, sandbox: Sandbox):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sandbox = sandbox

    def __enter__(self) -> "_Server":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        answer = self.server.sandbox.answer(json.loads(self.rfile.readline()))
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def _said(text: str, status: int = 0) -> dict:
    return {"stdout": "", "stderr": text, "status": status}


def _options(arguments: list[str], known: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Leading options with a value each, and the command behind them."""
    options, rest = {}, list(arguments)
    while rest[0].startswith("-"):
        assert rest[0] in known, f"unrecognized option {rest[0]}"
        options[rest[0]] = rest[1]
        rest = rest[2:]
    return options, rest


def _pairs(arguments: list[str]) -> list[str]:
    """The KEY VALUE pairs at the end of a command: all from the first that looks like a key on."""
    key = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
    behind = arguments.index("--cfg") + 2
    place = next((place for place in range(behind, len(arguments)) if key.fullmatch(arguments[place])),
                 len(arguments))
    return arguments[place:]


def before(page: Page) -> str:
    """What runs before a page: the scripts whose outcome it uses, and what miniature.BEFORE has."""
    scripts = [f"bash {script}\n" for script in scripts_of(page) if script not in page.code()]
    return "".join(scripts) + miniature.BEFORE.get(str(page), "")


def scripts_of(page: Page) -> list[str]:
    """The scripts of miniature.ONCE that a page runs, or whose output it uses."""
    text = page.code() + page.code("python")
    return [script for script, output in miniature.ONCE.items() if script in text or f"{output}/" in text]


def data_sets_of(page: Page, published: Published) -> list[Path]:
    """The prepared folders of the data sets that a page's commands, and the configurations that they name,
    name, but for those that the page itself prepares."""
    code = page.code() + before(page)
    text = code + "".join(path.read_text() for name in set(re.findall(r"configs/[\w/.-]+\.yaml", code))
                          if (path := ROOT / name).is_file())
    own = set(re.findall(r"prepare_data\.py (\w+)", code))
    named = {ALIASES.get(word, word) for word in re.findall(r"\w+", text)} & set(MAKERS)
    return [folder for name in sorted(named - own) for folder in published.prepared(name)]
