"""The frames endpoint: frames out."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

from policies.access import loopback_rules
from tests.fakes.endpoint import client_of, connect, endpoint, leave, serving
from tests.fakes.network import MemoryListener, Stream, receive, text_frame, upgrade
from transport.listen import DeadlineStream, ListenCounters, bound_port, open_listener
from transport.push_stream import PushStream


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
