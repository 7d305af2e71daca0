"""Every published JSON Schema by name: events, messages, API bodies, configuration and policies, with examples."""

from __future__ import annotations

import typing
from importlib.resources import files
from typing import Any, Final

import msgspec

from engine.settings import PolicyOverrides, Secret, Settings
from policies import load
from policies.energy import EnergyPolicy
from policies.json_schema import table_schema
from policies.load import shipped
from policies.source import parse
from policies.tiers import TierPolicy
from transport.wire.commands import PATTERN, Command
from transport.wire.frames import SCHEMA_VERSION
from transport.wire.json_schema import Documents, Json, asked, document, said
from transport.wire.messages import EVENT_KINDS, event_type, line_types, message_types
from web.bodies import body_schemas

MODEL_NAME: Final[Json] = {"type": "string", "maxLength": 330}
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
    return found | _command_schemas() | body_schemas() | _file_schemas()


def _command_schemas() -> dict[str, tuple[str, Json]]:
    found = {}
    for type_ in typing.get_args(Command):
        name, schema = type_.__struct_config__.tag, asked(type_)
        if "patterns" in schema["properties"]:
            schema["properties"]["patterns"]["items"]["pattern"] = f"^(?:{PATTERN.pattern})$"
        found[name] = (_COMMAND_DOCS.get(name, "client message"), schema)
    return found


def _file_schemas() -> dict[str, tuple[str, Json]]:
    policies = {"energy": EnergyPolicy, "tiers": TierPolicy}
    instead: dict[Any, Json] = {Secret: SECRET, ("lens", "aliases"): ALIASES}
    for field in typing.get_type_hints(PolicyOverrides):
        instead["policies", field] = table_schema(policies[field], partial=True)
    return {
        "config": ("wf.yaml: every setting", table_schema(Settings, instead=instead)),
        "policies.tiers": ("policies/tiers.yaml: what each tier and level allows", table_schema(TierPolicy)),
        "policies.energy": ("policies/energy.yaml: the constants of E(t) and EU", table_schema(EnergyPolicy)),
    }


def _examples() -> dict[str, list[Any]]:
    """Of messages and bodies: recorded ones. Of files: those that are shipped."""
    recorded: dict[str, list[Any]] = msgspec.json.decode(files("engine").joinpath(EXAMPLES_FILE).read_bytes())
    config = parse(files("policies").joinpath("wf.example.yaml").read_text("utf-8"), "wf.example.yaml")
    return recorded | {
        "config": [config.data],
        "policies.tiers": [shipped("tiers").data],
        "policies.energy": [shipped("energy").data],
    }
