"""Pages are executed in sandboxes; the data sets' miniatures, and what takes longer, are made once."""
import pytest

from tests.docs import miniature
from tests.docs.data import Published
from tests.docs.pages import Page
from tests.docs.preloaded import Command, Server
from tests.docs.sandbox import Sandbox, scripts_of


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Miniatures of the published data sets."""
    data = Published(tmp_path_factory.mktemp("published"))
    yield data
    data.close()


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """`start(command, folder, environment)` starts a Python command as a process of its own."""
    server = Server()
    yield lambda command, folder, environment: Command(
        server, command, tmp_path_factory.mktemp("command"), folder, environment, fork=True)
    server.close()


@pytest.fixture(scope="session")
def finished(published, tmp_path_factory, start):
    """`finished(script)`: the folder that a script of miniature.ONCE has written."""
    folders = {}

    def run(script: str):
        if script not in folders:
            folder = tmp_path_factory.mktemp("once")
            (folder / "page.md").write_text(f"# Once\n\n```bash\nbash {script}\n```\n")
            sandbox = Sandbox(folder, Page("page.md", folder), published, start, {})
            failures = sandbox.run()
            assert not failures, failures[0]
            folders[script] = sandbox.root / miniature.ONCE[script]
        return folders[script]

    return run


@pytest.fixture
def execute(tmp_path, published, finished, start):
    """`execute(page)` runs all its commands; what failed."""

    def run(page) -> list[str]:
        needed = {script: finished(script) for script in scripts_of(page)}
        return Sandbox(tmp_path, page, published, start, needed).run()

    return run
