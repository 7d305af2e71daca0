"""The Ollama adapter against the scripted Ollama over real sockets, through the whole slice."""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from engine.domain.generation import EndReason
from tests.fakes.mock_server import listening_mock
from tests.fakes.slice import running_slice
from transport.mock_ollama.script import Schedule
from transport.runtimes.ollama import OllamaRuntime

pytestmark = pytest.mark.system

QUICK = Schedule(tps=300, ttft_ms=5, tokens=30, seed=1)
SEEN = Schedule(tps=30, ttft_ms=5, tokens=45, seed=1)  # slow enough for frames between its tokens, on any machine
GIVE_UP_S = 120  # generous: only something stuck runs into it


@asynccontextmanager
async def against_mock(schedule=QUICK):
    with trio.fail_after(GIVE_UP_S):
        async with (
            listening_mock(schedule) as (mock, url),
            running_slice(lambda clock: OllamaRuntime(clock, url)) as s,
        ):
            yield mock, s


async def told(s, session, type_):
    """The payload of the session's first event of this type, once it is out."""
    follower = s.core.hub.follow(session.id, energy=False)
    while lines := await follower.next_lines():
        for line in lines:
            if line.type == type_:
                return msgspec.json.decode(line.data)["payload"]
    raise AssertionError(f"the session ended without {type_}")


async def run(s, model):
    sink = s.client()
    session = s.start(model)
    return await told(s, session, "experience.session_end"), sink


async def test_its_models_are_listed_and_a_tag_left_out_means_latest():
    async with against_mock() as (_, s):
        names = [model.name for model in s.core.catalog.models]
        assert "mock:steady" in names
        assert s.core.catalog.probes["ollama"].up


async def test_a_stream_with_log_probabilities_is_measured():
    async with against_mock(SEEN) as (_, s):
        end, sink = await run(s, "mock:logprobs")
        assert (end["reason"], end["totals"]["tokens"], end["totals"]["eval_count"]) == ("finished", 45, 45)
        tokens = [t for e in sink.events("experience.token") for t in e["payload"]["tokens"]]
        assert all(t["logprob"] is not None and t["energy"] is not None for t in tokens)
        certainties = {
            stream["certainty"] for e in sink.events("energy.update") for stream in e["payload"]["streams"]
        } - {None}
        assert min(certainties) < 0.4 < 0.6 < max(certainties)


async def test_without_log_probabilities_certainty_is_null_and_energy_is_not():
    async with against_mock() as (_, s):
        end, sink = await run(s, "mock:nologprobs")
        assert end["error"] is None
        streams = [stream for e in sink.events("energy.update") for stream in e["payload"]["streams"]]
        assert {stream["certainty"] for stream in streams} == {None}
        assert max(stream["energy"] for stream in streams) > 0


async def test_thinking_is_told_apart():
    async with against_mock() as (_, s):
        _, sink = await run(s, "mock:thinking")
        kinds = {t["kind"] for e in sink.events("experience.token") for t in e["payload"]["tokens"]}
        assert kinds == {"thinking", "answer"}


@pytest.mark.parametrize(
    ("model", "reason", "code"),
    [
        ("mock:cut", "truncated", "UPSTREAM_TRUNCATED"),
        ("mock:rst", "truncated", "UPSTREAM_TRUNCATED"),
        ("mock:silent-end", "truncated", "UPSTREAM_TRUNCATED"),
        ("mock:repeat-guard", "truncated", "UPSTREAM_TRUNCATED"),
        ("mock:error-line", "error", "UPSTREAM_PROTOCOL_ERROR"),
        ("mock:garbage", "error", "UPSTREAM_PROTOCOL_ERROR"),
        ("mock:bad-utf8", "error", "UPSTREAM_PROTOCOL_ERROR"),
        ("mock:endless-line", "error", "UPSTREAM_PROTOCOL_ERROR"),
        ("mock:gzip-bomb", "error", "UPSTREAM_PROTOCOL_ERROR"),
        ("mock:missing", "error", "MODEL_NOT_FOUND"),
    ],
)
async def test_each_fault_ends_its_session_with_its_code_and_the_engine_goes_on(model, reason, code):
    async with against_mock() as (_, s):
        end, _ = await run(s, model)
        assert (end["reason"], end["error"]["code"]) == (reason, code)
        after, _ = await run(s, "mock:steady")
        assert after["error"] is None


@pytest.mark.parametrize("model", ["mock:busy", "mock:late-records", "mock:coalesced", "mock:fewer", "mock:flood"])
async def test_oddities_that_are_no_faults_end_well_and_lose_no_text(model):
    async with against_mock() as (_, s):
        end, sink = await run(s, model)
        assert end["error"] is None
        tokens = [t for e in sink.events("experience.token") for t in e["payload"]["tokens"]]
        assert [t["position"] for t in tokens] == list(range(end["totals"]["tokens"]))
        size = 0
        for token in tokens:
            assert token["offset"] == size
            size += len(token["text"].encode())


async def test_stop_reaches_the_upstream():
    async with against_mock(Schedule(tps=50, ttft_ms=5, tokens=10_000, seed=1)) as (mock, s):
        session = s.start("mock:steady")
        await told(s, session, "experience.token")
        report = await s.core.sessions.stop(session.id)
        abort = await mock.wait_left()
        assert report.reason is EndReason.ABORTED
        assert abort.model == "mock:steady"
        assert abort.tokens < 10_000
