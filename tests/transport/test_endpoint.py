"""The frames endpoint: the upgrade, and what clients say."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from trio_websocket import open_websocket_url

from actors.frame_history import Since
from policies.access import loopback_rules
from tests.fakes.endpoint import HOST, MESSAGE_MAX, client_of, connect, endpoint, leave, serving, still_serves
from tests.fakes.network import UPGRADE, WebSocketPeer, ask, http_head, read_to_end, receive, text_frame, upgrade
from transport.endpoint import FrameLimits
from transport.listen import ListenLimits, bound_port, open_listener

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
            assert client_of(server).since == Since("b", 1)
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
        (http_head("GET", "/ws?since=yesterday", HOST, UPGRADE), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws?since=", HOST, UPGRADE), 400, "VALIDATION_ERROR"),
        (http_head("HEAD", "/health", HOST), 404, "NOT_FOUND"),
        (http_head("GET", "/ws", HOST), 400, "VALIDATION_ERROR"),
        (http_head("POST", "/ws", HOST, UPGRADE), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, UPGRADE[:2]), 400, "VALIDATION_ERROR"),
        (http_head("GET", "/ws", HOST, UPGRADE[1:]), 400, "VALIDATION_ERROR"),
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
            assert answer.headers["x-request-id"]
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


@pytest.mark.parametrize("headers", [(*UPGRADE[:2], "Sec-WebSocket-Version: 12", UPGRADE[3])])
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


async def test_a_binary_message_is_refused_and_the_connection_stays(autojump_clock):
    async with serving() as server:
        peer = await connect(server)
        await peer.send(peer.binary(b'{"type":"ping"}'))
        await peer.send_text("and on")
        await wait_all_tasks_blocked()
        (error,) = client_of(server).refused
        assert error.code == "VALIDATION_ERROR"
        assert "binary" in error.message
        assert client_of(server).received == [b"and on"]
        assert server.counters.messages_in == 2
        await leave(peer)


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
