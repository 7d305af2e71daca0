"""The published schemas against what is really said: every golden sample and every message of recorded sessions fits
its schema, holds no field that is not in it, and does not fit any more once it is changed."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engine.domain.events import EnergyUpdatePayload
from engine.schemas import read_schemas
from policies.load import SCHEMA_VERSION as POLICY_VERSION
from policies.load import TABLES
from tests.contract.compare import samples_of
from tests.contract.examples import FILE, WITHOUT_SCHEMA, all_instances, examples
from transport.wire.commands import COMMANDS
from transport.wire.frames import SCHEMA_VERSION
from transport.wire.messages import EVENT_KINDS

DOCUMENTS = read_schemas()
INSTANCES = all_instances()
REGENERATE = "run `python -m tests.contract.regenerate`"
FREE = {"details", "limits", "edges"}  # mappings whose keys the schema leaves open
NOTHING_LIKE_IT = [{"no": "such"}]  # no field is a list of such objects


def closed(schema: Any) -> Any:
    """The schema without room for more fields."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: value if key in ("examples", "enum", "default") else closed(value) for key, value in schema.items()}
    if "properties" in inner and inner.get("type") == "object":
        inner["additionalProperties"] = False
    return inner


@functools.cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(DOCUMENTS[name])


@functools.cache
def exact(name: str) -> Draft202012Validator:
    return Draft202012Validator(closed(DOCUMENTS[name]))


