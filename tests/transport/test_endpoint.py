"""The frames endpoint. Where a test is called `as_it_comes`, it runs trio-websocket without us: the day it fails, a fix
has arrived upstream and the guard it stands for may go."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketServer, open_websocket_url, wrap_server_stream
from wsproto.frame_protocol import Opcode
from wsproto.utilities import LocalProtocolError

from policies.access import loopback_rules
from tests.fakes.network import (
    UPGRADE,
    MemoryListener,
    RecordingSource,
    Stream,
    WebSocketPeer,
    ask,
    http_head,
    read_to_end,
    receive,
    text_frame,
    upgrade,
)
from transport.endpoint import FrameEndpoint, FrameLimits
from transport.listen import (
    RESET_ON_CLOSE,
    DeadlineStream,
    ListenCounters,
    ListenLimits,
    bound_port,
    open_listener,
)
from transport.push_stream import PushStream

HOST = "127.0.0.1:8146"
RULES = loopback_rules(8146, 8145, token="t")
MESSAGE_MAX = FrameLimits().message_bytes_max


def endpoint(
    listener: Any = None, rules: Any = RULES, source: RecordingSource | None = None, **limits
) -> FrameEndpoint:
    return FrameEndpoint(source or RecordingSource(), listener or MemoryListener(), rules, FrameLimits(**limits))


@asynccontextmanager
async def serving(server: FrameEndpoint | None = None) -> AsyncIterator[FrameEndpoint]:
    server = server or endpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.stop_accepting()


async def connect(server: FrameEndpoint) -> WebSocketPeer:
    """An open connection whose hello has been read."""
    peer = await upgrade(await server.listener.connect(), HOST)
    assert await peer.next_text() == "hello"
    await wait_all_tasks_blocked()  # the write of it has returned
    return peer


def client_of(server: FrameEndpoint, n: int = -1) -> Any:
    return server.source.clients[n]  # type: ignore[attr-defined]


async def still_serves(server: FrameEndpoint) -> None:
    peer = await connect(server)
    await peer.send_text("still there?")
    await wait_all_tasks_blocked()
    assert client_of(server).received == [b"still there?"]
    await leave(peer)


async def leave(peer: WebSocketPeer) -> None:
    await peer.send(peer.close(1000))
    assert await peer.closed_with() == (1000, "")
    await peer.stream.aclose()


# --- the upgrade -----------------------------------------------------------------------------------------------------


async def test_a_real_client_gets_hello_and_speaks():
    """trio-websocket's own client over a real socket."""
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    server = endpoint(listener, loopback_rules(port, 8145, token="t"))
    async with serving(server):
        async with open_websocket_url(f"ws://127.0.0.1:{port}/ws?since=b.1") as ws:
            assert await ws.get_message() == "hello"
            heard = trio.Event()
            client_of(server).on_message = lambda message: heard.set()
            await ws.send_message("ünïcode")
            await heard.wait()
            assert client_of(server).received == ["ünïcode".encode()]
            assert client_of(server).sink.push(text_frame("frame"))
            assert await ws.get_message() == "frame"
            await ws.ping()
            assert server.counters.active == 1
    assert client_of(server).detached == 1
    c = server.counters
    assert (c.opened, c.active, c.closed, c.messages_in, c.pushes) == (1, 0, {1000: 1}, 2, 2)
    assert c.listen.bytes_out > 0
    assert c.listen.crashed == 0


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (http_head("GET", "/ws", "evil.example", UPGRADE), 403, "FORBIDDEN"),
        (b"GET /ws HTTP/1.0\r\n\r\n", 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Origin: http://evil.example")), 403, "FORBIDDEN_ORIGIN"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Origin: null")), 403, "FORBIDDEN_ORIGIN"),
        (http_head("GET", "/", HOST, UPGRADE), 404, "NOT_FOUND"),
        (http_head("GET", "/wsx", HOST, UPGRADE), 404, "NOT_FOUND"),
        (http_head("HEAD", "/health", HOST), 404, "NOT_FOUND"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Sec-WebSocket-Protocol: \xff")), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Sec-WebSocket-Extensions: \xff")), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Connection: \xff")), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, UPGRADE) + b"\x81\x80abcd", 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, (*UPGRADE, "Content-Length: 3")) + b"abc", 400, "VALIDATION_ERROR"),
        (b"GET /ws HTTP/1.1\r\nX: " + b"p" * 20_000, 400, "VALIDATION_ERROR"),
        (b"\x16\x03\x01\x00\xc8", 400, "VALIDATION_ERROR"),
    ],
)
async def test_refused_at_the_upgrade(head, status, code, caplog):
    async with serving() as server:
        stream = await server.listener.connect()
        with caplog.at_level(logging.WARNING):
            answer = await ask(stream, head)
            assert (answer.status, answer.error["code"]) == (status, code)
            assert answer.headers["x-schema-version"] == "1.0"
            assert b"evil" not in answer.body
            assert await receive(stream) == b""
        await stream.aclose()
        await still_serves(server)
    assert not caplog.records
    assert server.counters.refused == {status: 1}
    assert server.counters.opened == 1


