"""Requests of every dialect to a runtime that speaks none of them, answered whole and as streams, in virtual time."""

from __future__ import annotations

import json
import re

import pytest
import trio

from engine.domain.generation import EndReason, Origin
from engine.settings import LensSettings, LimitSettings, Settings
from tests.fakes.api import running_api
from tests.fakes.runtime import Say, ScriptedRuntime, words
from tests.web.lens.ways import ANTHROPIC, OLLAMA_CHAT, OPENAI_CHAT, Way

SPOKEN = "w0 w1 w2 w3 w4 "
ALIASED = Settings(lens=LensSettings(aliases={"gpt-4o-mini": "b", "claude": "scripted/c"}))
SMALL = Settings(limits=LimitSettings(body_bytes_max=1024), lens=LensSettings(body_bytes_max=8192))
ORIGINS = {OLLAMA_CHAT.name: Origin.OLLAMA, OPENAI_CHAT.name: Origin.OPENAI, ANTHROPIC.name: Origin.ANTHROPIC}


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps or words(5), **more)


async def test_a_whole_answer_has_all_the_text(way: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(way.path, way.body())
        assert answer.status == 200
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        assert way.text(answer.json) == SPOKEN
        assert way.failed(answer.json) is None


async def test_a_stream_has_all_the_text_and_its_own_end(way: Way, autojump_clock):
    async with running_api() as api:
        answer = await api.post(way.path, way.streamed())
        assert answer.status == 200
        assert answer.headers["content-type"].partition(";")[0] == way.stream_type
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        values = way.values(answer.body)
        assert "".join(way.texts(values)) == SPOKEN
        assert [way.over(value) for value in values] == [False] * (len(values) - 1) + [True]


async def test_each_piece_comes_when_it_was_said(way: Way, autojump_clock):
    async with (
        running_api(scripted(Say("first", 1.0), Say("second", 1.0), *words(0))) as api,
        api.open("POST", way.path, way.streamed()) as client,
    ):
        began = trio.current_time()
        seen = b""
        while b"first" not in seen:
            seen += await client.receive()
        assert trio.current_time() - began == pytest.approx(1.0)
        assert b"second" not in seen
        while b"second" not in seen:
            seen += await client.receive()
        assert trio.current_time() - began == pytest.approx(2.0)


async def test_the_decision_is_told_in_headers(way: Way, autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        for body in (way.body(), way.streamed()):
            answer = await api.post(way.path, body)
            told = {name: value for name, value in answer.headers.items() if name.startswith("x-wf-")}
            session = api.slice.core.sessions.get(told.pop("x-wf-session"))
            assert session.asked.origin is not Origin.API
            waited_ms, overhead_ms = float(told.pop("x-wf-queue-ms")), float(told.pop("x-wf-overhead-ms"))
            assert waited_ms == (2000.0 if body["stream"] is False else 0.0)  # the first has it loaded
            assert overhead_ms == 0.0  # no time passes in virtual time but the wait
            assert told == {
                "x-wf-model": "a",
                "x-wf-runtime": "scripted",
                "x-wf-route": "translated",
                "x-wf-lens": "active",
            }
            assert len(answer.headers["x-request-id"]) == 16


async def test_the_stream_is_seen_live_and_by_whom_it_was_asked(dialect: Way, autojump_clock):
    async with running_api() as api:
        client = api.slice.client()
        answer = await api.post(dialect.path, dialect.body())
        await trio.sleep(1)
        starts = client.events("experience.session_start")
        assert [(e["session_id"], e["payload"]["origin"]) for e in starts] == [
            (answer.headers["x-wf-session"], ORIGINS[dialect.name])
        ]
        assert client.text() == SPOKEN
        assert api.slice.core.sessions.get(starts[0]["session_id"]).reason is EndReason.FINISHED


# ── names ──


@pytest.mark.parametrize(("alias", "model"), [("gpt-4o-mini", "b"), ("claude", "c"), ("a", "a"), ("scripted/a", "a")])
async def test_an_alias_is_another_name_and_the_reply_has_the_clients(alias, model, dialect: Way, autojump_clock):
    async with running_api(settings=ALIASED) as api:
        answer = await api.post(dialect.path, dialect.body(model=alias))
        assert (answer.status, answer.headers["x-wf-model"]) == (200, model)
        assert [request.model for request in api.slice.runtime.requests] == [model]
        assert answer.json["model"] == alias
        values = dialect.values((await api.post(dialect.path, dialect.streamed(model=alias))).body)
        assert _names(values) == {alias}


def _names(values) -> set[str]:
    """What the values of a stream call the model; Anthropic's begins with a message that has the name."""
    objects = [value for value in values if isinstance(value, dict)]
    return {one["model"] for value in objects for one in (value, value.get("message", {})) if "model" in one}


async def test_an_alias_of_nothing_is_a_model_that_is_not_there(dialect: Way, autojump_clock):
    settings = Settings(lens=LensSettings(aliases={"gpt-4o-mini": "llama3.1:8b"}))
    async with running_api(settings=settings) as api:
        answer = await api.post(dialect.path, dialect.body(model="gpt-4o-mini"))
        assert answer.status == 404
        assert "llama3.1:8b" in (dialect.failed(answer.json) or "")


# ── traces ──


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("flags", ["00", "01"])
async def test_a_trace_goes_on_with_a_span_of_our_own(flags, stream, dialect: Way, autojump_clock):
    async with running_api() as api:
        given = f"00-{TRACE}-{SPAN}-{flags}"
        answer = await api.post(dialect.path, dialect.body(stream=stream), traceparent=given)
        found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", answer.headers["traceparent"])
        assert found is not None
        assert (found[1], found[3]) == (TRACE, flags)
        assert found[2] != SPAN


@pytest.mark.parametrize(
    "given", ["", "x", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01 "]
)
async def test_what_is_no_trace_is_not_repeated(given, autojump_clock):
    async with running_api() as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.body(), traceparent=given)
        assert answer.status == 200
        assert "traceparent" not in answer.headers


# ── bodies ──


async def test_no_content_type_is_needed_and_none_is_believed(dialect: Way, autojump_clock):
    async with running_api() as api:
        for kind in ({}, {"content_type": "application/x-www-form-urlencoded"}, {"content_type": "text/plain"}):
            answer = await api.post(dialect.path, dialect.body(), **kind)
            assert answer.status == 200, kind


async def test_a_large_body_is_taken_by_the_drop_in_paths_only(dialect: Way, autojump_clock):
    padded = {"padding": "x" * 4096}
    async with running_api(settings=SMALL) as api:
        assert (await api.post(dialect.path, dialect.body(**padded))).status == 200
        native = await api.post("/generate", {"model": "a", "prompt": "x" * 4096})
        assert (native.status, native.error["details"]["limit_bytes"]) == (413, 1024)


async def test_without_configuration_the_limits_are_1_and_32_mib(autojump_clock):
    large = OLLAMA_CHAT.body(padding="x" * (1 << 20))
    async with running_api() as api:
        assert (await api.post("/generate", large)).status == 413
        assert (await api.post(OLLAMA_CHAT.path, large)).status == 200
        too_large = OLLAMA_CHAT.body(padding="x" * (32 << 20))
        assert (await api.post(OLLAMA_CHAT.path, too_large)).status == 413


async def test_what_is_too_large_is_told_in_the_clients_own_words(dialect: Way, autojump_clock):
    async with running_api(settings=SMALL) as api:
        answer = await api.post(dialect.path, dialect.body(padding="x" * 8192))
        assert answer.status == 413
        assert "8192" in (dialect.failed(answer.json) or "")


async def test_a_body_that_never_comes_is_told_in_the_clients_own_words(dialect: Way, autojump_clock):
    async with running_api() as api, api.open("POST", dialect.path, dialect.body(), whole=False) as client:
        body = await client.read_all()
        assert client.status == 408
        assert dialect.failed(json.loads(body))
