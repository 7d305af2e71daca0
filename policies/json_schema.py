"""JSON Schemas (2020-12) of typed tables: what policies/schema.py checks, said in a form that editors understand."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from policies.schema import ITEMS_MAX, Row, rows
from policies.source import Path

Json = dict[str, Any]
_NO_ROW: Final = Row("")
_KINDS: Final = {bool: "boolean", int: "integer", float: "number", str: "string"}


def table_schema(cls: Any, *, partial: bool = False, instead: Mapping[Any, Json] | None = None) -> Json:
    """The schema of a mapping that `structure` would take as a `cls`; unknown keys are refused. What one row alone does
    not tell (that weights sum to 1, say) is not in it.

    `partial` requires nothing: changes to a file. `instead` gives the schema of a type, or of the row at a path."""
    return _table(cls, (_NO_ROW,), (), partial, instead or {})


def _table(cls: Any, outer: tuple[Row, ...], path: Path, partial: bool, instead: Mapping[Any, Json]) -> Json:
    """`outer` are the rows around this table; their ranges hold for the numbers in it too."""
    properties: Json = {}
    required = []
    for here, field in rows(cls):
        if len(here) > 1:
            continue  # of a table in this one
        row: Row = field.metadata["row"]
        value = _value(field.type, (row, *outer), (*path, field.name), partial, instead)
        properties[field.name] = value | _notes(row, field.default)
        if field.default is attrs.NOTHING and not partial:
            required.append(field.name)
    table: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return table | ({"required": required} if required else {})


def _notes(row: Row, default: Any) -> Json:
    notes: Json = {"description": row.doc}
    if row.unit is not None:
        notes["x-unit"] = row.unit
    if default is not attrs.NOTHING and not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        notes["default"] = list(default) if isinstance(default, tuple) else default
    return notes


def _value(kind: Any, ranges: tuple[Row, ...], path: Path, partial: bool, instead: Mapping[Any, Json]) -> Json:
    if path in instead:
        return instead[path]
    if kind in instead:
        return instead[kind]
    if attrs.has(kind):
        return _table(kind, ranges, path, partial, instead)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        of = [_value(part, ranges, path, partial, instead) for part in args if part is not types.NoneType]
        return {"anyOf": [*of, {"type": "null"}]} if types.NoneType in args else {"anyOf": of}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _value(args[0], ranges, path, partial, instead), "maxItems": ITEMS_MAX}
    return {"type": _KINDS[kind]} | _limits(kind, ranges)


def _limits(kind: Any, ranges: tuple[Row, ...]) -> Json:
    """The narrowest limits of the rows that hold for a value."""
    if kind is str:
        # Whole texts, as Row.check has them; a pattern alone would be searched for.
        patterns = [f"^(?:{row.pattern})$" for row in ranges if row.pattern is not None]
        return {"pattern": patterns[0]} if patterns else {}
    if kind is bool:
        return {}
    lows = [row.minimum for row in ranges if row.minimum is not None]
    aboves = [row.above for row in ranges if row.above is not None]
    highs = [row.maximum for row in ranges if row.maximum is not None]
    limits = {"minimum": max(lows, default=None), "exclusiveMinimum": max(aboves, default=None)}
    return {key: limit for key, limit in (limits | {"maximum": min(highs, default=None)}).items() if limit is not None}
