"""The whole slice in virtual time: runtime → stream → mapper → composer → hub → client bytes."""

from __future__ import annotations

import itertools

import trio

from engine.domain.energy import EnergyMeter, EnergyParams, read
from engine.domain.errors import UpstreamProtocolError
from engine.domain.generation import EndReason, Token, TokenKind, TopEntry
from tests.fakes.runtime import Cut, End, Fail, Say, ScriptedRuntime, words
from tests.fakes.slice import running_slice


def scripted(*steps, **settings):
    return lambda clock: ScriptedRuntime(clock, steps, **settings)


async def finished(slice_, session):
    """The session has ended and its last frame is out."""
    await session.closed.wait()
    await trio.sleep(0.1)


async def test_a_prompt_becomes_frames_and_the_text_is_whole(autojump_clock):
    async with running_slice(scripted(*words(40))) as s:
        client = s.client()
        session = s.start()
        await finished(s, session)
        assert client.text() == "".join(f"w{i} " for i in range(40))
        types = [e["type"] for e in client.events() if e["session_id"] == session.id]
        assert types[0] == "experience.session_start"
        assert types[-1] == "experience.session_end"
        assert types.count("experience.session_start") == types.count("experience.session_end") == 1
        end = client.events("experience.session_end")[0]["payload"]
        assert end["reason"] == "finished"
        assert end["totals"]["tokens"] == 40
        assert end["totals"]["eval_count"] == 40


async def test_the_frame_with_the_end_carries_the_last_energy_and_nothing_follows(autojump_clock):
    async with running_slice(scripted(*words(10))) as s:
        client = s.client()
        session = s.start()
        await finished(s, session)
        await trio.sleep(3)
        last = [m for m in client.frames if any(e["session_id"] == session.id for e in m["events"])][-1]
        types = [e["type"] for e in last["events"] if e["session_id"] == session.id]
        assert types[-2:] == ["energy.update", "experience.session_end"]
        energy = next(e for e in last["events"] if e["type"] == "energy.update")
        assert energy["payload"]["streams"][0]["state"] == "DRAINED"


async def test_sixty_frames_a_second_while_active_one_when_idle(autojump_clock):
    async with running_slice(scripted(*words(100, 0.1))) as s:
        client = s.client()
        s.start()
        await trio.sleep(0.505)  # between two ticks
        before = len(client.frames)
        await trio.sleep(5)
        assert len(client.frames) - before == 300
        monos = [m["mono_ms"] for m in client.frames[before:]]
        assert {round(b - a, 3) for a, b in itertools.pairwise(monos)} <= {16.666, 16.667}
    async with running_slice() as s:
        client = s.client()
        await trio.sleep(5.5)
        assert len(client.frames) == 5
        assert all(e["type"] == "system.heartbeat" for m in client.frames for e in m["events"])


async def test_energy_recomputed_from_the_events_alone_equals_the_wire(autojump_clock):
    """Anyone with the events can recompute every E: from t_us, the top lists and the published constants."""
    script = (*(Say(f"w{i}", 0.03 + (i % 7) * 0.09, -0.1 * i if i % 3 else None) for i in range(60)), End())
    async with running_slice(scripted(*script)) as s:
        client = s.client()
        s.core.hub.clients[0].receive(b'{"type":"subscribe","patterns":["*"],"top":true}')
        session = s.start()
        await finished(s, session)
        start = client.events("experience.session_start")[0]["payload"]
        params = EnergyParams(**start["energy_params"])
        meter = EnergyMeter.started(params, start["start_us"])
        compared = 0
        for message in client.frames:
            for event in message["events"]:
                if event["type"] == "experience.token":
                    for item in event["payload"]["tokens"]:
                        sample = meter.token(rebuilt(item))
                        assert abs(sample.energy - item["energy"]) <= 1e-9
                        assert abs(sample.energy_base - item["energy_base"]) <= 1e-9
                elif event["type"] == "energy.update":
                    stream = event["payload"]["streams"][0]
                    if stream["state"] == "DRAINED":
                        continue
                    now = read(meter.state, round(message["mono_ms"] * 1000), params)
                    assert abs(now.energy - stream["energy"]) <= 1e-9
                    assert now.phase == stream["state"]
                    compared += 1
        assert compared > 60


def rebuilt(item) -> Token:
    return Token(
        text=item["text"],
        kind=TokenKind(item["kind"]),
        position=item["position"],
        offset=item["offset"],
        t_us=item["t_us"],
        delta_us=None if item["delta_ms"] is None else round(item["delta_ms"] * 1000),
        logprob=item["logprob"],
        top=tuple(TopEntry(e["token"], e["logprob"]) for e in item["top"]),
        coalesced=item["coalesced"],
        throttled=item["throttled"],
    )


