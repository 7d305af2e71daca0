"""JSON Schemas (2020-12) of wire types, with what the types alone do not say: units, ranges, and which fields an
encoder always writes. Documents stand by themselves: what they refer to is in their `$defs`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import msgspec.inspect

from engine.domain import errors
from engine.domain.errors import AddressInUse, ConfigError, EngineError, NotFound
from engine.domain.generation import TokenKind
from transport.wire.commands import printable
from transport.wire.messages import ErrorItem

Json = dict[str, Any]
Documents = Mapping[str, Json]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
NAME_CHARS_MAX: Final = 80  # more of an unknown name is neither compared nor shown
_REF: Final = "#/$defs/{name}"
_NEVER_ANSWERED: Final = (ConfigError, AddressInUse)  # they end the process before anybody could ask

# Units stand in field names, last; these are the ways they are spelled.
_UNITS: Final = {
    "ms": "ms", "us": "µs", "s": "s", "bytes": "bytes", "bits": "bits", "hz": "Hz", "percent": "%", "seconds": "s",
}  # fmt: skip
_NAMED_UNITS: Final = {
    "tps": "tokens/s", "tps_max": "tokens/s", "tps_average": "tokens/s", "tps_current": "tokens/s", "fps": "frames/s",
    "fps_current": "frames/s", "eu": "EU", "eu_frame": "EU", "eu_total": "EU", "eu_rate": "EU/s", "logprob": "nat",
    "avg_throughput_tok_s": "tokens/s",
}  # fmt: skip
_ENGINE_CLOCK: Final = "on the engine clock: monotonic, 0 when the engine started"
_CLOCKS: Final = dict.fromkeys(("mono_ms", "t_us", "start_us", "end_us", "started_ms"), _ENGINE_CLOCK) | {
    "ts_ms": "wall clock: since 1970-01-01 UTC"
}
_DESCRIPTIONS: Final = {"Phase": "State of one stream."}
_SHARE: Final = (0, 1)
_RANGES: Final[dict[str, tuple[int | None, int | None]]] = {
    "logprob": (None, None),  # as the runtime said it
    "energy": _SHARE, "energy_base": _SHARE, "energy_mean": _SHARE, "certainty": _SHARE, "tail_mass": _SHARE,
    "progress": _SHARE, "level": (1, 5), "degrade": (0, 4), "position": (0, None), "offset": (0, None),
    "tokens": (0, None), "queue_depth": (0, None), "frame": (0, None),
}  # fmt: skip


def said(*types: Any) -> Json:
    """The schema of what the engine says, one of `types`: every field is written, except those that may be left unset.
    It stays open, because a reader must expect more fields of a later minor version."""
    found, defs = msgspec.json.schema_components([*types, *_NARROWER.values()], ref_template=_REF)
    for (owner, field), schema in zip(_NARROWER, found[len(types) :], strict=True):
        if owner in defs:
            defs[owner]["properties"][field] = schema
    optional = set(_unset_fields([*types, *_NARROWER.values()]))
    for owner, schema in defs.items():
        properties = schema.get("properties", {})
        if properties:
            schema["required"] = [name for name in properties if (owner, name) not in optional]
        for name, field in properties.items():
            field.pop("default", None)
            _annotate(name, field)
    return _whole(found[: len(types)], defs)


def asked(type_: Any) -> Json:
    """The schema of what a client may send, as the decoder takes it."""
    found, defs = msgspec.json.schema_components([type_], ref_template=_REF)
    for schema in defs.values():
        for name, field in schema.get("properties", {}).items():
            if unit := _unit(name):
                field["x-unit"] = unit
    return _whole(found, defs)


def document(name: str, version: str, doc: str, schema: Json, examples: Sequence[Any] = ()) -> Json:
    """A schema as it is published, under its name."""
    head = {
        "$schema": DIALECT,
        "$id": f"urn:wf-engine:schema:{version}:{name}",
        "title": name,
        "description": doc + (f"\n\n{more}" if (more := schema.get("description")) else ""),
        "x-schema-version": version,
    }
    rest = {key: value for key, value in schema.items() if key not in head}
    return head | ({"examples": list(examples)} if examples else {}) | rest


def find(documents: Documents, name: str) -> Json:
    """The document of this name. Raises NotFound with the nearest name."""
    if name in documents:
        return documents[name]
    shown = printable(name, NAME_CHARS_MAX)
    near = difflib.get_close_matches(shown, documents, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; without a name, all names are listed"
    raise NotFound(f"there is no schema {shown}{hint}", nearest=near[0] if near else None)


def listing(documents: Documents) -> Json:
    """`{"schemas": [{name, description}]}`, a line of description each."""
    entries = [
        {"name": name, "description": document["description"].partition("\n")[0]}
        for name, document in documents.items()
    ]
    return {"schemas": entries}


def listing_lines(listed: Json) -> list[str]:
    """The listing for a terminal: names in one column, descriptions in another."""
    width = max((len(entry["name"]) for entry in listed["schemas"]), default=0)
    return [f"{entry['name']:{width}}  {entry['description']}" for entry in listed["schemas"]]


def error_codes() -> list[str]:
    """Every code that can stand in an error a caller meets."""
    found = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, EngineError)]
    return sorted({error.code for error in found if error not in _NEVER_ANSWERED})


_Code = Literal[tuple(error_codes())]  # type: ignore[valid-type]
_Degrade = Literal[0, 1, 2, 3, 4]
# Fields that always hold less than their class says: (class, field) to what they hold.
_NARROWER: Final[dict[tuple[str, str], Any]] = {
    ("TokenItem", "kind"): TokenKind,
    ("SessionEndPayload", "error"): ErrorItem | None,
    ("MemberEndPayload", "error"): ErrorItem | None,
    ("DegradePayload", "level"): _Degrade,  # `level` elsewhere is 1–5
    ("DegradePayload", "before"): _Degrade,
    ("ErrorItem", "code"): _Code,
    ("ErrorReply", "code"): _Code,
}


def _unset_fields(types: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """(class, field) of every field anywhere in `types` that an encoder may leave out."""
    waiting, seen = [msgspec.inspect.type_info(type_) for type_ in types], set[Any]()
    while waiting:
        info: Any = waiting.pop()
        match info:
            case msgspec.inspect.StructType() | msgspec.inspect.DataclassType():
                if info.cls in seen:
                    continue
                seen.add(info.cls)
                for field in info.fields:
                    if not field.required and field.default is field.default_factory is msgspec.NODEFAULT:
                        yield info.cls.__name__, field.encode_name
                    waiting.append(field.type)
            case msgspec.inspect.UnionType():
                waiting.extend(info.types)
            case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
                waiting.append(info.item_type)
            case msgspec.inspect.TupleType():
                waiting.extend(info.item_types)
            case msgspec.inspect.DictType():
                waiting.append(info.value_type)


def _unit(name: str) -> str | None:
    return _NAMED_UNITS.get(name) or (_UNITS.get(name.rpartition("_")[2]) if "_" in name else None)


def _annotate(name: str, field: Json) -> None:
    """Unit, clock and range of a field, as its name tells them."""
    unit = _unit(name)
    if unit is not None:
        field["x-unit"] = unit
    if name in _CLOCKS:
        field["description"] = _CLOCKS[name]
    low, high = _RANGES.get(name, (None if unit is None else 0, None))
    for part in (field, *field.get("anyOf", ())):
        if part.get("type") in ("integer", "number"):
            part |= {key: limit for key, limit in (("minimum", low), ("maximum", high)) if limit is not None}


def _whole(roots: Sequence[Json], defs: Json) -> Json:
    """One schema out of its roots and what they refer to; a single root is put in the place of its reference."""
    for name, schema in defs.items():
        if text := _DESCRIPTIONS.get(name, schema.get("description", "")):
            schema["description"] = " ".join(text.split()).replace("None", "null")
        for field in schema.get("properties", {}).values():
            field.get("items", {}).pop("discriminator", None)  # every `type` stands in its own schema
    root: Json = dict(roots[0]) if len(roots) == 1 else {"oneOf": list(roots)}
    root.pop("discriminator", None)
    if root.keys() == {"$ref"}:
        root = defs.pop(root["$ref"].rpartition("/")[2])
    needed = dict(sorted(_reachable(root, defs).items()))
    return root | ({"$defs": needed} if needed else {})


def _reachable(schema: Any, defs: Json) -> Json:
    found: Json = {}
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in found:
                found[name] = defs[name]
                waiting.append(defs[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)
