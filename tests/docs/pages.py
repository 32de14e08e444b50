"""The documentation's pages, taken apart: blocks of code, headings, links, words in code style."""
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*([\w-]*)\s*$")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" if none is said), the line of its first line of code, counted from
    1, and the code, without the indentation that its fence has."""

    language: str
    line: int
    code: str


class Page:
    """A Markdown file. `path` is relative to the repository."""

    def __init__(self, path: Path | str, root: Path = ROOT):
        self.path, self.root = Path(path), root
        self.text = (root / path).read_text(encoding="utf-8")

    def __str__(self) -> str:
        return self.path.as_posix()

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, in order. A fence that is never closed is an error."""
        blocks, start = [], None
        lines = self.text.splitlines()
        for number, line in enumerate(lines, 1):
            fence = _FENCE.match(line)
            if fence and start is None:
                start, indent, mark, language = number, *fence.groups()
            elif fence and fence[2].startswith(mark) and not fence[3]:
                code = [inside.removeprefix(indent) for inside in lines[start:number - 1]]
                blocks.append(Block(language, start + 1, "\n".join(code)))
                start = None
        assert start is None, f"{self}:{start}: this block has no end"
        return blocks

    @cached_property
    def prose(self) -> str:
        """The text with its blocks' lines left empty, so that lines keep their numbers."""
        lines = self.text.splitlines()
        for block in self.blocks:
            count = len(block.code.splitlines())
            lines[block.line - 2:block.line + count] = [""] * (count + 2)
        return "\n".join(lines)

    def script(self, python: Callable[[Block], str]) -> str:
        """All code as one shell script, each line at the number that it has on the page; a block of Python
        is the command that `python(block)` gives, where it gives one."""
        lines = [""] * len(self.text.splitlines())
        for block in self.blocks:
            if block.language == "bash":
                code = block.code.splitlines()
                lines[block.line - 1:block.line - 1 + len(code)] = code
            elif block.language == "python":
                lines[block.line - 1] = python(block)
        assert not lines[0], f"{self} begins with a block"
        return "\n".join(lines) + "\n"

    def code(self, language: str = "bash") -> str:
        return "\n".join(block.code for block in self.blocks if block.language == language)

    @cached_property
    def spans(self) -> list[tuple[int, str]]:
        """(line, words) of what the prose has in code style."""
        return [(self._line(found.start()), " ".join(found[2].split()))
                for found in _SPAN.finditer(self.prose)]

    @cached_property
    def links(self) -> list[tuple[int, str]]:
        """(line, target) of the links and images."""
        plain = _SPAN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]) if "](" in found[0] else found[0],
                          self.prose)
        return [(plain.count("\n", 0, found.start()) + 1, found[1]) for found in _LINK.finditer(plain)]

    @cached_property
    def anchors(self) -> set[str]:
        """What `#...` may name, as GitHub makes it of the headings."""
        anchors, seen = set(), {}
        for title in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", self.prose, re.M):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
            name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            count = seen.get(name, 0)
            seen[name] = count + 1
            anchors.add(f"{name}-{count}" if count else name)
        return anchors | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", self.text))

    def _line(self, place: int) -> int:
        return self.prose.count("\n", 0, place) + 1


def all_pages() -> list[Page]:
    """Every page that a user reads, in the order of their paths, the first page first."""
    rest = [*(ROOT / "docs").rglob("*.md"), ROOT / "datasets/README.md", ROOT / "revisitop/README.md"]
    return [Page("README.md"), *(Page(path.relative_to(ROOT)) for path in sorted(rest))]
