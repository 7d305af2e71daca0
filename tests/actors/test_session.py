"""Sessions in virtual time: stop in every phase, limits, records."""

from __future__ import annotations

import pytest
import trio

from engine.domain.errors import Overloaded, SessionNotFound
from engine.domain.generation import EndReason
from engine.settings import LimitSettings, Settings
from tests.fakes.runtime import End, Say, ScriptedRuntime, words
from tests.fakes.slice import running_slice

ONE_AT_A_TIME = Settings(limits=LimitSettings(streams_max=1, queued_max=1))


def slow_start(clock):
    """Two seconds to load, two to the first token, then a token every 50 ms."""
    return ScriptedRuntime(clock, (Say("first", after_s=2.0), *words(100)), load_s=2.0)


@pytest.mark.parametrize(
    ("at_s", "state", "opened"),
    [(0.0, "queued", 0), (1.0, "loading", 0), (3.0, "waiting", 1), (5.0, "streaming", 1)],
)
async def test_stop_in_each_phase_ends_once_and_closes_what_was_open(autojump_clock, at_s, state, opened):
    async with running_slice(slow_start) as s:
        client = s.client()
        session = s.start()
        await trio.sleep(at_s)
        assert session.report().state == state
        report = await s.core.sessions.stop(session.id)
        assert (report.state, report.reason, report.stop_latency_ms) == ("ended", EndReason.ABORTED, 0.0)
        assert (s.runtime.opened, s.runtime.closed) == (opened, opened)
        await trio.sleep(3)
        assert [e["payload"]["reason"] for e in client.events("experience.session_end")] == ["aborted"]
        assert s.core.pool.pool.streams == 0


async def test_stop_while_queued_behind_another(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(100)), ONE_AT_A_TIME) as s:
        client = s.client()
        running = s.start()
        await trio.sleep(0.5)
        waiting = s.start()
        await trio.sleep(0.5)
        assert waiting.report().state == "queued"
        (queued,) = [e["payload"] for e in client.events("experience.model") if e["session_id"] == waiting.id]
        assert (queued["state"], queued["position"]) == ("queued", 1)
        await s.core.sessions.stop(waiting.id)
        assert s.runtime.opened == 1
        await running.closed.wait()
        assert running.reason is EndReason.FINISHED


async def test_a_stop_never_overrules_an_end(autojump_clock):
    async with running_slice() as s:
        session = s.start()
        await session.closed.wait()
        report = await s.core.sessions.stop(session.id)
        assert (report.reason, report.stop_latency_ms) == (EndReason.FINISHED, None)


async def test_too_many_sessions_are_refused_with_the_limit(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(100)), ONE_AT_A_TIME) as s:
        s.start()
        s.start()
        with pytest.raises(Overloaded) as caught:
            s.start()
        assert caught.value.details["limit"] == 2


async def test_records_live_a_minute(autojump_clock):
    async with running_slice() as s:
        session = s.start()
        await session.closed.wait()
        await trio.sleep(59)
        assert s.core.sessions.get(session.id) is session
        await trio.sleep(2)
        with pytest.raises(SessionNotFound):
            s.core.sessions.get(session.id)


@pytest.mark.parametrize("reason", [EndReason.FINISHED, EndReason.LENGTH, EndReason.STOP])
async def test_the_runtimes_reason_is_the_sessions(autojump_clock, reason):
    async with running_slice(lambda c: ScriptedRuntime(c, (Say("x"), End(reason)))) as s:
        session = s.start()
        await session.closed.wait()
        assert session.reason is reason


async def test_cold_and_warm_first_tokens_are_told_apart(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(3), load_s=2.0)) as s:
        for _ in range(2):
            await s.start().closed.wait()
        await trio.sleep(0.1)
        figures = s.core.telemetry.models["a"]
        assert (figures.ttft_cold_ms, figures.ttft_warm_ms) == (2050.0, 50.0)


async def test_a_full_pipeline_holds_the_producer_and_marks_its_tokens(autojump_clock):
    """Nobody drains: the stream waits in `put`, and the token after the wait is not measured."""
    script = (*(Say("x", after_s=0.0) for _ in range(200)), *words(50))
    async with running_slice(lambda c: ScriptedRuntime(c, script)) as s:
        client = s.client()
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.2)
        tokens = [t for e in client.events("experience.token") for t in e["payload"]["tokens"]]
        assert len(tokens) == 250
        held = [t for t in tokens if t["throttled"]]
        assert all(t["energy_base"] is None for t in held)
