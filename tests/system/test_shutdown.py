"""The end of a process: what everybody is told, and that nothing can hold it up or outlives it.

Where something could hang, a generous watchdog of the test stands; how long an exit takes is measured in bench/.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest
import trio

from tests.system.frames import LONG, Event, FrameReader, frames_of, start_session
from tests.system.process import upgrade

SMALLEST_BUFFER = 4096  # bytes a client's kernel takes in for it
MANY = 4000  # answers that no buffer of the engine's side can hold
NEVER_TIMES_OUT = {"WF_LIMITS__WRITE_TIMEOUT_S": "300", "WF_WS__STALL_S": "300", "WF_WS__PONG_TIMEOUT_S": "300"}
SOON_CUT = NEVER_TIMES_OUT | {"WF_TIMEOUTS__DRAIN_S": "0.5"}  # what is not over by then is cut


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_every_session_and_tells_every_client(start, number):
    engine = start()
    async with frames_of(engine) as one, frames_of(engine) as two, engine.async_client() as http:
        watched = await start_session(http)
        async with trio.open_nursery() as nursery:
            streamed: list[bytes] = []
            nursery.start_soon(read_answer, engine, streamed)
            for frames in (one, two):
                await frames.until(lambda frames=frames: len(speaking(frames)) == 2)
            ids = {event["session_id"] for event in one.events("experience.session_start")}
            assert len(ids) == 2
            assert watched in ids
            engine.signal(number)
            for frames in (one, two):
                assert await frames.until_closed() == 1001
        for frames in (one, two):
            ends = frames.events("experience.session_end")
            assert {e["session_id"] for e in ends} == ids
            assert len(ends) == 2
            assert {e["payload"]["reason"] for e in ends} == {"shutdown"}
            assert of_sessions(frames)[-1]["type"] == "experience.session_end"
    answer = b"".join(streamed)
    assert b'"experience.session_end"' in answer
    assert b'"reason":"shutdown"' in answer
    assert answer.endswith(b"0\r\n\r\n")  # a whole chunked body
    assert await trio.to_thread.run_sync(engine.wait_exit) == 0
    assert "Traceback" not in engine.stderr()
    assert not (engine.state / "engine.json").exists()


def of_sessions(frames: FrameReader) -> list[Event]:
    return [event for event in frames.events() if not event["type"].startswith("system.")]


def speaking(frames: FrameReader) -> set[str]:
    """The sessions that have a token."""
    return {event["session_id"] for event in frames.events("experience.token")}


async def read_answer(engine, pieces: list[bytes]) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", engine.port()) as stream:
        await stream.send_all(engine.request("POST", "/generate", LONG | {"stream": True}))
        async for piece in stream:
            pieces.append(bytes(piece))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("sign_of_life", ["state/lock", "ports.json"])
def test_a_signal_during_the_start_is_heard(start, number, sign_of_life):
    """From the first file on: whoever waits for the port file and then stops the engine is such a caller."""
    engine = start(ready=False)
    while not (engine.folder / sign_of_life).exists():  # no step in between: the moment right after is meant
        assert engine.process.poll() is None
    engine.signal(number)
    assert engine.wait_exit() == 0
    assert "Traceback" not in engine.stderr()
    assert not (engine.state / "engine.json").exists()
    assert {path.name for path in engine.state.iterdir()} <= {"lock", "token"}


def test_a_second_signal_ends_at_once(start):
    """A client that never reads holds the drain open; the second signal does not wait for it."""
    engine = start(env=NEVER_TIMES_OUT)
    with engine.connect(receive_bytes=SMALLEST_BUFFER) as client:
        client.sendall(engine.request("GET", "/static/style.css") * MANY)
        engine.wait_until_stuck(client)
        engine.signal(signal.SIGTERM)
        engine.wait_for(lambda: "stopping on SIGTERM" in engine.stderr())
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == -signal.SIGTERM


def test_an_http_client_that_does_not_read_does_not_hold_up_the_exit(start):
    engine = start(env=SOON_CUT)
    with engine.connect(receive_bytes=SMALLEST_BUFFER) as client:
        client.sendall(engine.request("GET", "/static/style.css") * MANY)
        engine.wait_until_stuck(client)
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0


def test_a_stream_that_nobody_reads_does_not_hold_up_the_exit(start):
    engine = start(env=SOON_CUT)
    with engine.connect(receive_bytes=SMALLEST_BUFFER) as client:
        body = LONG | {"model": "embedded/mixed", "stream": True}
        client.sendall(engine.request("POST", "/generate?energy=1", body))
        engine.wait_for(lambda: engine.unsent_bytes(client) > 0)
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0


async def test_a_frames_client_that_does_not_read_does_not_hold_up_the_exit_or_the_others(start):
    engine = start(env=SOON_CUT)
    with engine.connect("ws", receive_bytes=SMALLEST_BUFFER) as deaf:
        deaf.sendall(upgrade(engine.port("ws")))
        async with frames_of(engine) as frames, engine.async_client() as http:
            ids = [await start_session(http) for _ in range(8)]
            await frames.until(lambda: engine.unsent_bytes(deaf) > 0)
            await frames.until(lambda: {e["session_id"] for e in frames.events("experience.token")} >= set(ids))
            engine.signal(signal.SIGTERM)
            assert await frames.until_closed() == 1001
            assert {e["session_id"] for e in frames.events("experience.session_end")} == set(ids)
        assert await trio.to_thread.run_sync(engine.wait_exit) == 0


def test_half_open_connections_do_not_hold_up_the_exit(start):
    """Heads and upgrades that never come to their end, on both listeners."""
    engine = start(env=SOON_CUT | {"WF_LIMITS__HEAD_TIMEOUT_S": "300", "WF_LIMITS__BODY_TIMEOUT_S": "300"})
    with ExitStack() as held:
        for listener in ("http", "ws"):
            for words in (b"", b"GET /he", b"GET /health HTTP/1.1\r\nHost: 127"):
                held.enter_context(engine.connect(listener)).sendall(words)
        waiting = held.enter_context(engine.connect())
        waiting.sendall(engine.request("POST", "/generate", headers={"content-length": "1000"}))
        with engine.client() as http:  # accepted after them, so they are in
            assert http.get("/health").status_code == 200
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0