async def test_our_page_may_connect_and_keys_are_asked_for():
    rules = loopback_rules(8146, 8145, token="t", api_keys=["key"])
    async with serving(endpoint(rules=rules)) as server:
        stream = await server.listener.connect()
        refused = await ask(stream, http_head("GET", "/ws", HOST, UPGRADE))
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        await stream.aclose()
        offer = "Sec-WebSocket-Extensions: permessage-deflate"  # never taken up
        headers = ("Origin: http://localhost:8145", "X-Api-Key: key", "Sec-Fetch-Site: same-site", offer)
        peer = await upgrade(await server.listener.connect(), HOST, headers)
        assert await peer.next_text() == "hello"
        await leave(peer)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        UPGRADE[:2],
        (*UPGRADE[:2], "Sec-WebSocket-Version: 12", UPGRADE[3]),
        UPGRADE[1:],
    ],
)
async def test_what_the_library_refuses_is_answered_and_over_at_once(headers, autojump_clock):
    async with serving() as server:
        stream = await server.listener.connect()
        answer = await ask(stream, http_head("GET", "/ws", HOST, headers))
        assert answer.status in (400, 426)
        assert await receive(stream) == b""
        await stream.aclose()
        assert trio.current_time() == 0  # the library would wait for the end of the handshake's time
        await still_serves(server)
    assert server.counters.refused == {400: 1}
    assert server.counters.listen.crashed == 0


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: "])
async def test_the_handshake_must_be_there_in_time(sent, autojump_clock):
    async with serving() as server:
        stream = await server.listener.connect()
        await stream.send_all(sent)
        assert await receive(stream) == b""
        assert trio.current_time() == pytest.approx(5.0)
    assert server.counters.refused == {408: 1}


async def test_leaving_before_the_handshake_is_nobodys_fault():
    async with serving() as server:
        stream = await server.listener.connect()
        await stream.send_all(b"GET /ws")
        await stream.aclose()
        await still_serves(server)
    assert server.counters.refused == {}
    assert (server.counters.listen.lost, server.counters.listen.crashed) == (1, 0)


async def test_over_the_cap_the_upgrade_is_refused_with_503():
    async with serving(endpoint(listen=ListenLimits(connections_max=1, reserve=1))) as server:
        peer = await connect(server)
        stream = await server.listener.connect()
        answer = await ask(stream, http_head("GET", "/ws", HOST, UPGRADE))
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "OVERLOADED", "1")
        await stream.aclose()
        await leave(peer)
        await wait_all_tasks_blocked()
        await still_serves(server)


# --- frames out ------------------------------------------------------------------------------------------------------


async def test_one_write_in_flight_then_refused_and_nobody_else_is_late(autojump_clock):
    async with serving(endpoint(MemoryListener(lockstep=True))) as server:
        slow, quick = await connect(server), await connect(server)
        slow_sink, quick_sink = (client_of(server, n).sink for n in (0, 1))
        assert slow_sink.push(text_frame("a" * 200))
        assert not slow_sink.push(text_frame("b"))
        for n in range(3):
            assert quick_sink.push(text_frame(f"{n}"))
            assert await quick.next_text() == f"{n}"
            await wait_all_tasks_blocked()
        assert not slow_sink.push(text_frame("c"))
        assert await slow.next_text() == "a" * 200
        await wait_all_tasks_blocked()
        assert slow_sink.push(text_frame("d"))
        assert await slow.next_text() == "d"
        assert server.counters.pushes_refused == 2
        for peer in (slow, quick):
            await leave(peer)


