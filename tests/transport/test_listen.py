from __future__ import annotations

import errno
import logging
import socket

import attrs
import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from engine.domain.errors import AddressInUse, ConfigError
from tests.fakes.network import MemoryListener, read_to_end, receive
from transport.listen import (
    ACCEPT_PAUSE_S,
    WRITE_PIECE_BYTES,
    Acceptor,
    DeadlineStream,
    ListenCounters,
    ListenLimits,
    bound_port,
    describe,
    open_listener,
)


async def echo(stream: DeadlineStream, overflow: bool) -> None:
    while data := await stream.receive_some():
        await stream.send_all(b"over " + data if overflow else data)


def acceptor(listener, handler=echo, **limits) -> Acceptor:
    return Acceptor(listener, handler, ListenLimits(**limits), ListenCounters())


async def echoes(client, word=b"hi") -> bytes:
    await client.send_all(word)
    return await receive(client)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_listens_on_an_address_without_delay_of_small_writes(host, nursery):
    listener = await open_listener(host, 0)
    assert bound_port(listener) > 0
    seen: list[int] = []

    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        assert stream.socket is not None
        seen.append(stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await echo(stream, overflow)

    server = acceptor(listener, handler)
    await nursery.start(server.run)
    client = await trio.open_tcp_stream(host.strip("[]"), bound_port(listener))
    assert await echoes(client) == b"hi"
    assert seen == [1]
    await client.aclose()
    server.stop_accepting()


async def test_a_port_in_use_is_named():
    async with await open_listener("127.0.0.1", 0) as first:
        port = bound_port(first)
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port} is in use"):
            await open_listener("127.0.0.1", port)
        # The failed attempt holds nothing: the address is free again as soon as its owner goes.
    async with await open_listener("127.0.0.1", port) as second:
        assert bound_port(second) == port


@pytest.mark.parametrize("host", ["localhost", "", "example.org", "192.0.2.1"])
async def test_a_name_or_foreign_address_is_refused(host):
    with pytest.raises(ConfigError):
        await open_listener(host, 0)


async def crash(depth: int) -> None:
    """A ValueError inside `depth` nurseries, each adding its own group."""
    if depth == 0:
        raise ValueError("secret prompt")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(crash, depth - 1)


@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_an_exception_ends_its_own_connection_only(depth, nursery, caplog):
    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        if await stream.receive_some() == b"crash":
            await crash(depth)
        await stream.send_all(b"fine")

    listener = MemoryListener()
    server = acceptor(listener, handler)
    await nursery.start(server.run)
    good, bad = await listener.connect(), await listener.connect()
    with caplog.at_level(logging.DEBUG):
        await bad.send_all(b"crash")
        assert await read_to_end(bad) == b""
    assert await echoes(good) == b"fine"
    assert await echoes(await listener.connect()) == b"fine"
    await wait_all_tasks_blocked()
    assert attrs.asdict(server.counters) == attrs.asdict(ListenCounters(accepted=3, crashed=1, bytes_out=8))
    (record,) = caplog.records
    assert "ValueError at test_listen.py:" in record.getMessage()
    assert "secret" not in caplog.text
    server.stop_accepting()


async def test_a_peer_that_is_gone_is_counted_and_not_logged(nursery, caplog):
    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            await stream.receive_some()
            await stream.send_all(b"x")

    listener = MemoryListener()
    server = acceptor(listener, handler)
    await nursery.start(server.run)
    await (await listener.connect()).aclose()
    await wait_all_tasks_blocked()
    assert (server.counters.lost, server.counters.crashed) == (1, 0)
    assert not caplog.records
    server.stop_accepting()


async def test_the_lid_lets_cancellation_and_interrupts_through():
    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await stream.receive_some()
            raise BaseExceptionGroup("mixed", [ValueError("lidded"), KeyboardInterrupt()])

    listener = MemoryListener()
    server = acceptor(listener, handler)
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            client = await listener.connect()
            await client.send_all(b"x")
    assert server.counters.crashed == 1


