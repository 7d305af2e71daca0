"""The hub: shared bytes for those who are level, merging for those who lag, and what late readers get."""

from __future__ import annotations

import msgspec
import pytest
import trio

from engine.domain.errors import InvalidRequest
from engine.settings import SessionSettings, Settings
from tests.fakes.runtime import End, Say, ScriptedRuntime, words
from tests.fakes.slice import running_slice


def send(s, sink_index, **command):
    s.core.hub.clients[sink_index].receive(msgspec.json.encode(command))


async def test_hello_and_snapshot_come_first(autojump_clock):
    async with running_slice() as s:
        client = s.client()
        assert [e["type"] for e in client.events()] == ["system.hello", "system.state_snapshot"]
        hello = client.events("system.hello")[0]["payload"]
        assert (hello["tick_hz"], hello["tier"], hello["level"]) == (60, "mid", 5)
        assert hello["limits"]["message_bytes_max"] == 65536


async def test_a_snapshot_and_the_frames_after_it_fit_without_a_gap(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(60))) as s:
        session = s.start()
        await trio.sleep(1.503)
        late = s.client()
        (entry,) = late.events("system.state_snapshot")[0]["payload"]["sessions"]
        assert entry["state"] == "active"
        await session.closed.wait()
        await trio.sleep(0.1)
        assert entry["streams"][0]["text"]["answer"] + late.text() == "".join(f"w{i} " for i in range(60))
        assert entry["last_energy"]["streams"][0]["tokens"] == entry["tokens"]


async def test_subscriptions_filter_and_answer_with_the_full_set(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(20))) as s:
        client = s.client()
        send(s, 0, type="subscribe", patterns=["experience.token"], id="1")
        send(s, 0, type="subscribe", patterns=["council.*"], id="2")
        send(s, 0, type="unsubscribe", patterns=["council.*"], id="3")
        sets = [(e["payload"]["id"], e["payload"]["patterns"]) for e in client.events("system.subscribed")]
        assert sets == [
            ("1", ["experience.token"]),
            ("2", ["council.*", "experience.token"]),
            ("3", ["experience.token"]),
        ]
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.1)
        kinds = {e["type"] for m in client.frames for e in m["events"]}
        assert kinds <= {"experience.token", "system.heartbeat"}
        assert client.text() == "".join(f"w{i} " for i in range(20))


async def test_who_wants_the_same_has_the_same_subscription(autojump_clock):
    async with running_slice() as s:
        for patterns in (["energy.*"], ["energy.*", "council.*"], ["energy.*"]):
            s.client()
            send(s, -1, type="subscribe", patterns=patterns)
        send(s, 1, type="unsubscribe", patterns=["council.*"])
        first, second, third = s.core.hub.clients
        assert first.wanted is second.wanted is third.wanted
        send(s, 2, type="subscribe", top=True)
        assert third.wanted == third.subscription != first.wanted


async def test_one_session_only(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(10))) as s:
        client = s.client()
        one = s.start()
        send(s, 0, type="subscribe", session_id=one.id)
        s.start()
        await trio.sleep(2)
        assert {e["session_id"] for e in client.events("experience.token")} == {one.id}


async def test_top_lists_only_for_who_asked(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(3))) as s:
        plain, full = s.client(), s.client()
        send(s, 1, type="subscribe", patterns=["*"], top=True)
        s.start()
        await trio.sleep(1)
        assert all("top" not in t for e in plain.events("experience.token") for t in e["payload"]["tokens"])
        tops = [t["top"] for e in full.events("experience.token") for t in e["payload"]["tokens"]]
        assert [[entry["logprob"] for entry in top] for top in tops] == [[-0.5, -2.0]] * 3


async def test_a_lower_rate_gets_fewer_frames_and_all_the_text(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(100))) as s:
        client = s.client()
        send(s, 0, type="subscribe", rate_hz=4)
        session = s.start()
        await session.closed.wait()
        frames = len(client.frames)
        await trio.sleep(0.5)
        assert 18 <= frames <= 22  # five seconds
        assert client.text() == "".join(f"w{i} " for i in range(100))
        assert client.events("experience.session_end")