async def test_frames_arrive_whole_and_once_over_a_real_socket_that_lags():
    """Far more than the kernel holds, with a control frame asked for in the middle of every torn one."""
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    server = endpoint(listener, loopback_rules(port, 8145, token="t"))
    async with serving(server):
        client = await trio.open_tcp_stream("127.0.0.1", port)
        # Small buffers, or a frame would never be torn.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        peer = await upgrade(client, f"127.0.0.1:{port}")
        assert await peer.next_text() == "hello"
        sink = client_of(server).sink
        for round_ in range(8):
            taken: list[str] = []
            while sink.push(text_frame(text := f"{round_}.{len(taken)}:" + "x" * 40_000)):
                taken.append(text)
            await peer.send(peer.ping(b"mid"))
            await wait_all_tasks_blocked()  # the pong stands behind the torn frame now
            for text in taken:
                assert await peer.frame() == (Opcode.TEXT, text)
            assert await peer.frame() == (Opcode.PONG, b"mid")
            await wait_all_tasks_blocked()
        assert server.counters.pushes_refused == 8
        await leave(peer)


def push_stream() -> tuple[PushStream, Stream]:
    ours, theirs = memory_stream_pair()
    return PushStream(DeadlineStream(ours, 5.0, ListenCounters()), b""), theirs


PONG = b"\x8a\x00"


@pytest.mark.parametrize("then", ["pong", "close"])
async def test_what_was_taken_goes_out_before_anything_else(then, nursery):
    """Nothing may land inside a frame of which a part is out, also when its writer comes before the flusher."""
    push, theirs = push_stream()
    push.open(nursery)
    frame = text_frame("x" * 300)
    assert push.push(frame)
    await (push.send_all(PONG) if then == "pong" else push.close(4008, "slow"))
    await wait_all_tasks_blocked()
    after = PONG if then == "pong" else b"\x88\x06\x0f\xa8slow"
    assert await receive(theirs) == frame + after


async def test_no_frame_lands_inside_a_control_frame(nursery):
    ours, theirs = lockstep_stream_pair()
    push = PushStream(DeadlineStream(ours, 5.0, ListenCounters()), b"")
    push.open(nursery)
    nursery.start_soon(push.send_all, PONG)
    await wait_all_tasks_blocked()
    assert not push.push(text_frame("x"))  # the pong is not through yet
    assert await receive(theirs) == PONG
    await wait_all_tasks_blocked()
    assert push.push(text_frame("x"))
    assert await receive(theirs) == text_frame("x")


async def test_nothing_follows_a_close_frame(nursery):
    push, theirs = push_stream()
    assert not push.push(text_frame("before the handshake"))
    push.open(nursery)
    await push.close(1001, "")
    await push.close(4008, "only one")
    with pytest.raises(trio.ClosedResourceError):
        await push.send_all(PONG)
    assert not push.push(text_frame("late"))
    assert await receive(theirs) == b"\x88\x02\x03\xe9"
    assert push.close_code == 1001


async def test_nothing_is_pushed_after_the_end():
    async with serving() as server:
        peer = await connect(server)
        sink = client_of(server).sink
        await leave(peer)
        await wait_all_tasks_blocked()
        assert not sink.push(text_frame("late"))
        sink.close(4008, "late")
    assert server.counters.closed == {1000: 1}
    assert client_of(server).detached == 1


# --- messages in -----------------------------------------------------------------------------------------------------


async def test_messages_up_to_the_cap_are_received_whole():
    async with serving() as server:
        peer = await connect(server)
        await peer.send_text("x" * MESSAGE_MAX)
        await wait_all_tasks_blocked()
        assert client_of(server).received == [b"x" * MESSAGE_MAX]
        await leave(peer)