async def test_the_cap_hands_on_the_reserve_flagged_and_closes_the_rest(nursery):
    listener = MemoryListener()
    server = acceptor(listener, connections_max=2, reserve=1)
    await nursery.start(server.run)
    clients = [await listener.connect() for _ in range(5)]
    assert [await echoes(client) for client in clients[:3]] == [b"hi", b"hi", b"over hi"]
    assert [await read_to_end(client) for client in clients[3:]] == [b"", b""]
    await clients[0].aclose()
    await wait_all_tasks_blocked()
    assert await echoes(await listener.connect()) == b"over hi"  # one of the two is taken by the former overflow
    c = server.counters
    assert (c.accepted, c.active, c.overflowed, c.refused) == (6, 3, 2, 2)
    server.stop_accepting()
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_running_out_of_descriptors_pauses_and_goes_on(code, nursery, autojump_clock):
    listener = MemoryListener(errors=[OSError(code, "full"), OSError(code, "full")])
    server = acceptor(listener)
    began = trio.current_time()
    await nursery.start(server.run)
    client = await listener.connect()
    assert await echoes(client) == b"hi"
    assert trio.current_time() - began == pytest.approx(2 * ACCEPT_PAUSE_S)
    assert server.counters.accept_errors == 2
    server.stop_accepting()
    await client.aclose()


async def test_a_broken_listener_is_not_hidden():
    server = acceptor(MemoryListener(errors=[OSError(errno.EBADF, "gone")]))
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        await server.run()