@pytest.mark.parametrize("rate_hz", [10, 20, 30, 40, 59])
async def test_a_rate_is_kept_on_average(autojump_clock, rate_hz):
    async with running_slice(lambda c: ScriptedRuntime(c, words(200))) as s:
        client = s.client()
        send(s, 0, type="subscribe", rate_hz=rate_hz)
        s.start()
        await trio.sleep(1)
        before = len(client.frames)
        await trio.sleep(5)
        assert 0.95 * rate_hz * 5 - 1 <= len(client.frames) - before <= rate_hz * 5 + 1


async def test_bad_messages_are_answered_and_the_client_stays(autojump_clock):
    async with running_slice() as s:
        client = s.client()
        for message in (b"", b"[]", b"{", b'{"type":"nope"}', b'{"type":"subscribe","patterns":["("]}', b"\xff"):
            s.core.hub.clients[0].receive(message)
        s.core.hub.clients[0].refuse(InvalidRequest("bad message: it is binary"))
        errors = client.events("system.error")
        assert len(errors) == s.core.hub.counters.bad_messages == 7
        assert errors[-1]["payload"] | {"details": {}} == {
            "id": None, "code": "VALIDATION_ERROR", "message": "bad message: it is binary", "retryable": False,
            "details": {},
        }  # fmt: skip
        assert {e["payload"]["code"] for e in errors} == {"VALIDATION_ERROR"}
        send(s, 0, type="ping", id="x")
        assert client.events("system.pong")[0]["payload"] == {"id": "x"}


async def test_replies_to_a_client_that_never_reads_are_bounded(autojump_clock):
    async with running_slice() as s:
        client = s.client()
        client.reading = False
        for _ in range(200):
            if s.core.hub.clients[0].gone:
                break
            send(s, 0, type="ping")
        assert client.closed == (4008, "slow")


async def test_a_client_that_left_gets_nothing_more(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(20))) as s:
        client = s.client()
        s.core.hub.clients[0].detach()
        s.start()
        await trio.sleep(2)
        assert client.frames == []


async def test_what_a_lagging_client_missed_comes_without_waiting_for_a_frame(autojump_clock):
    """When the session ends, the next frame is a second away; the rest of the text must not wait for it."""
    async with running_slice(lambda c: ScriptedRuntime(c, words(10))) as s:
        client = s.client()
        client.reading = False
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.05)
        client.reading = True
        await trio.sleep(0.05)
        assert client.events("experience.session_end")
        assert client.text() == "".join(f"w{i} " for i in range(10))


async def test_a_follower_gets_everything_from_the_start_in_order(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(10))) as s:
        session = s.start()
        await trio.sleep(0.3)
        follower = s.core.hub.follow(session.id, energy=False)
        lines = []
        while batch := await follower.next_lines():
            lines += batch
        types = [line.type for line in lines]
        assert types[0] == "experience.session_start"
        assert types[-1] == "experience.session_end"
        assert "energy.update" not in types
        again = s.core.hub.follow(session.id, energy=False)
        assert await again.next_lines() == lines
        assert await again.next_lines() == []


async def test_a_backlog_over_its_bound_says_what_is_gone(autojump_clock):
    settings = Settings(session=SessionSettings(backlog_bytes_max=65_536))
    script = (*(Say("x" * 4000) for _ in range(40)), End())
    async with running_slice(lambda c: ScriptedRuntime(c, script), settings) as s:
        session = s.start()
        await session.closed.wait()
        await trio.sleep(0.1)
        lines = await s.core.hub.follow(session.id, energy=False).next_lines()
        assert lines[0].type == "system.truncated_before"
        assert len(lines) - 1 + msgspec.json.decode(lines[0].data)["payload"]["events_gone"] == 44
        assert sum(len(line.data) for line in lines[1:]) <= 65_536
        assert lines[-1].type == "experience.session_end"


async def test_records_are_forgotten_after_a_minute(autojump_clock):
    async with running_slice() as s:
        session = s.start()
        await session.closed.wait()
        await trio.sleep(30)
        assert len(s.core.hub.snapshot()["sessions"]) == 1
        await trio.sleep(35)
        assert s.core.hub.snapshot()["sessions"] == []
