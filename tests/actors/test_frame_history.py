"""Coming back: what was missed is replayed whole, or a snapshot says that it is not."""

from __future__ import annotations

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.frame_history import HISTORY_BYTES_MAX, HISTORY_US, FrameHistory, Since, parse_since
from engine.domain.events import HEARTBEAT, Event, HeartbeatPayload
from engine.domain.frames import Frame, Perf
from tests.fakes.runtime import ScriptedRuntime, words
from tests.fakes.slice import running_slice

EVENT = Event(HEARTBEAT, None, HeartbeatPayload(60.0, 1.0, 1, 0))
PERF = Perf(0.0, 0.0, 0, 0, 0, 0)


def frame(number, at_us=None):
    return Frame(number, 0, number * 16_667 if at_us is None else at_us, PERF, (EVENT,))


def history(*frames, size=10):
    made = FrameHistory("b007")
    for one in frames:
        made.add(one, [(EVENT, b"x" * size)])
    return made


@pytest.mark.parametrize(("text", "since"), [("b007.12", Since("b007", 12)), ("0.0", Since("0", 0))])
def test_since(text, since):
    assert parse_since(text) == since


@pytest.mark.parametrize("text", ["", "12", "b007.", ".12", "B007.12", "b007.-1", "b007.1e3", "b.1 ", "b." + "1" * 16])
def test_no_since(text):
    assert parse_since(text) is None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=50), st.data())
def test_what_comes_after_is_exactly_what_was_missed(steps, data):
    numbers = [sum(steps[: n + 1]) for n in range(len(steps))]
    since = data.draw(st.integers(0, numbers[-1]))
    missed = history(*map(frame, numbers)).after(Since("b007", since), 10_000)
    assert [found.frame for found, _ in missed] == [n for n in numbers if n > since]


def test_what_is_not_whole_any_more_is_not_given():
    old, new = frame(1, 0), frame(2, HISTORY_US + 1)
    made = history(old, new)
    assert made.after(Since("b007", 0), 1000) is None
    assert [found.frame for found, _ in made.after(Since("b007", 1), 1000)] == [2]


def test_another_start_the_future_and_too_much_are_not_given():
    made = history(frame(1), frame(2))
    assert made.after(Since("other", 1), 1000) is None
    assert made.after(Since("b007", 3), 1000) is None
    assert made.after(Since("b007", 0), 19) is None
    assert made.after(None, 1000) is None


def test_frames_without_events_take_no_room_and_count_as_seen():
    made = history(frame(1))
    made.add(frame(9, 9), [])
    assert made.after(Since("b007", 9), 1000) == []


def test_the_bytes_are_bounded():
    made = history(frame(1), frame(2), size=HISTORY_BYTES_MAX // 2 + 1)
    assert made.after(Since("b007", 0), 2 * HISTORY_BYTES_MAX) is None
    assert len(made.after(Since("b007", 1), 2 * HISTORY_BYTES_MAX)) == 1


async def test_a_client_that_comes_back_misses_nothing_and_gets_nothing_twice(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(60))) as s:
        session = s.start()
        first = s.client()
        await trio.sleep(1.0)
        first.reading = False
        seen = first.frames[-1]["frame"]
        await trio.sleep(1.0)
        boot = first.events("system.hello")[0]["payload"]["boot"]
        again = s.client(Since(boot, seen))
        await session.closed.wait()
        await trio.sleep(0.1)
        assert again.events("system.hello")[0]["payload"]["resumed_after"] == seen
        assert again.events("system.state_snapshot") == []
        assert first.text() + again.text() == "".join(f"w{i} " for i in range(60))
        numbers = [m["frame"] for m in again.frames]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > seen


async def test_too_late_means_a_snapshot(autojump_clock):
    async with running_slice(lambda c: ScriptedRuntime(c, words(60))) as s:
        session = s.start()
        client = s.client()
        await session.closed.wait()
        await trio.sleep(15)
        boot = client.events("system.hello")[0]["payload"]["boot"]
        late = s.client(Since(boot, client.frames[0]["frame"]))
        assert late.events("system.hello")[0]["payload"]["resumed_after"] is None
        assert len(late.events("system.state_snapshot")) == 1


async def test_frames_that_nobody_saw_are_not_kept(autojump_clock):
    """Ten seconds after the last client has gone, nobody can come back for them."""
    async with running_slice(lambda c: ScriptedRuntime(c, words(1200))) as s:
        session = s.start()
        client = s.client()
        await trio.sleep(1)
        s.core.hub.clients[0].detach()
        seen, boot = client.frames[-1]["frame"], client.events("system.hello")[0]["payload"]["boot"]
        await trio.sleep(5)
        assert s.client(Since(boot, seen)).events("system.hello")[0]["payload"]["resumed_after"] == seen
        s.core.hub.clients[-1].detach()
        await trio.sleep(12)
        late = s.client(Since(boot, s.core.frame_counter.last - 60))
        assert late.events("system.hello")[0]["payload"]["resumed_after"] is None
        told = late.events("system.state_snapshot")[0]["payload"]["sessions"][0]
        await session.closed.wait()
        await trio.sleep(0.1)
        assert told["streams"][0]["text"]["answer"] + late.text() == "".join(f"w{i} " for i in range(1200))


async def test_a_dashboard_tells_what_it_painted(autojump_clock):
    async with running_slice() as s:
        sink = s.client()
        client = s.core.hub.clients[0]
        assert s.core.hub.reporting() == []
        client.receive(
            msgspec.json.encode({"type": "ack_rendered", "frame": 7, "fps": 59.5, "lag_ms": 4.25, "id": "a"})
        )
        assert sink.events("system.acknowledged")[0]["payload"] == {"id": "a", "frame": 7}
        ((told, report),) = s.core.hub.reporting()
        assert (told is client, report.frame, report.fps, report.lag_ms) == (True, 7, 59.5, 4.25)
        client.receive(b'{"type":"ack_rendered","frame":-1}')
        assert "frame" in sink.events("system.error")[0]["payload"]["message"]
