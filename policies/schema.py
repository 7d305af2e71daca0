"""Typed tables: a class is a table, a field with `row(...)` is one row (type, default, unit, range, one line of doc).

`structure` turns a Document into such a class and reports every misfit at once, each as one line that names the place,
the dotted path, what was expected and, for an unknown name, the nearest known one.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from engine.domain.errors import ConfigError
from policies.source import Document, Path, dotted, printable

ITEMS_MAX: Final = 64  # entries of one list
PROBLEMS_SHOWN_MAX: Final = 20
_NAME_MAX_CHARS: Final = 60  # more of an unknown key is not compared with the known ones
_PRIMITIVES: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}

T = TypeVar("T")


class Misfit(ValueError):
    """A value that does not fit its row. `shown` is how the message quotes it, None when it must not be quoted;
    `within` leads from the row to the part at fault."""

    def __init__(self, expectation: str, shown: str | None, within: Path = ()) -> None:
        super().__init__(expectation)
        self.expectation, self.shown, self.within = expectation, shown, within


@attrs.frozen
class Row:
    """What a field's metadata["row"] says. Numbers: `minimum` and `maximum` are allowed values, `above` is not."""

    doc: str
    unit: str | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    expectation: str | None = None  # the pattern in words

    def check(self, value: Any, within: Path = ()) -> None:
        """Raises Misfit when `value`, or a part of it, is out of range."""
        if isinstance(value, tuple):
            if len(value) > ITEMS_MAX:
                raise Misfit(f"a list of at most {ITEMS_MAX}", f"{len(value)} entries", within)
            for index, item in enumerate(value):
                self.check(item, (*within, index))
        elif attrs.has(type(value)):
            for field in attrs.fields(type(value)):
                self.check(getattr(value, field.name), (*within, field.name))
        elif isinstance(value, str):
            if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
                raise Misfit(self.expectation or self.pattern, quoted(value), within)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not self._in_range(value):
            raise Misfit(self.range_text() or "a finite number", quoted(value), within)

    def _in_range(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )

    def range_text(self) -> str:
        """The range in words: `1–4096`, `at least 0`, `more than 0 and at most 1`."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum}–{self.maximum}"
        low = f"at least {self.minimum}" if self.minimum is not None else ""
        low = f"more than {self.above}" if self.above is not None else low
        high = f"at most {self.maximum}" if self.maximum is not None else ""
        return " and ".join(part for part in (low, high) if part)


def row(
    default: Any = attrs.NOTHING,
    *,
    doc: str,
    unit: str | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
    expectation: str | None = None,
    validator: Callable[[Any, attrs.Attribute[Any], Any], None] | None = None,
    repr: bool = True,
) -> Any:
    """One row of a table. The range holds for whoever builds the class, not only for files. Without `default` the row
    must be given. `validator` may raise Misfit for what a range cannot say."""
    spec = Row(doc, unit, minimum, above, maximum, pattern, expectation)
    validators = [_checked] if validator is None else [_checked, validator]
    return attrs.field(default=default, metadata={"row": spec}, validator=validators, repr=repr)


def section(cls: Callable[[], Any] | None = None, *, doc: str) -> Any:
    """A row that is a table itself: with all its defaults where `cls` is given, else it must be there."""
    default = attrs.NOTHING if cls is None else attrs.Factory(cls)
    return attrs.field(default=default, metadata={"row": Row(doc)})


def _checked(_instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
    field.metadata["row"].check(value, (field.name,))


def quoted(value: Any) -> str:
    """A value as a message shows it: short, on one line, never the inside of a list or mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return printable(str(value).removesuffix(".0"))
    if isinstance(value, str):
        return f"'{printable(value)}'"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "something else"


