"""Starts commands without the seconds that importing PyTorch takes: a process that has imported what
dolg builds on, and no more, becomes a new process for each command by fork.

Run as a script, it reads tasks from its standard input, a line of JSON each, and answers each with a
line: {"start": {...}} with the pid, {"poll": pid} with the exit status or null.
"""
import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import util
from pathlib import Path


class Server:
    """The process that forks, and the way to ask it."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)

    def ask(self, question: dict):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        # Processes that were forked meanwhile may hold its input open: it would never see the end of it
        self._process.kill()
        self._process.wait()


class Command:
    """A process like one of subprocess.Popen(command) with the interpreter left out of `command`: a
    script or `-m` and a module, and their arguments. Its output goes to files in `folder`.

    :param together: standard error goes where the output does, as with stderr=STDOUT
    :param session: it leads a session of its own, as with start_new_session
    :param fork: so are the processes that it spawns by multiprocessing, which otherwise begin with a
        new interpreter
    """

    def __init__(self, server: Server, command: list, folder: Path, cwd: Path, env: dict,
                 together: bool = False, session: bool = False, fork: bool = False):
        self._server = server
        self._out, self._err = folder / "stdout", folder / ("stdout" if together else "stderr")
        self.args, self.returncode = [str(part) for part in command], None
        self.pid = server.ask({"start": {
            "argv": self.args, "cwd": str(cwd), "env": env, "session": session, "fork": fork,
            "stdout": str(self._out), "stderr": str(self._err)}})

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Output and errors, once it has ended; it is killed if it has not after `timeout` seconds."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(9)
            raise
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _serve(questions, answers) -> dict | None:
    """Answer until there are no more questions; in a process that is to become a command, its task."""
    for line in questions:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if answer == 0:
                return question["start"]
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _set_up(task: dict) -> None:
    """Make this process what one with a new interpreter were."""
    if task["session"]:
        os.setsid()
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["env"])
    if "OMP_NUM_THREADS" in task["env"]:     # PyTorch has read it before
        sys.modules["torch"].set_num_threads(int(task["env"]["OMP_NUM_THREADS"]))
    if task["fork"]:
        util.spawnv_passfds = _fork_instead
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, how) in enumerate([(os.devnull, os.O_RDONLY), (task["stdout"], flags),
                                          (task["stderr"], flags)]):
        file = os.open(path, how, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0), open(1, "w", encoding="utf-8")
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _become(argv: list[str]) -> None:
    """Run as the interpreter runs `python` with these arguments."""
    module = argv[0] == "-m"
    sys.argv[:] = argv[module:]
    sys.path[0] = os.getcwd() if module else str(Path(argv[0]).resolve().parent)
    if module:
        _end(lambda: runpy.run_module(argv[1], run_name="__main__", alter_sys=True))
    else:
        _end(lambda: runpy.run_path(argv[0], run_name="__main__"))


def _end(job: Callable) -> None:
    """Do the job, then all that the interpreter does at its end, but for taking down each module,
    which takes seconds."""
    status = 0
    try:
        job()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def _fork_instead(path: bytes, args: list, kept: list[int], spawn=util.spawnv_passfds) -> int:
    """For multiprocessing.util.spawnv_passfds: nothing of this process is left in the new one but what
    was imported before the command began."""
    if args[-1] != "--multiprocessing-fork":
        return spawn(path, args, kept)      # its resource tracker
    pid = os.fork()
    if pid:
        return pid
    atexit._clear()     # the other process's temporary folders are its own to delete
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            with suppress(OSError):     # the folder's own
                os.close(number)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in sys.modules if name.split(".")[0] == "dolg"]:
        del sys.modules[name]
    sys.modules["__main__"], sys.argv[:] = types.ModuleType("__main__"), ["-c", args[-1]]
    _end(lambda: exec(args[-2]))


# What takes long to import, among it what PyTorch imports at a first step; some of it is optional
IMPORTED = ("torch", "torch._dynamo", "torch.distributed.launcher.api", "torchvision", "scipy.io",
            "scipy.sparse.linalg", "torch.utils.tensorboard", "timm", "requests", "cv2", "PIL.Image")


if __name__ == "__main__":
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()     # else the collector writes to, and thereby copies, what all processes share
    mine = _serve(sys.stdin, sys.stdout)
    if mine:
        _set_up(mine)
        _become(mine["argv"])
    os._exit(0)     # without the seconds, and the warnings, of taking down each module
