"""A stage crashes while sessions run: they end with an error, the engine goes on, and nothing continues with a hole."""

from __future__ import annotations

import pytest
import trio

import actors.mapper
from engine.domain import frames
from engine.domain.energy import EnergyMeter
from engine.domain.errors import RestartsExhausted
from tests.fakes.runtime import ScriptedRuntime, words
from tests.fakes.slice import running_slice


class Poison:
    """Raises once, at the given call."""

    def __init__(self, real, at_call):
        self.real, self.left = real, at_call

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("poison")
        return self.real(*args, **kwargs)


def long(clock):
    return ScriptedRuntime(clock, words(100))


async def test_a_mapper_crash_ends_running_sessions_and_the_next_one_is_whole(autojump_clock, monkeypatch):
    poison = Poison(EnergyMeter.token, 30)
    monkeypatch.setattr(EnergyMeter, "token", lambda meter, token: poison(meter, token))
    async with running_slice(long) as s:
        client = s.client()
        first = s.start()
        await first.closed.wait()
        await trio.sleep(0.2)
        (end,) = client.events("experience.session_end")
        assert (end["payload"]["reason"], end["payload"]["error"]["code"]) == ("error", "INTERNAL")
        assert "mapper" in end["payload"]["error"]["message"]
        assert s.runtime.closed == 1
        second = s.start()
        await second.closed.wait()
        await trio.sleep(0.2)
        texts = [
            t["text"]
            for e in client.events("experience.token")
            if e["session_id"] == second.id
            for t in e["payload"]["tokens"]
        ]
        assert "".join(texts) == "".join(f"w{i} " for i in range(100))


async def test_a_composer_crash_ends_running_sessions_and_frame_numbers_still_rise(autojump_clock, monkeypatch):
    poison = Poison(frames.FrameState.compose, 60)
    monkeypatch.setattr(frames.FrameState, "compose", lambda state, *args, **more: poison(state, *args, **more))
    async with running_slice(long) as s:
        client = s.client()
        first = s.start()
        await first.closed.wait()
        await trio.sleep(0.3)
        (end,) = client.events("experience.session_end")
        assert end["payload"]["reason"] == "error"
        assert end["payload"]["totals"]["eu"] is None  # its ledger went with the state: unknown, not zero
        second = s.start()
        await second.closed.wait()
        await trio.sleep(0.2)
        assert [e["payload"]["reason"] for e in client.events("experience.session_end")] == ["error", "finished"]
        numbers = [m["frame"] for m in client.frames]
        assert numbers == sorted(set(numbers))


async def test_a_maths_error_on_one_token_is_data(autojump_clock, monkeypatch):
    real, calls = EnergyMeter.token, []

    def sometimes(meter, token):
        calls.append(token)
        if token.position == 3:
            raise ArithmeticError
        return real(meter, token)

    monkeypatch.setattr(EnergyMeter, "token", sometimes)
    async with running_slice(lambda clock: ScriptedRuntime(clock, words(6))) as s:
        client = s.client()
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.1)
        tokens = [t for e in client.events("experience.token") for t in e["payload"]["tokens"]]
        assert [t["energy"] is None for t in tokens] == [False, False, False, True, False, False]
        assert "".join(t["text"] for t in tokens) == "w0 w1 w2 w3 w4 w5 "
        assert s.core.mapper_counters.unmeasured == 1


@pytest.mark.parametrize("stage", ["pool", "hub"])
async def test_a_pool_or_hub_crash_stops_the_engine(autojump_clock, monkeypatch, stage):
    def broken(*args):
        raise RuntimeError("broken")

    target = actors.pool.ModelPool if stage == "pool" else actors.hub.FrameHub
    monkeypatch.setattr(target, "_handle" if stage == "pool" else "_frame", broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with running_slice(long) as s:
            s.start()
            await trio.sleep(5)
    assert caught.group_contains(RestartsExhausted)


async def test_a_mapper_that_always_crashes_gives_up(autojump_clock, monkeypatch):
    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(actors.mapper.EnergyMapper, "_map", broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with running_slice(long) as s:
            while True:
                s.start()
                await trio.sleep(0.01)
    assert caught.group_contains(RestartsExhausted)


async def test_an_end_that_was_on_its_way_through_a_crashing_stage_is_told_again(autojump_clock, monkeypatch):
    real, poisoned = frames.FrameState.compose, []

    def once_at_the_end(state, *args, **more):
        if not poisoned and any(session.closed for session in state.sessions.values()):
            poisoned.append(1)
            raise RuntimeError("poison")
        return real(state, *args, **more)

    monkeypatch.setattr(frames.FrameState, "compose", once_at_the_end)
    async with running_slice(lambda clock: ScriptedRuntime(clock, words(5))) as s:
        client = s.client()
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.5)
        assert poisoned
        assert [e["payload"]["reason"] for e in client.events("experience.session_end")] == ["finished"]
        assert s.core.telemetry.ended == {"finished": 1}
        follower = s.core.hub.follow(session.id, energy=False)
        while lines := await follower.next_lines():
            assert lines[-1].type == "experience.session_end"
