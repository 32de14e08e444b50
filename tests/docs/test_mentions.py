"""What the pages name is there: linked files and headings, configuration keys, files, options, and every
entry of the table by which commands are made small."""
import ast
import re
from functools import cache
from pathlib import Path

import pytest

from dolg.config import get_cfg
from tests.conftest import ROOT
from tests.docs import miniature
from tests.docs.data import MAKERS
from tests.docs.pages import Page, all_pages

PAGES = all_pages()
COMMAND = re.compile(r"\b((?:tools|revisitop|benchmarks)/\w+\.py)\b")
# A fence that has commands and is not executed would be one that nobody keeps true
LANGUAGES = {"bash", "python", "text", "json", "yaml", ""}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    lost = []
    for line, target in page.links:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page.path).parent / file if file else ROOT / page.path
        if not path.exists():
            lost.append(f"{page}:{line}: {target}: no such file")
        elif anchor and path.suffix == ".md" and anchor not in Page(path).anchors:
            lost.append(f"{page}:{line}: {target}: no such heading")
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_say_what_they_are(page):
    wrong = [f"{page}:{block.line}: {block.language}" for block in page.blocks
             if block.language not in LANGUAGES]
    wrong += [f"{page}:{block.line}: commands in a block that is not bash: {line}" for block in page.blocks
              if block.language != "bash"
              for line in re.findall(r"^(?:\$ )?(?:python3?|bash|sh|torchrun|pip) .*", block.code, re.M)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_configuration_keys_exist(page):
    known, sections = _keys()
    unknown = []
    for line, word in _dotted(page):
        some = word.endswith("_") and any(key.startswith(word) for key in known)       # of KEY_*
        free = word.rpartition(".")[0] in miniature.FREE_SECTIONS
        if word not in known | sections and not free and not some:
            unknown.append(f"{page}:{line}: {word}")
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_of_the_repository_exist(page):
    pattern = (r"(?<![\w/.~-])((?:configs|tools|scripts|dolg|revisitop|tests|benchmarks|docs)/[\w/.-]*"
               r"\w\.(?:py|sh|yaml|md|jpg|png|ipynb))\b")
    lost = [f"{page}:{line}: {name}" for line, text in enumerate(page.text.splitlines(), 1)
            for name in re.findall(pattern, text)
            if not (ROOT / name).exists() and name not in miniature.TO_BE_WRITTEN]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_exist(page):
    """Of the command that stands before them in the same words in code style; an option alone must be some
    command's."""
    unknown = []
    for line, words in page.spans:
        command = COMMAND.search(words)
        options = re.findall(r"(?<![\w-])--[a-z][\w-]*", words)
        if command and (ROOT / command[1]).exists():
            known = _options(command[1])
        elif words.startswith("--"):
            known = _all_options()
        else:
            continue
        unknown += [f"{page}:{line}: {command[1] if command else 'no command'} has no {option}"
                    for option in options if option not in known | {"--help"}]
    assert not unknown, "\n".join(unknown)


def test_the_table_of_miniatures_is_needed():
    """No exemption, weight or rule is left over from pages that have changed."""
    code = "\n".join(page.code() + page.code("python") for page in PAGES)
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").glob("*.sh"))
    before = "".join(miniature.BEFORE.values())
    everything = code + scripts + before
    left = [name for table in (miniature.ADDED, miniature.WEIGHTS, miniature.CHANGED) for name in table
            if name not in everything]
    left += [name for name in (*miniature.EXEMPT, *miniature.ONCE, *miniature.TORCHRUN)
             if name not in code + scripts]
    text = "".join(page.text for page in PAGES)
    left += [name for name in (*miniature.OTHER_OPTIONS, *miniature.TO_BE_WRITTEN) if name not in text]
    left += [name for name in (*miniature.BEFORE, *miniature.VARIABLES, *miniature.PREAMBLES)
             if name not in map(str, PAGES)]
    left += [f"{page} {name}" for page, names in miniature.VARIABLES.items() for name in names
             if f"${name}" not in Page(page).code()]
    assert not left, left
    assert all(reason for reason in miniature.EXEMPT.values())


def test_the_table_of_data_sets_is_whole():
    """Every published data set that can be prepared has a miniature."""
    from dolg.prepare.catalogue import DATA_SETS
    assert set(MAKERS) == set(DATA_SETS)


@cache
def _keys() -> tuple[set[str], set[str]]:
    """All configuration keys, and all sections."""
    keys, sections, nodes = set(), set(), [("", get_cfg())]
    while nodes:
        prefix, node = nodes.pop()
        for key, value in node.items():
            if hasattr(value, "items"):
                sections.add(prefix + key)
                nodes.append((f"{prefix}{key}.", value))
            else:
                keys.add(prefix + key)
    return keys, sections


def _dotted(page: Page) -> list[tuple[int, str]]:
    """Words like SECTION.KEY, in the prose's code style and in blocks; with .* a section."""
    texts = [*page.spans, *((block.line, block.code) for block in page.blocks)]
    return [(line, word) for line, text in texts
            for word in re.findall(r"(?<![\w./$-])([A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+)(?![\w/])", text)]


@cache
def _options(command: str) -> frozenset[str]:
    """The options of a command: the texts that begin with -- in its file and in the modules named arguments
    that it imports, and what it makes of names."""
    files = [ROOT / command]
    for node in ast.walk(ast.parse(files[0].read_text())):
        if isinstance(node, ast.ImportFrom):
            file = ROOT / ((node.module or "").replace(".", "/") + ".py")
            if file.exists():
                files.append(file)
    text = "".join(file.read_text() for file in files)
    options = set(re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text))
    if re.search(r"f\"--\{|\"--\" \+", text):       # of names in tables, and of fields
        names = re.findall(r"\b([a-z]\w*)[\"']?\s*[,:=]", text)
        options |= {f"--{name.replace('_', '-')}" for name in names}
    return frozenset(options)


@cache
def _all_options() -> frozenset[str]:
    commands = [str(path.relative_to(ROOT)) for folder in ("tools", "revisitop", "benchmarks")
                for path in (ROOT / folder).glob("*.py")]
    return frozenset().union(*map(_options, commands), miniature.OTHER_OPTIONS)


def test_pages_are_run_where_the_table_says():
    for page, test in miniature.PYTHON_ELSEWHERE.items():
        assert (ROOT / page).is_file() and Path(page).name in (ROOT / test).read_text()
