"""Strict YAML to plain values that remember where they stand, so that every complaint can name a file and a line.

A small, safe part of YAML 1.2: mappings with text keys, lists, text, numbers, `true`/`false`, `null`. Anchors, aliases,
tags, duplicate keys, deep nesting and big files are refused. YAML 1.1's surprises are absent: `off` is text, not false,
and `12:30` is not 750.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
import yaml

from engine.domain.errors import ConfigError

SIZE_MAX_BYTES: Final = 1_048_576
NESTING_MAX: Final = 32

Path = tuple[str | int, ...]  # ("limits", "streams_max"), ("api_keys", 0)


def dotted(path: Path) -> str:
    """`("a", "b", 0)` as `a.b[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{printable(part)}" for part in path)
    return text.removeprefix(".")


def printable(text: str, chars_max: int = 60) -> str:
    """`text` cut to `chars_max` characters, without anything that could move a cursor or start a line."""
    cut = text if len(text) <= chars_max else text[: chars_max - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in cut)


def nested(path: Path, value: Any) -> Any:
    """`value` under the keys of `path`: `("a", "b"), 1` becomes `{"a": {"b": 1}}`."""
    for part in reversed(path):
        value = {part: value}
    return value


@attrs.frozen
class Document:
    """Nested plain values, and where each key was written (`wf.yaml:12`, `WF_TIER`, `--port`).

    `root` is put before every path in messages; `name` is the place of what has no place of its own.
    """

    name: str
    data: dict[str, Any] = attrs.field(factory=dict)
    places: Mapping[Path, str] = attrs.field(factory=dict)
    root: Path = ()

    def place(self, path: Path) -> str:
        """Where `path`, or else the nearest key above it, was written."""
        for length in range(len(path), 0, -1):
            if place := self.places.get(path[:length]):
                return place
        return self.name

    def overlay(self, top: Document) -> Document:
        """These values with those of `top` over them: mappings merge key by key, anything else is replaced whole."""
        return Document(self.name, _merge(self.data, top.data), {**self.places, **top.places}, top.root)

    def at(self, *keys: str) -> Document:
        """The part under `keys`; empty when there is nothing there."""
        data: Any = self.data
        for key in keys:
            data = data.get(key, {})
        places = {path[len(keys) :]: place for path, place in self.places.items() if path[: len(keys)] == keys}
        return Document(places.pop((), self.name), data, places, (*self.root, *keys))


def single(place: str, path: Path, value: Any) -> Document:
    """A document of one value, as one environment variable or one flag gives it."""
    return Document(place, nested(path, value), {path: place})


def parse(text: str, name: str) -> Document:
    """The mapping that `text` holds; nothing at all counts as an empty one. Raises ConfigError with `name` and line."""
    value, places = _load(text, name)
    if value is None:
        return Document(name)
    if not isinstance(value, dict):
        raise ConfigError(f"{name}:1: the file must be a mapping (`key: value` lines)")
    return Document(name, value, places)


@functools.cache
def shipped(name: str) -> Document:
    """`policies/<name>.yaml` as it comes with the package."""
    text = importlib.resources.files("policies").joinpath(f"{name}.yaml").read_text("utf-8")
    return parse(text, f"policies/{name}.yaml")


def parse_value(text: str, name: str) -> Any:
    """One YAML value, as environment variables hold. Raises ConfigError with `name`."""
    return _load(text, name, lines=False)[0]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and composer with the core schema of YAML 1.2; refuses before it builds."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse("anchors and aliases (& and *) are not allowed", event.start_mark)
        if getattr(event, "tag", None) is not None:
            _refuse("tags (!) are not allowed", event.start_mark)
        if self.depth >= NESTING_MAX:
            _refuse(f"nested deeper than {NESTING_MAX} levels", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,29})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def _refuse(problem: str, mark: yaml.Mark | None) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _load(text: str, name: str, lines: bool = True) -> tuple[Any, dict[Path, str]]:
    if len(text) > SIZE_MAX_BYTES:
        raise ConfigError(f"{name}: larger than {SIZE_MAX_BYTES} bytes")
    places: dict[Path, str] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        value = None if node is None else _plain(node, (), name, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and lines else name
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: {printable(problem or 'not valid YAML', 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError):  # PyYAML lets some of chr()'s and int()'s own errors through
        raise ConfigError(f"{name}: not valid YAML (a character or an escape that cannot be)") from None
    return value, places


def _plain(node: yaml.Node, path: Path, name: str, places: dict[Path, str]) -> Any:
    """The node as dict, list, str, int, float, bool or None; `places` gets the line of every key and item."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            places[*path, index] = f"{name}:{child.start_mark.line + 1}"
            items.append(_plain(child, (*path, index), name, places))
        return items
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            _refuse("a key must be plain text", key_node.start_mark)
        key = _text(key_node)  # as written: `1:` is the key "1"
        if key in mapping:
            _refuse(f"{printable(key)} is given twice", key_node.start_mark)
        places[*path, key] = f"{name}:{key_node.start_mark.line + 1}"
        mapping[key] = _plain(child, (*path, key), name, places)
    return mapping


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return node.value.lower() == "true"
    if node.tag == _INT:
        return int(node.value)
    if node.tag == _FLOAT:
        return float(node.value)
    return _text(node)


def _text(node: yaml.ScalarNode) -> str:
    text: str = node.value
    try:
        text.encode()
    except UnicodeEncodeError:  # "\ud800" in double quotes
        _refuse("half of a surrogate pair is not text", node.start_mark)
    return text
