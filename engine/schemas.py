"""Every published JSON Schema by name: events, messages, API bodies, configuration and policies, with examples."""

from __future__ import annotations

import typing
from importlib.resources import files
from typing import Any, Final

import msgspec

from engine.settings import PolicyOverrides, Secret, Settings
from policies import load
from policies.council import GRACE_MAX_S, MEMBERS_MAX, MEMBERS_MIN, CouncilMethod
from policies.json_schema import table_schema
from policies.load import shipped
from policies.prices import PRICE_MAX
from policies.services import ServiceEntry
from policies.source import parse
from policies.taxonomy import Taxonomy
from transport.wire.commands import PATTERN, Command
from transport.wire.frames import SCHEMA_VERSION
from transport.wire.json_schema import Documents, Json, asked, document, said
from transport.wire.messages import EVENT_KINDS, event_type, line_types, message_types
from web.bodies import body_schemas
from web.services.calls import service_schemas

MODEL_NAME: Final[Json] = {"type": "string", "maxLength": 330}
POLICY_DOCS: Final = {
    "tiers": "policies/tiers.yaml: what each tier and level allows",
    "energy": "policies/energy.yaml: the constants of E(t) and EU",
    "degrade": "policies/degrade.yaml: when the engine leaves out visuals, and when no more",
    "ensemble": "policies/ensemble.yaml: the constants of disagreement, interference and resonance",
    "prices": "policies/prices.yaml: what tokens cost elsewhere, as of a date",
    "routes": "policies/routes.yaml: which models serve a capability",
    "broker": "policies/broker.yaml: what may be asked outside this machine, and how much of it",
}
SERVICE_DOCS: Final = {
    "services": "policies/services.yaml: the local services; your own go under services.table",
    "taxonomy": "policies/taxonomy.yaml: what the classifier may answer; yours: services.taxonomy",
}
_PRICE: Final[Json] = {"type": "number", "minimum": 0, "maximum": PRICE_MAX, "x-unit": "USD per million tokens"}
_PRICES: Final[Json] = {"input_per_million": _PRICE, "output_per_million": _PRICE}
_ROUTE: Final[Json] = {
    "type": "object",
    "required": ["provider", "model"],
    "additionalProperties": False,
    "properties": {"provider": {"type": "string"}, "model": MODEL_NAME, "endpoint": {"type": "string"}},
}
POLICY_PARTS: Final[Json] = {  # rows of those files that are free in form, by their paths
    "prices": {
        ("models",): {
            "type": "object",
            "propertyNames": MODEL_NAME,
            "additionalProperties": {"type": "object", "additionalProperties": False, "properties": _PRICES},
        },
        ("instead_of",): {
            "type": "object",
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "as_of": {"type": "string"}, **_PRICES},
        },
    },
    "routes": {
        ("capabilities",): {"type": "object", "additionalProperties": {"type": "array", "items": _ROUTE}},
    },
}
COUNCILS: Final[Json] = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["members"],
        "additionalProperties": False,
        "properties": {
            "members": {"type": "array", "items": {"type": "string"}, "minItems": MEMBERS_MIN, "maxItems": MEMBERS_MAX},
            "method": {"enum": [method.value for method in CouncilMethod]},
            "quorum": {"type": ["integer", "null"], "minimum": 1, "maximum": MEMBERS_MAX},
            "grace_s": {"type": "number", "minimum": 0, "maximum": GRACE_MAX_S},
            "stop_on_consensus": {"type": "boolean"},
            "judge": {"type": ["string", "null"]},
        },
    },
}
ALIASES: Final[Json] = {"type": "object", "propertyNames": MODEL_NAME, "additionalProperties": MODEL_NAME}
EXAMPLES_FILE: Final = "schema_examples.json"
SECRET: Final[Json] = {"type": "string", "pattern": "^[!-~]{1,256}$", "writeOnly": True}
_COMMAND_DOCS: Final = {
    "subscribe": "client message: what to receive from now on",
    "unsubscribe": "client message: what not to receive any more",
    "ping": "client message: answered with `system.pong`",
    "resync": "client message: answered with `system.state_snapshot`",
    "ack_rendered": "client message: what a dashboard has painted; answered with `system.acknowledged`",
}


def read_schemas() -> Documents:
    """All documents by name, with their examples. Blocking (package files): call it from a thread."""
    examples = _examples()
    versions = dict.fromkeys(("policies.tiers", "policies.energy"), load.SCHEMA_VERSION)
    return {
        name: document(name, versions.get(name, SCHEMA_VERSION), doc, schema, examples.get(name, ()))
        for name, (doc, schema) in _schemas().items()
    }


def _schemas() -> dict[str, tuple[str, Json]]:
    """Name to (a line about it, schema)."""
    found = {kind.type: (kind.doc, said(event_type(kind))) for kind in EVENT_KINDS}
    found["frame"] = ("one message of the WebSocket: a tick's frame or a reply", said(*message_types()))
    found["line"] = ("one line of NDJSON, or one `data:` of Server-Sent Events", said(line_types()))
    return found | _command_schemas() | body_schemas() | service_schemas() | _file_schemas()


def _command_schemas() -> dict[str, tuple[str, Json]]:
    found = {}
    for type_ in typing.get_args(Command):
        name, schema = type_.__struct_config__.tag, asked(type_)
        if "patterns" in schema["properties"]:
            schema["properties"]["patterns"]["items"]["pattern"] = f"^(?:{PATTERN.pattern})$"
        found[name] = (_COMMAND_DOCS.get(name, "client message"), schema)
    return found


def _file_schemas() -> dict[str, tuple[str, Json]]:
    services = {"type": "object", "additionalProperties": table_schema(ServiceEntry, partial=True)}
    shipped_services = {
        "type": "object",
        "required": ["schema_version", "services"],
        "additionalProperties": False,
        "properties": {"schema_version": {"const": load.SCHEMA_VERSION}, "services": services},
    }
    instead: dict[Any, Json] = {
        Secret: SECRET,
        dict[str, Any]: {"type": "object"},  # where nothing closer is said
        ("lens", "aliases"): ALIASES,
        ("councils",): COUNCILS,
        ("services", "table"): services,
        ("services", "taxonomy"): table_schema(Taxonomy, partial=True),
    }
    for field in typing.get_type_hints(PolicyOverrides):
        instead["policies", field] = table_schema(load.TABLES[field], partial=True, instead=POLICY_PARTS.get(field))
    return (
        {
            "config": ("wf.yaml: every setting", table_schema(Settings, instead=instead)),
        }
        | {
            f"policies.{name}": (POLICY_DOCS[name], table_schema(cls, instead=POLICY_PARTS.get(name)))
            for name, cls in load.TABLES.items()
        }
        | {
            "policies.services": (SERVICE_DOCS["services"], shipped_services),
            "policies.taxonomy": (SERVICE_DOCS["taxonomy"], table_schema(Taxonomy)),
        }
    )


def _examples() -> dict[str, list[Any]]:
    """Of messages and bodies: recorded ones. Of files: those that are shipped."""
    recorded: dict[str, list[Any]] = msgspec.json.decode(files("engine").joinpath(EXAMPLES_FILE).read_bytes())
    config = parse(files("policies").joinpath("wf.example.yaml").read_text("utf-8"), "wf.example.yaml")
    policies = {f"policies.{name}": [shipped(name).data] for name in (*load.TABLES, *SERVICE_DOCS)}
    return recorded | {"config": [config.data]} | policies