async def test_stop_closes_the_upstream_and_ends_once(autojump_clock):
    async with running_slice(scripted(*words(1000))) as s:
        client = s.client()
        session = s.start()
        await trio.sleep(1.01)
        report = await s.core.sessions.stop(session.id)
        assert (s.runtime.opened, s.runtime.closed) == (1, 1)
        assert report.reason is EndReason.ABORTED
        assert report.stop_latency_ms == 0.0
        assert report.tokens_generated == 20
        again = await s.core.sessions.stop(session.id)
        assert again == report
        await trio.sleep(1)
        ends = client.events("experience.session_end")
        assert [e["payload"]["reason"] for e in ends] == ["aborted"]
        assert len(client.events("experience.token")) > 0
        assert ends[0]["payload"]["totals"]["tokens"] == report.tokens_generated


async def test_a_stream_without_its_end_is_truncated(autojump_clock):
    async with running_slice(scripted(Say("half"), Cut())) as s:
        client = s.client()
        await finished(s, s.start())
        end = client.events("experience.session_end")[0]["payload"]
        assert end["reason"] == "truncated"
        assert end["error"]["code"] == "UPSTREAM_TRUNCATED"
        assert client.text() == "half"


async def test_bad_upstream_data_ends_the_session_with_its_code(autojump_clock):
    async with running_slice(scripted(Say("ok"), Fail(UpstreamProtocolError("not JSON at byte 12")))) as s:
        client = s.client()
        await finished(s, s.start())
        end = client.events("experience.session_end")[0]["payload"]
        assert (end["reason"], end["error"]["code"]) == ("error", "UPSTREAM_PROTOCOL_ERROR")


async def test_a_bug_in_a_runtime_ends_its_session_and_nothing_else(autojump_clock, caplog):
    async with running_slice(scripted(Say("ok"), Fail(ZeroDivisionError("secret prompt")))) as s:
        client = s.client()
        await finished(s, s.start())
        (error,) = [e["payload"]["error"] for e in client.events("experience.session_end")]
        assert error["code"] == "INTERNAL"
        assert "secret" not in error["message"] + "".join(record.getMessage() for record in caplog.records)
        s.runtime.script = words(3)
        again = s.start()
        await finished(s, again)
        assert again.reason is EndReason.FINISHED


async def test_silence_shows_as_a_stall_and_energy_falls(autojump_clock):
    async with running_slice(scripted(*(Say("x") for _ in range(20)), Say("y", after_s=3.0), End())) as s:
        client = s.client()
        s.start()
        await trio.sleep(3.5)
        readings = [e["payload"]["streams"][0] for e in client.events("energy.update")]
        stalled = [r for r in readings if r["stall"]]
        assert stalled
        assert stalled[-1]["state"] == "STALLING"
        energies = [r["energy"] for r in stalled]
        assert energies == sorted(energies, reverse=True)
        assert energies[-1] < energies[0] / 4


async def test_a_runtime_that_says_nothing_times_out(autojump_clock):
    async with running_slice(scripted(Say("late", after_s=1000), End())) as s:
        client = s.client()
        session = s.start()
        await finished(s, session)
        end = client.events("experience.session_end")[0]["payload"]
        assert (end["reason"], end["error"]["code"]) == ("error", "UPSTREAM_TIMEOUT")
        assert end["duration_ms"] == 300_000.0


async def test_a_client_that_does_not_read_changes_nothing_for_others_and_loses_no_text(autojump_clock):
    async with running_slice(scripted(*words(50))) as s:
        quick, slow = s.client(), s.client()
        slow.reading = False
        session = s.start()
        await trio.sleep(1)
        slow.reading = True
        await finished(s, session)
        assert slow.text() == quick.text() == "".join(f"w{i} " for i in range(50))
        assert len(slow.events("energy.update")) < len(quick.events("energy.update"))
        numbers = [m["frame"] for m in slow.frames]
        assert numbers == sorted(set(numbers))
        assert s.core.hub.counters.dropped_energy > 0


async def test_a_client_with_too_much_pending_text_is_closed_as_slow(autojump_clock):
    async with running_slice(scripted(*(Say("x" * 2000) for _ in range(1000)), End())) as s:
        slow = s.client()
        slow.reading = False
        await finished(s, s.start())
        assert slow.closed == (4008, "slow")
        assert s.core.hub.counters.closed_slow == 1
        assert s.core.hub.clients == []


async def test_shutdown_tells_every_session_its_end(autojump_clock):
    async with running_slice(scripted(*words(1000))) as s:
        client = s.client()
        s.start()
        s.start()
        await trio.sleep(1)
    assert [e["payload"]["reason"] for e in client.events("experience.session_end")] == ["shutdown", "shutdown"]
    assert s.runtime.opened == s.runtime.closed == 2