def strict_converter() -> cattrs.Converter:
    """A converter that turns nothing into something else: no "5" for 5, no true for 1, no unknown key."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in _PRIMITIVES:
        converter.register_structure_hook(kind, _primitive)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(lambda t: t == tuple[str, ...], _texts)
    converter.register_structure_hook_func(lambda t: t == dict[str, Any], _mapping)
    converter.register_structure_hook_factory(attrs.has, functools.partial(_table_hook, converter))
    return converter


def _primitive(value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise Misfit(_PRIMITIVES[kind], quoted(value))
    return value


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _literal(value: Any, kind: Any) -> Any:
    choices = typing.get_args(kind)
    if type(value) is not str:
        raise Misfit("text: " + " or ".join(f"'{choice}'" for choice in choices), quoted(value))
    if value not in choices:
        raise Misfit(" or ".join(choices), quoted(value))
    return value


def _texts(value: Any, _kind: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise Misfit("a list of texts", quoted(value))
    for index, item in enumerate(value):
        if type(item) is not str:
            raise Misfit("text", quoted(item), (index,))
    return tuple(value)


def _mapping(value: Any, _kind: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Misfit("a mapping", quoted(value))
    return value


def _table_hook(converter: cattrs.Converter, cls: Any) -> Callable[[Any, Any], Any]:
    attrs.resolve_types(cls)
    fields = {f.name: override(struct_hook=_row_hook(converter, f)) for f in attrs.fields(cls)}
    build = make_dict_structure_fn(cls, converter, **fields)  # type: ignore[arg-type]

    def hook(value: Any, kind: Any) -> Any:
        if type(value) is not dict:
            raise Misfit("a mapping", quoted(value))
        return build(value, kind)

    return hook


def _row_hook(converter: cattrs.Converter, field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Range checks happen here and not first in __init__, so that one table reports all its misfits."""

    def hook(value: Any, kind: Any) -> Any:
        structured = converter.structure(value, kind)
        field.metadata["row"].check(structured)
        return structured

    return hook


def rows(cls: Any, path: Path = ()) -> Iterator[tuple[Path, attrs.Attribute[Any]]]:
    """Every row of a table and of the tables in it, in order, with its path; tables stand before their rows."""
    attrs.resolve_types(cls)
    for field in attrs.fields(cls):
        here = (*path, field.name)
        yield here, field
        if attrs.has(field.type):
            yield from rows(field.type, here)


def structure(document: Document, cls: type[T], converter: cattrs.Converter) -> T:
    """`document` as a `cls`. Raises ConfigError with one line per misfit (`details["problems"]` holds them singly)."""
    try:
        return converter.structure(document.data, cls)
    except (cattrs.BaseValidationError, Misfit) as error:
        found = dict(_problems(error, (), document, cls))
    order = {path: position for position, path in enumerate(document.places)}
    raise rejected([found[path] for path in sorted(found, key=lambda path: order.get(path, -1))])


def rejected(problems: list[str]) -> ConfigError:
    """One ConfigError for several problems, a line each, the first 20 shown."""
    shown = problems[:PROBLEMS_SHOWN_MAX]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return ConfigError("\n".join(shown), problems=problems)


def _problems(error: BaseException, path: Path, document: Document, cls: type) -> Iterator[tuple[Path, str]]:
    """The problems inside what cattrs raised, in the words of this module, each with the path that it is about."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        for count, key in enumerate(sorted(error.extra_fields)):
            here = (*path, key)
            near = nearest(key, path, error.cl, cls) if count < PROBLEMS_SHOWN_MAX else None
            hint = f"; did you mean {dotted((*document.root, *near))}?" if near else ""
            yield here, f"{document.place(here)}: {dotted((*document.root, *here))} is unknown{hint}"
    elif isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            notes = [n for n in getattr(inner, "__notes__", ()) if isinstance(n, cattrs.AttributeValidationNote)]
            yield from _problems(inner, (*path, notes[-1].name) if notes else path, document, cls)
    else:
        misfit = error if isinstance(error, Misfit) else Misfit("given", None)  # KeyError: a row without a default
        here = (*path, *misfit.within)
        found = "" if misfit.shown is None else f", not {misfit.shown}"
        name = dotted((*document.root, *here)) or "the whole"
        yield here, f"{document.place(here)}: {name} must be {misfit.expectation}{found}"


def nearest(key: str, path: Path, table: Any, top: type) -> Path | None:
    """The known path closest to `key` at `path`: first a sibling, then the same or a similar name anywhere in `top`."""
    key = key[:_NAME_MAX_CHARS]
    siblings = difflib.get_close_matches(key, [f.name for f in attrs.fields(table)], n=1)
    if siblings:
        return (*path, siblings[0])
    by_name: dict[str, Path] = {}
    for known, _ in rows(top):
        by_name.setdefault(str(known[-1]), known)
    anywhere = difflib.get_close_matches(key, by_name, n=1, cutoff=0.75)
    return by_name[anywhere[0]] if anywhere else None