async def test_stopping_closes_the_listener_first_and_lets_connections_end(autojump_clock):
    listener = MemoryListener()
    server = acceptor(listener, drain_s=3.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        client = await listener.connect()
        assert await echoes(client) == b"hi"
        server.stop_accepting()
        await wait_all_tasks_blocked()
        assert listener.closed
        await trio.sleep(2.0)
        assert await echoes(client) == b"hi"  # still served
        began = trio.current_time()
        await client.aclose()
    assert trio.current_time() == began  # nobody waits longer than needed
    assert server.counters.active == 0


async def test_draining_has_an_end(autojump_clock):
    listener = MemoryListener()
    server = acceptor(listener, drain_s=3.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        client = await listener.connect()
        assert await echoes(client) == b"hi"
        began = trio.current_time()
        server.stop_accepting()
    assert trio.current_time() - began == pytest.approx(3.0)
    assert await read_to_end(client) == b""


@pytest.mark.parametrize("end", ["drain", "cancel"])
async def test_a_shielded_write_to_a_peer_that_does_not_read_holds_up_nothing(end, autojump_clock):
    """hypercorn shields its writes, so cancelling alone would wait out the whole write deadline."""

    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        with trio.CancelScope(shield=True):
            await stream.send_all(b"x" * 10 * WRITE_PIECE_BYTES)

    listener = MemoryListener(lockstep=True)
    server = acceptor(listener, handler, write_timeout_s=1000.0, drain_s=1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await listener.connect()
        await wait_all_tasks_blocked()
        began = trio.current_time()
        if end == "drain":
            server.stop_accepting()
        else:
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(1.0 if end == "drain" else 0.0)
    assert server.counters.active == 0


async def test_a_write_that_stands_still_resets_the_connection(autojump_clock):
    inner, peer = lockstep_stream_pair()
    counters = ListenCounters()
    stream = DeadlineStream(inner, 5.0, counters)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    assert trio.current_time() == pytest.approx(5.0)
    assert counters.write_timeouts == 1
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"more")
    assert await read_to_end(peer) == b"x"  # it ended, and nothing followed


async def test_a_slow_reader_is_not_a_standing_one(autojump_clock, nursery):
    inner, peer = lockstep_stream_pair()
    counters = ListenCounters()
    stream = DeadlineStream(inner, 5.0, counters)
    data = bytes(range(256)) * (4 * WRITE_PIECE_BYTES // 256) + b"tail"

    nursery.start_soon(stream.send_all, data)
    got = b""
    while len(got) < len(data):
        await trio.sleep(4.0)  # for each piece: twenty seconds in all
        got += bytes(await peer.receive_some(WRITE_PIECE_BYTES))
    assert got == data
    await wait_all_tasks_blocked()
    assert counters.bytes_out == len(data)
    assert counters.write_timeouts == 0


async def test_a_cancelled_write_resets_so_that_nothing_follows_half_a_message(autojump_clock):
    inner, peer = lockstep_stream_pair()
    stream = DeadlineStream(inner, 5.0, ListenCounters())
    with trio.move_on_after(1) as scope:
        await stream.send_all(b"x")
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"y")
    assert await read_to_end(peer) == b"x"


async def test_a_reset_reaches_a_real_peer_as_one_and_wakes_the_writer(nursery):
    listener = await open_listener("127.0.0.1", 0)
    woken = trio.Event()

    async def write_for_ever(stream: DeadlineStream) -> None:
        try:
            while True:
                await stream.send_all(b"x" * WRITE_PIECE_BYTES)
        except trio.ClosedResourceError:
            woken.set()

    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(write_for_ever, stream)
            while stream.send_nowait(b"x" * WRITE_PIECE_BYTES):
                pass  # until the peer's buffers are full
            await wait_all_tasks_blocked()
            await stream.reset()

    async def read(client: trio.SocketStream) -> None:
        while await client.receive_some():
            pass  # what had arrived before

    server = acceptor(listener, handler, write_timeout_s=600.0)
    await nursery.start(server.run)
    async with await trio.open_tcp_stream("127.0.0.1", bound_port(listener)) as client:
        await woken.wait()
        with pytest.raises(trio.BrokenResourceError, match="Connection reset"):
            await read(client)
    server.stop_accepting()


async def test_finish_lets_the_last_answer_through_unread_input():
    """Closing with unread bytes in the buffer would be a reset: the client would lose the answer."""
    listener = await open_listener("127.0.0.1", 0)

    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"too large")
        await stream.finish(60.0)

    server = acceptor(listener, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        client = await trio.open_tcp_stream("127.0.0.1", bound_port(listener))
        await client.send_all(b"x" * 5_000_000)
        assert await receive(client) == b"too large"
        assert await receive(client) == b""
        await client.aclose()
        server.stop_accepting()


async def test_finish_waits_for_a_silent_peer_only_so_long(autojump_clock):
    inner, peer = memory_stream_pair()
    stream = DeadlineStream(inner, 5.0, ListenCounters())
    await stream.finish(2.0)
    assert trio.current_time() == pytest.approx(2.0)
    assert await receive(peer) == b""


async def test_send_nowait_writes_what_fits_and_never_waits(nursery):
    listener = await open_listener("127.0.0.1", 0)
    sent = 0
    full = trio.Event()
    counters = ListenCounters()

    async def handler(stream: DeadlineStream, overflow: bool) -> None:
        nonlocal sent
        while n := stream.send_nowait(b"x" * WRITE_PIECE_BYTES):
            sent += n
        full.set()
        await stream.reset()
        with pytest.raises(trio.ClosedResourceError):
            stream.send_nowait(b"x")

    server = Acceptor(listener, handler, ListenLimits(), counters)
    await nursery.start(server.run)
    client = await trio.open_tcp_stream("127.0.0.1", bound_port(listener))
    await full.wait()
    assert sent == counters.bytes_out > 0
    server.stop_accepting()
    await client.aclose()


async def test_an_empty_write_is_one(autojump_clock):
    inner, _peer = memory_stream_pair()
    stream = DeadlineStream(inner, 5.0, ListenCounters())
    await stream.send_all(b"")
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"")


async def test_send_nowait_leaves_a_stream_without_a_socket_to_send_all():
    inner, _peer = memory_stream_pair()
    assert DeadlineStream(inner, 5.0, ListenCounters()).send_nowait(b"frame") == 0


def test_describe_names_types_and_places_and_no_content():
    group = ExceptionGroup("prompt", [ValueError("prompt"), ExceptionGroup("answer", [KeyError("secret")])])
    assert describe(group) == "KeyError, ValueError"
