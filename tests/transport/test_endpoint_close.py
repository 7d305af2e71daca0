"""The frames endpoint: every way in which a connection ends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

from policies.access import loopback_rules
from tests.fakes.endpoint import HOST, MESSAGE_MAX, client_of, connect, endpoint, leave, serving, still_serves
from tests.fakes.network import UPGRADE, MemoryListener, http_head, read_to_end, receive, text_frame, upgrade
from transport.listen import RESET_ON_CLOSE, bound_port, open_listener


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
