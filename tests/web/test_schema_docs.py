"""`/schemas`, and the schemas of bodies held against the decoders and against live answers."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs
import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from engine.domain.errors import InvalidRequest, NotFound
from engine.domain.models import Loaded, ModelInfo
from engine.schemas import read_schemas
from tests.fakes.api import running_api
from tests.fakes.runtime import ScriptedRuntime
from tests.web.test_schemas import almost_bodies, json_values
from transport.wire.commands import COMMANDS, parse_command
from transport.wire.json_schema import NAME_CHARS_MAX, find, listing, listing_lines
from web.bodies import REQUESTS
from web.schemas import decode

DOCUMENTS = read_schemas()
VALIDATORS = {name: Draft202012Validator(document) for name, document in DOCUMENTS.items()}

patterns = st.sampled_from(["*", "energy.*", "experience.token", "energy.", "Energy.*", "", "x" * 82])
almost_commands = st.fixed_dictionaries(
    {"type": st.sampled_from([*COMMANDS, "no such"])},
    optional={
        "patterns": st.lists(patterns, max_size=2) | st.just(["*"] * 33) | json_values,
        "session_id": st.none() | st.text(max_size=70),
        "rate_hz": st.integers(0, 61) | json_values,
        "top": st.booleans() | json_values,
        "id": st.none() | st.text(max_size=70),
        "more": json_values,
    },
)


def whole_floats(value: Any) -> bool:
    """1.0 somewhere: a whole number for JSON Schema, not for the decoder. Or a number too large for JSON's readers."""
    if isinstance(value, dict):
        return any(whole_floats(part) for part in value.values())
    if isinstance(value, list):
        return any(whole_floats(part) for part in value)
    return isinstance(value, float) and (not math.isfinite(value) or value.is_integer())


def bodies(base: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return almost_bodies | almost_bodies.map(lambda body: base | body)


@given(
    st.sampled_from(sorted(REQUESTS)),
    (bodies({"model": "a", "prompt": "x"}) | bodies({"name": "a"}) | bodies({"session_id": "1"})).filter(
        lambda body: not whole_floats(body)
    ),
)
@example("generate.request", {"model": "a", "prompt": "x", "parameters": {"temperature": 2}})
@example("generate.request", {"model": "a", "prompt": "x", "parameters": {"temperature": 2.001}})
@example("generate.request", {"model": "a", "prompt": "x", "messages": None})
@example("generate.request", {"model": "a", "messages": []})
def test_a_body_fits_when_the_decoder_takes_it(name, body):
    try:
        decoded = decode(msgspec.json.encode(body), REQUESTS[name][0])
        fits = name != "generate.request" or (decoded.prompt is None) != (decoded.messages is None)
    except InvalidRequest:
        fits = False
    assert VALIDATORS[name].is_valid(body) == fits


@given(almost_commands.filter(lambda command: not whole_floats(command)))
def test_a_command_fits_when_it_is_understood(command):
    try:
        parse_command(msgspec.json.encode(command))
        fits = True
    except InvalidRequest:
        fits = False
    assert any(VALIDATORS[name].is_valid(command) for name in COMMANDS) == fits


def fits(name: str, said: Any) -> bool:
    return VALIDATORS[name].is_valid(said)


async def test_live_answers_fit(autojump_clock):
    async with running_api() as api:
        await api.generate()
        for name, path in (
            ("health", "/health"),
            ("stats", "/stats"),
            ("models", "/models"),
            ("bootstrap", "/api/bootstrap"),
            ("error", "/stream/none"),
        ):
            assert fits(name, (await api.get(path)).json)


@attrs.define(eq=False)
class SilentRuntime(ScriptedRuntime):
    """Tells as little as a runtime may."""

    async def list_models(self) -> tuple[ModelInfo, ...]:
        return tuple(attrs.evolve(model, size_bytes=None) for model in await ScriptedRuntime.list_models(self))

    async def load(self, model: str) -> Loaded:
        return attrs.evolve(await ScriptedRuntime.load(self, model), resident_bytes=None)


async def test_what_a_runtime_does_not_tell_is_null(autojump_clock):
    async with running_api(SilentRuntime) as api:
        client = api.slice.client()
        loaded = (await api.post("/models/load", {"name": "a"})).json
        assert loaded["resident_bytes"] is None
        assert fits("models.load.response", loaded)
        models = (await api.get("/models")).json
        assert {(m["size_bytes"], m["state"]) for m in models["models"]} == {(None, "ready"), (None, "absent")}
        assert fits("models", models)
        api.slice.runtime.up = False
        await api.get("/models")
        assert fits("health", (await api.get("/health")).json)
        await trio.sleep(1.5)
        changes = client.events("experience.model")
        assert {event["session_id"] for event in changes} == {None}, "nobody's session"
        assert all(fits("experience.model", event) for event in changes)
        assert all(fits("frame", message) for message in client.messages)
        stamps = {"v": "1.0", "ts_ms": 1, "mono_ms": 1.0}
        assert not fits("line", changes[0] | stamps), "an event stream is of one session"
        assert fits("line", changes[0] | stamps | {"session_id": "1"})


async def test_the_list_leads_to_every_schema(autojump_clock):
    async with running_api() as api:
        listed = (await api.get("/schemas")).json["schemas"]
        assert [entry["name"] for entry in listed] == list(DOCUMENTS)
        for entry in listed:
            answer = await api.get(entry["url"])
            assert (answer.status, answer.headers["content-type"]) == (200, "application/schema+json")
            assert answer.headers["x-schema-version"] == "1.0"
            assert json.loads(answer.body) == json.loads(json.dumps(DOCUMENTS[entry["name"]]))


async def test_an_unknown_schema_is_told_with_the_nearest(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/schemas/energy.updat")
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        assert "did you mean energy.update?" in answer.error["message"]


@pytest.mark.parametrize("name", ["", "\x1b[31m", "x" * 10_000, "ENERGY"])
def test_whatever_is_asked_for_is_found_or_refused_on_one_short_line(name):
    with pytest.raises(NotFound) as caught:
        find(DOCUMENTS, name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < NAME_CHARS_MAX + 100


def test_the_list_has_a_line_for_each():
    lines = listing_lines(listing(DOCUMENTS))
    assert len(lines) == len(DOCUMENTS)
    assert all(line.startswith(name) and len(line) <= 120 for line, name in zip(lines, DOCUMENTS, strict=True))
    assert listing_lines({"schemas": []}) == []