def misfits(name: str, instance: Any) -> list[str]:
    return [f"{error.json_path}: {error.message:.300}" for error in exact(name).iter_errors(instance)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_a_schema_with_its_version_and_examples_that_fit(name):
    document = DOCUMENTS[name]
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["title"] == name
    assert document["x-schema-version"] == (POLICY_VERSION if name.startswith("policies.") else SCHEMA_VERSION)
    assert document["examples"], REGENERATE
    for example in document["examples"]:
        assert misfits(name, example) == []
    json.dumps(document, allow_nan=False)


def test_the_examples_are_those_of_the_golden_samples():
    assert json.loads(FILE.read_text("utf-8")) == examples(), REGENERATE


def test_everything_that_is_said_has_a_schema():
    types = {event["type"] for _, schema, event in INSTANCES if "payload" in event}
    assert types == {kind.type for kind in EVENT_KINDS}
    assert set(COMMANDS) <= DOCUMENTS.keys()
    of_files = {"config", *(f"policies.{name}" for name in (*TABLES, "services", "taxonomy"))}
    assert {schema for _, schema, _ in INSTANCES} | of_files == set(DOCUMENTS)
    with_schema = {name for name, _, _ in INSTANCES}
    assert {name for name in samples_of(SCHEMA_VERSION) if name not in with_schema} == {
        name for name in samples_of(SCHEMA_VERSION) if WITHOUT_SCHEMA.fullmatch(name)
    }


@pytest.mark.parametrize(("golden", "schema", "instance"), INSTANCES, ids=lambda part: str(part)[:60])
def test_a_golden_sample_fits_its_schema(golden, schema, instance):
    assert misfits(schema, instance) == []


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every field in a value whose name the schema knows."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        if key not in FREE:
            yield from places(inner, (*path, key))


def changed(instance: Any, path: tuple[str | int, ...], **to: Any) -> Any:
    """A copy with the field at `path` set to `to["value"]`, or taken out."""
    copied = copy.deepcopy(instance)
    owner = functools.reduce(lambda part, key: part[key], path[:-1], copied)
    if "value" in to:
        owner[path[-1]] = to["value"]
    else:
        del owner[path[-1]]
    return copied


@pytest.mark.parametrize(("golden", "schema", "instance"), INSTANCES, ids=lambda part: str(part)[:60])
def test_a_golden_sample_with_a_field_of_another_type_does_not_fit(golden, schema, instance):
    checked = 0
    for path in places(instance):
        assert not validator(schema).is_valid(changed(instance, path, value=NOTHING_LIKE_IT)), path
        checked += 1
    assert checked


OF_A_CLASSIFIER = {
    "specialized_for", "domain_taxonomy_version", "task_vocabulary_version", "method_vocabulary_version",
}  # fmt: skip


def optional(schema: str, path: tuple[str | int, ...]) -> bool:
    """Fields that need not be there: of requests, those with a default; of answers, these."""
    if schema in COMMANDS or schema.endswith(".request"):
        return path[-1] not in DOCUMENTS[schema].get("required", ())
    of_a_map = path[-2:-1] and path[-2] in (
        "text", "ended", "weights", "positions", "numbers", "metadata", "by_capability",
    )  # fmt: skip
    of_a_map = of_a_map or (schema, path[:-1]) in (("stats", ("models",)), ("router.map", ("capabilities",)))
    of_a_map = of_a_map or (schema == "services.info" and path[-1] in OF_A_CLASSIFIER)
    return of_a_map or path[-1] == "top" or path[-2:] == ("payload", "id")


@pytest.mark.parametrize(("golden", "schema", "instance"), INSTANCES, ids=lambda part: str(part)[:60])
def test_a_golden_sample_without_a_field_does_not_fit(golden, schema, instance):
    needed = [path for path in places(instance) if not optional(schema, path)]
    assert needed or schema in ("ping", "resync", "generate.request", "registry.discover.request")
    for path in needed:
        assert not validator(schema).is_valid(changed(instance, path)), path


@pytest.mark.parametrize(
    ("schema", "path", "value"),
    [
        ("experience.token", ("payload", "tokens", 0, "t_us"), 1.5),
        ("experience.token", ("payload", "tokens", 0, "text"), None),
        ("experience.token", ("payload", "tokens", 0, "kind"), "speech"),
        ("experience.token", ("payload", "tokens", 0, "position"), -1),
        ("experience.token", ("session_id",), None),
        ("experience.token", ("type",), "experience.model"),
        ("energy.update", ("payload", "streams", 0, "energy"), 1.01),
        ("energy.update", ("payload", "streams", 0, "energy"), None),
        ("energy.update", ("payload", "streams", 0, "silence_ms"), -0.001),
        ("energy.update", ("payload", "streams", 0, "state"), "flowing"),
        ("experience.session_end", ("payload", "reason"), "done"),
        ("experience.session_end", ("payload", "error"), {"code": "INTERNAL"}),
        ("experience.session_end", ("payload", "totals", "tokens"), "4"),
        ("experience.session_start", ("payload", "origin"), "nobody"),
        ("experience.model", ("payload", "state"), "gone"),
        ("experience.model", ("payload", "progress"), 1.5),
        ("system.heartbeat", ("payload", "degrade"), 5),
        ("system.heartbeat", ("session_id",), "1"),
        ("system.degrade", ("payload", "level"), 5),
        ("system.degrade", ("payload", "reason"), "because"),
        ("system.error", ("payload", "code"), "NO_SUCH_CODE"),
        ("frame", ("v",), "0.9"),
        ("frame", ("frame",), None),
        ("frame", ("perf",), None),
        ("frame", ("events", 0, "type"), "system.pong"),
        ("line", ("session_id",), None),
        ("health", ("status",), "well"),
        ("health", ("level",), 6),
        ("error", ("error", "retryable"), None),
        ("generate.request", ("parameters", "top_k"), 0),
        ("generate.request", ("unknown",), 1),
        ("generate.request", ("messages",), [{"role": "user", "content": "as well as a prompt"}]),
        ("subscribe", ("rate_hz",), 61),
        ("subscribe", ("patterns", 0), "experience."),
        ("models.load.request", ("name",), ""),
        ("config", ("http", "port"), 65536),
        ("config", ("htpp",), {}),
        ("config", ("policies", "energy"), {"tps_max": {"mid": 0}}),
        ("config", ("api_keys",), ["two words"]),
        ("policies.tiers", ("low", "max_parallel_models"), 7),
        ("policies.tiers", ("schema_version",), "2.0"),
        ("policies.energy", ("alpha", "low"), 0),
    ],
)
def test_a_value_that_cannot_be_does_not_fit(schema, path, value):
    instance = DOCUMENTS[schema]["examples"][0]
    assert validator(schema).is_valid(instance)
    assert not validator(schema).is_valid(changed(instance, path, value=value))


@pytest.mark.parametrize("client", ["quick", "slow", "10 Hz", "with top"])
def test_every_recorded_message_fits(recorded, client):
    messages = recorded.clients[client].messages
    assert len(messages) > 20
    for message in messages:
        assert misfits("frame", message) == []
        for event in message["events"]:
            assert misfits(event["type"], event) == []


@pytest.mark.parametrize("stream", ["live", "late", "owned"])
def test_every_recorded_line_fits(recorded, stream):
    assert recorded.lines[stream]
    for line in recorded.lines[stream]:
        assert misfits("line", line) == []


def test_a_later_minor_version_may_say_more():
    instance = DOCUMENTS["energy.update"]["examples"][0]
    assert validator("energy.update").is_valid(changed(instance, ("payload", "new"), value=1))
    assert misfits("energy.update", changed(instance, ("payload", "new"), value=1))


def test_units_and_clocks_are_told():
    token = DOCUMENTS["experience.token"]["$defs"]["TokenItem"]["properties"]
    assert (token["t_us"]["x-unit"], token["delta_ms"]["x-unit"]) == ("µs", "ms")
    assert "engine clock" in token["t_us"]["description"]
    reading = DOCUMENTS["energy.update"]["$defs"]["StreamReading"]["properties"]
    assert reading["tps"]["x-unit"] == "tokens/s"
    assert DOCUMENTS["config"]["properties"]["ws"]["properties"]["stall_s"]["x-unit"] == "s"


def test_the_schema_follows_the_type():
    fields = set(EnergyUpdatePayload.__struct_fields__)
    assert DOCUMENTS["energy.update"]["$defs"]["EnergyUpdatePayload"]["properties"].keys() == fields