@pytest.mark.parametrize("text", ["x" * (MESSAGE_MAX + 1), "é" * (MESSAGE_MAX // 2 + 1), "x" * 10 * MESSAGE_MAX])
async def test_a_message_over_the_cap_closes_with_1009(text, autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        await peer.send_text(text)
        code, _ = await peer.closed_with()
        assert code == 1009
        assert client_of(server).received == []
        await still_serves(server)
    assert server.counters.closed == {1009: 1, 1000: 1}


async def test_a_silent_peer_after_1009_is_let_go(autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        await peer.send_text("x" * (MESSAGE_MAX + 1))
        assert (await peer.closed_with())[0] == 1009
        began = trio.current_time()
        await trio.sleep(2.1)
        assert server.counters.listen.active == 0
        assert trio.current_time() - began == pytest.approx(2.1)


async def test_100_messages_in_a_second_and_no_more(autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        for _ in range(3):
            for n in range(100):
                await peer.send_text(f"{n}")
            await wait_all_tasks_blocked()
            await trio.sleep(1.0)
        assert len(client_of(server).received) == 300
        for n in range(101):
            await peer.send_text(f"{n}")
        assert await peer.closed_with() == (1008, "more than 100 messages per second")
        assert len(client_of(server).received) == 400
        await still_serves(server)


async def test_pings_count_as_messages(autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        for _ in range(50):
            await peer.send_text("x")
            await peer.send(peer.ping(b"p"))
        await wait_all_tasks_blocked()
        assert server.counters.messages_in == 100
        await peer.send(peer.ping(b"p"))
        assert (await peer.closed_with())[0] == 1008


async def test_binary_messages_close_with_1003():
    async with serving() as server:
        peer = await connect(server)
        await peer.send(peer.binary(b"{}"))
        assert await peer.closed_with() == (1003, "text messages only")
        assert client_of(server).received == []
        await peer.stream.aclose()


FRAMES = [
    WebSocketPeer(None).text("{}"),  # type: ignore[arg-type]
    WebSocketPeer(None).text("x" * (MESSAGE_MAX + 1)),  # type: ignore[arg-type]
    WebSocketPeer(None).binary(b"x"),  # type: ignore[arg-type]
    WebSocketPeer(None).ping(b"p"),  # type: ignore[arg-type]
    WebSocketPeer(None).pong(b"p"),  # type: ignore[arg-type]
    WebSocketPeer(None).close(1000),  # type: ignore[arg-type]
    b"\x88\x80abcd",  # close without a code
    b"\x01\x81\x00\x00\x00\x00{",  # a text that goes on
    b"\x80\x81\x00\x00\x00\x00}",  # its end, or an end of nothing
]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (b"\x83\x80abcd", 1002),  # an opcode nobody knows
        (b"\xc1\x80abcd", 1002),  # compressed, though nobody agreed to
        (b"\x89\xfe\xff\xffabcd", 1002),  # a ping too long
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # not UTF-8
    ],
)
async def test_bytes_that_are_no_frames_close_with_their_code(data, code, autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        await peer.send(data)
        assert await peer.closed_with() == (code, "not a valid WebSocket frame")
        await still_serves(server)
    assert server.counters.listen.crashed == 0


@given(st.lists(st.sampled_from(FRAMES) | st.binary(max_size=12), max_size=12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_a_connection_or_keep_it(pieces, at_once):
    """Whatever follows the handshake: no exception reaches the lid, and no connection outlives its time-outs."""

    async def main() -> None:
        async with serving() as server:
            peer = await connect(server)
            try:
                for piece in [b"".join(pieces)] if at_once else pieces:
                    await peer.stream.send_all(piece)
                    await wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass  # closed on us already
            await read_to_end(peer.stream)
            await trio.sleep(FrameLimits().close_wait_s + 0.1)
            assert server.counters.listen.active == server.counters.active == 0
            assert client_of(server).detached == 1
            await still_serves(server)
            assert server.counters.listen.crashed == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_the_hub_closes_a_slow_client_with_4008():
    async with serving() as server:
        peer = await connect(server)
        client_of(server).sink.close(4008, "slow")
        client_of(server).sink.close(1000, "only the first counts")
        assert not client_of(server).sink.push(text_frame("late"))
        assert await peer.closed_with() == (4008, "slow")
        await peer.stream.aclose()
    assert server.counters.closed == {4008: 1}
    assert client_of(server).detached == 1


async def test_a_close_that_cannot_be_said_becomes_a_reset(autojump_clock):
    async with serving(endpoint(MemoryListener(lockstep=True))) as server:
        peer = await connect(server)
        sink = client_of(server).sink
        assert sink.push(text_frame("unread"))
        await wait_all_tasks_blocked()
        sink.close(4008, "slow")
        began = trio.current_time()
        await trio.sleep(1.1)
        assert server.counters.listen.active == 0
        assert trio.current_time() - began == pytest.approx(1.1)
        assert Opcode.CLOSE not in {(await peer.frame())[0] for _ in range(1)}
        assert await peer.closed_with() == (1006, "")
        await still_serves(server)
    assert server.counters.closed == {1006: 1, 1000: 1}


async def test_a_close_waits_for_the_frame_before_it(autojump_clock):
    async with serving(endpoint(MemoryListener(lockstep=True))) as server:
        peer = await connect(server)
        sink = client_of(server).sink
        assert sink.push(text_frame("before"))
        sink.close(4008, "slow")
        await trio.sleep(0.5)
        assert await peer.next_text() == "before"
        assert await peer.closed_with() == (4008, "slow")
        await peer.stream.aclose()


async def test_a_stalled_write_resets_and_nobody_else_notices(autojump_clock):
    server = endpoint(MemoryListener(lockstep=True), ping_interval_s=1000.0)
    async with serving(server):
        stalled, other = await connect(server), await connect(server)
        assert client_of(server, 0).sink.push(text_frame("unread"))
        for n in range(6):
            await trio.sleep(1.0)
            assert client_of(server, 1).sink.push(text_frame(f"{n}"))
            assert await other.next_text() == f"{n}"
        assert client_of(server, 0).detached == 1
        assert server.counters.listen.write_timeouts == 1
        assert server.counters.closed == {1006: 1}
        assert (await stalled.frame())[1] == "unread"
        assert await stalled.closed_with() == (1006, "")
        await leave(other)


async def test_a_peer_that_answers_no_ping_is_closed(autojump_clock):
    async with serving() as server:
        silent, lively = await connect(server), await connect(server)
        assert await silent.closed_with() == (1011, "no answer to a ping")
        assert trio.current_time() == pytest.approx(5.0 + 10.0)
        assert server.counters.pong_timeouts == 2  # nobody answered for the other one either
        assert (await lively.closed_with())[0] == 1011


async def test_a_peer_that_answers_pings_stays(autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        for _ in range(10):
            opcode, payload = await peer.frame()
            assert opcode is Opcode.PING
            await peer.send(peer.pong(payload))
        assert trio.current_time() == pytest.approx(50.0)
        assert server.counters.active == 1
        await leave(peer)


async def test_shutdown_says_1001_to_all(autojump_clock):
    server = endpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        peers = [await connect(server) for _ in range(3)]
        server.stop_accepting()
        for peer in peers:
            assert await peer.closed_with() == (1001, "shutting down")
            await peer.send(peer.close(1001))
            assert await receive(peer.stream) == b""
            await peer.stream.aclose()
    assert server.counters.closed == {1001: 3}
    assert server.listener.closed
    assert trio.current_time() == 0


async def test_who_is_in_the_handshake_at_shutdown_gets_1001_too():
    server = endpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        stream = await server.listener.connect()
        await stream.send_all(b"GET /ws HTTP/1.1\r\n")
        await wait_all_tasks_blocked()
        server.stop_accepting()
        await wait_all_tasks_blocked()
        await stream.send_all(http_head("GET", "/ws", HOST, UPGRADE).partition(b"\r\n")[2])
        answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"\x88\x0f\x03\xe9shutting down" in answer
        await stream.aclose()
    assert server.counters.closed == {1001: 1}


async def test_shutdown_waits_for_nobody_for_long(autojump_clock):
    server = endpoint(MemoryListener(lockstep=True))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        for _ in range(3):
            peer = await connect(server)
            assert client_of(server).sink.push(text_frame("unread"))
        server.stop_accepting()
    assert trio.current_time() == pytest.approx(1.0)  # close_write_s: the frame before never got out
    assert server.counters.closed == {1006: 3}
    assert not peer.over


async def test_cancelling_resets_at_once(autojump_clock):
    server = endpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        peer = await connect(server)
        nursery.cancel_scope.cancel()
    assert await peer.closed_with() == (1006, "")
    assert client_of(server).detached == 1
    assert server.counters.active == 0


async def test_a_peer_that_vanishes_is_noticed():
    async with serving() as server:
        peer = await connect(server)
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert client_of(server).detached == 1
        assert server.counters.closed == {1006: 1}
        assert server.counters.listen.crashed == 0


async def test_a_peer_that_resets_is_no_failure_of_ours(caplog):
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    server = endpoint(listener, loopback_rules(port, 8145, token="t"))
    async with serving(server):
        for moments in range(0, 60, 3):  # at many places of the server's way through the handshake
            client = await trio.open_tcp_stream("127.0.0.1", port)
            await client.send_all(http_head("GET", "/ws", f"127.0.0.1:{port}", UPGRADE))
            for _ in range(moments):
                await trio.lowlevel.checkpoint()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            await client.aclose()
    assert server.counters.listen.crashed == 0
    assert server.counters.active == 0
    assert all(client.detached == 1 for client in server.source.clients)  # type: ignore[attr-defined]
    assert not caplog.records


@pytest.mark.parametrize("where", ["connect", "receive"])
async def test_a_failure_of_ours_closes_with_1011_and_ends_this_connection_only(where, caplog, autojump_clock):
    def fail(*args: Any) -> None:
        raise RuntimeError("secret")

    async with serving() as server:
        if where == "connect":
            server.source.on_connect = fail  # type: ignore[attr-defined]
            peer = await upgrade(await server.listener.connect(), HOST)
        else:
            peer = await connect(server)
            client_of(server).on_message = fail
            await peer.send_text("x")
        assert await peer.closed_with() == (1011, "internal error")
        server.source.on_connect = None  # type: ignore[attr-defined]
        await still_serves(server)
    assert server.counters.listen.crashed == 1
    assert server.counters.closed == {1011: 1, 1000: 1}
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_ping_after_the_close_frame_is_nothing_special(autojump_clock):
    """trio-websocket#184: such a ping raises in the library's reader."""
    async with serving() as server:
        peer = await connect(server)
        await peer.send(peer.text("x" * (MESSAGE_MAX + 1)) + peer.ping(b"late"))
        assert (await peer.closed_with())[0] == 1009
        other = await connect(server)
        client_of(server).sink.close(4008, "slow")
        await other.send(other.ping(b"late"))
        assert (await other.closed_with())[0] == 4008
        await still_serves(server)
    assert server.counters.listen.crashed == 0


# --- trio-websocket as it comes --------------------------------------------------------------------------------------


async def test_the_server_as_it_comes_dies_of_one_header():
    async def handler(request: Any) -> None:
        await request.accept()

    listener = MemoryListener()
    server = WebSocketServer(handler, [listener])  # type: ignore[list-item]
    with pytest.RaisesGroup(UnicodeDecodeError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            stream = await listener.connect()
            await stream.send_all(http_head("GET", "/ws", HOST, (*UPGRADE, "Sec-WebSocket-Protocol: \xff")))


async def test_a_late_ping_as_it_comes_raises_in_the_reader():
    ours, theirs = memory_stream_pair()
    with pytest.RaisesGroup(LocalProtocolError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await theirs.send_all(http_head("GET", "/ws", HOST, UPGRADE))
            ws = await (await wrap_server_stream(nursery, ours)).accept()
            nursery.start_soon(ws.aclose)
            await wait_all_tasks_blocked()
            await theirs.send_all(WebSocketPeer(theirs).ping(b"late"))


async def test_as_it_comes_1009_leaves_the_stream_open_for_ever(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await theirs.send_all(http_head("GET", "/ws", HOST, UPGRADE))
        ws = await (await wrap_server_stream(nursery, ours, max_message_size=10)).accept()
        await theirs.send_all(WebSocketPeer(theirs).text("x" * 11))
        with pytest.raises(ConnectionClosed):
            await ws.get_message()
        await ws.aclose()
        with trio.move_on_after(1e6) as patience:
            await read_to_end(theirs)
        assert patience.cancelled_caught
        nursery.cancel_scope.cancel()
