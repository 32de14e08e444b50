"""YAML of plain data, bounded: what a configuration needs, and nothing that means other than it looks."""
import re
from pathlib import Path

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

# A configuration of all keys has 10 kB, 400 values and 4 levels
_BYTES, _VALUES, _LEVELS = 64 << 10, 10_000, 20
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")


class YamlError(ValueError):
    """The file is not plain YAML; one line says why, and in which line of the file."""


def read_yaml(path: Path):
    """The mapping, list or value in a YAML file. Raises YamlError; OSError where it cannot be read."""
    with open(path, "rb") as file:
        content = file.read(_BYTES + 1)
    if len(content) > _BYTES:
        raise YamlError(f"it has more than {_BYTES} bytes")
    try:
        return yaml.load(content.decode("utf-8-sig"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(where + " ".join(f"{error.context or ''} {error.problem or ''}".split())) from None
    # Characters that are not allowed, escapes of none, tags such as !!float on what is none
    except (yaml.YAMLError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise YamlError(" ".join(f"{type(error).__name__}: {error}".split())) from None


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice, nesting without end and what aliases make of a few lines."""

    yaml_constructors = {tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
                         if tag is None or tag.rpartition(":")[2] in _KINDS}
    # Dates stay text, and a lone = is one
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    def __init__(self, stream):
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[int, tuple[int, int]] = {}    # of each node: values with aliases written out, levels

    def compose_node(self, parent, index):
        event = self.peek_event()
        mark = event.start_mark
        self._level += 1
        if self._level > _LEVELS:
            raise ComposerError(None, None, f"it nests deeper than {_LEVELS} levels", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise ComposerError(None, None, "an alias stands for what it is part of", mark)
            return node
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        size = 1 + sum(self._sizes[id(part)][0] for part in parts)
        levels = 1 + max((self._sizes[id(part)][1] for part in parts), default=0)
        if size > _VALUES or levels > _LEVELS:
            raise ComposerError(None, None, f"it has more than {_VALUES} values or {_LEVELS} levels, "
                                "with its aliases written out", mark)
        self._sizes[id(node)] = size, levels
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag.endswith(":merge"):
                continue
            if not (isinstance(key, yaml.ScalarNode) and key.tag.endswith(":str")):
                raise ConstructorError(None, None, "a key is not text", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value[:100]} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        text = self.construct_scalar(node)
        # YAML 1.1 takes 010 for 8 and 1:30 for 90
        if not re.fullmatch("[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", text) or len(text) > 100:
            raise ConstructorError(None, None, f"{text[:40]} is not a whole number of usual size in decimal "
                                   "digits; text needs quotation marks", node.start_mark)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node):
        if ":" in node.value:
            raise ConstructorError(None, None, f"{node.value[:40]} would be read in base 60; text needs "
                                   "quotation marks", node.start_mark)
        return super().construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}"))
