"""Connections that are kept for the next request: which, how many, how long, for whom; and what a dead one does. Real
sockets on loopback, a server that counts who connects."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import attrs
import h11
import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from engine.domain.errors import RuntimeUnavailable
from policies.egress import Meter, Permit, Purpose
from tests.transport.test_outbound import certificate  # noqa: F401  (a fixture)
from tests.transport.test_plain_http import OK, Wire
from transport import outbound
from transport.connections import ConnectionPool
from transport.runtimes.plain_http import Failure, HttpFailure, PlainTransport
from transport.runtimes.upstream import Upstream

SAID = b'{"n": 1}'
WHOLE = OK + b"content-length: %d\r\n\r\n" % len(SAID) + SAID
SOON_S = 120.0  # how long a test waits for what must come: only something stuck runs into it
ELSEWHERE = Permit(Purpose.BROKER, "api.example.com", 443)


@attrs.define(eq=False)
class Server:
    """Answers each request with what `answer` makes of the number of its connection and of the request on it."""

    answer: Callable[[int, int], bytes] = lambda _connection, _request: WHOLE
    last_request: int | None = None  # on each connection; then the server closes it
    port: int = 0
    heads: list[tuple[int, bytes]] = attrs.field(factory=list)  # number of the connection, and what came on it
    open: int = 0
    connections: int = 0
    streams: list[trio.abc.Stream] = attrs.field(factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        number, requests = self.connections, 0
        self.connections += 1
        self.open += 1
        self.streams.append(stream)
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with stream:
                    parser = h11.Connection(h11.SERVER)
                    while requests != self.last_request and (head := await self._request(stream, parser)):
                        self.heads.append((number, head))
                        await stream.send_all(self.answer(number, requests))
                        requests, parser = requests + 1, h11.Connection(h11.SERVER)
        finally:
            self.open -= 1

    async def _request(self, stream: trio.abc.Stream, parser: h11.Connection) -> bytes:
        head = b""
        while True:
            data = bytes(await stream.receive_some())
            if not data:
                return b""
            head += data
            parser.receive_data(data)
            while (event := parser.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.EndOfMessage):
                    return head


@asynccontextmanager
async def serving(server: Server, context: ssl.SSLContext | None = None, **more) -> AsyncIterator[ConnectionPool]:
    """A pool of connections to it, running."""
    async with trio.open_nursery() as nursery:
        if context is None:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            server.port, host = listener.socket.getsockname()[1], "127.0.0.1"
        else:
            (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
            server.port, host = listener.transport_listener.socket.getsockname()[1], "localhost"
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        pool = ConnectionPool("x", host, server.port, tls=context is not None, **more)
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
    assert server.open == pool.figures.idle == 0


def upstream(pool: ConnectionPool, **headers: str) -> Upstream:
    scheme = "https" if pool.tls else "http"
    return Upstream("x", f"{scheme}://{pool.host}:{pool.port}", pool, headers)


async def ask(pool: ConnectionPool) -> bytes:
    return (await upstream(pool).ask("POST", "/v1/x", b"{}", timeout_s=SOON_S)).body


async def until(met: Callable[[], bool], between: Callable[[], Awaitable[None]] = wait_all_tasks_blocked) -> None:
    with trio.fail_after(SOON_S):
        while not met():
            await between()
            await trio.sleep(0.001)


async def test_what_was_read_to_its_end_is_kept_for_the_next_request():
    server = Server()
    async with serving(server) as pool:
        assert [await ask(pool) for _ in range(3)] == [SAID] * 3
        assert [number for number, _ in server.heads] == [0, 0, 0]
        assert attrs.astuple(pool.figures) == (1, 1, 2, 0)  # idle, opened, reused, let go of
        assert all(b"connection" not in head.lower() for _, head in server.heads)


async def test_an_answer_in_chunks_is_kept_too_and_a_new_one_begins_anew():
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    async with serving(Server(lambda *_: chunked)) as pool:
        assert [await ask(pool), await ask(pool)] == [b"onetwo"] * 2
        assert (pool.figures.opened, pool.figures.reused) == (1, 1)


async def test_over_tls_the_handshake_is_made_once(certificate):  # noqa: F811
    context, trust = certificate
    server = Server()
    async with serving(server, context, trust=trust) as pool:
        assert [await ask(pool) for _ in range(3)] == [SAID] * 3
        assert (server.connections, pool.figures.opened) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(SAID) + SAID,
        b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n" % len(SAID) + SAID,
        WHOLE + b"HTTP/1.1 200 OK\r\n",  # more than was asked for
    ],
)
async def test_what_is_not_in_good_order_is_closed(answer):
    server = Server(lambda *_: answer)
    async with serving(server) as pool:
        assert [await ask(pool), await ask(pool)] == [SAID] * 2
        assert (pool.figures.opened, pool.figures.reused, pool.figures.idle) == (2, 0, 0)
        await until(lambda: server.open == 0)


async def test_leaving_an_answer_before_its_end_closes_its_connection():
    """This is how a server is told to stop."""
    server = Server(lambda *_: OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n")
    async with serving(server) as pool:
        async with upstream(pool).open_stream("POST", "/", head_timeout_s=SOON_S) as response:
            assert await anext(response) == b"one"
        await until(lambda: server.open == 0)
        assert (pool.figures.idle, pool.figures.let_go) == (0, 0)


async def test_one_that_the_server_closes_meanwhile_is_let_go_of_and_nobody_notices():
    server = Server(last_request=1)
    async with serving(server) as pool:
        for number in range(3):
            assert await ask(pool) == SAID
            await until(lambda number=number: pool.figures.let_go == number + 1)
        assert (server.connections, pool.figures.reused) == (3, 0)


async def test_what_comes_unasked_is_no_answer_to_the_next_request():
    stray = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    server = Server()
    async with serving(server) as pool:
        assert await ask(pool) == SAID
        await server.streams[0].send_all(stray)
        assert await ask(pool) == SAID  # whether or not anybody has looked at the first one since
        assert server.connections == 2
        await until(lambda: pool.figures.let_go == 1)


async def test_the_old_are_closed():
    server = Server()
    async with serving(server, idle_s=0.02) as pool:
        assert await ask(pool) == SAID
        await until(lambda: pool.figures.let_go == 1 and server.open == 0)
        assert await ask(pool) == SAID
        assert pool.figures.opened == 2


async def test_only_so_many_are_kept_and_only_so_many_are_in_use():
    server = Server()
    async with serving(server, idle_max=2, in_use_max=3) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(ask, pool)
        assert pool.figures.idle <= 2
        assert pool.free.value == 3
        assert len(server.heads) == 12
        await until(lambda: server.open == pool.figures.idle)


async def test_one_more_than_may_be_in_use_waits_for_its_turn():
    async with serving(Server(), in_use_max=1) as pool:
        async with upstream(pool).open_stream("GET", "/", head_timeout_s=SOON_S), trio.open_nursery() as nursery:
            done = trio.Event()

            async def second() -> None:
                await ask(pool)
                done.set()

            nursery.start_soon(second)
            await wait_all_tasks_blocked()
            assert not done.is_set()
            nursery.cancel_scope.cancel()
        assert await ask(pool) == SAID


async def test_what_is_let_go_of_is_closed_at_once():
    server = Server()
    async with serving(server) as pool:
        await ask(pool)
        pool.close_idle()
        await until(lambda: server.open == 0)
        assert (pool.figures.idle, pool.figures.let_go) == (0, 1)
        assert await ask(pool) == SAID


async def test_a_pool_that_does_not_run_keeps_nothing():
    server = Server()
    async with serving(server) as pool:
        idle = ConnectionPool("x", pool.host, pool.port, tls=False)
        assert [await ask(idle), await ask(idle)] == [SAID] * 2
        assert attrs.astuple(idle.figures) == (0, 2, 0, 0)


# ── a dead one ──


@attrs.define(eq=False)
class OneKept:
    """A connection that was kept, and where it went."""

    wire: Wire | None
    free: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(1, max_value=1))
    kept: list[trio.abc.Stream] = attrs.field(factory=list)

    def take(self):
        wire, self.wire = self.wire, None
        return wire

    def keep(self, stream) -> bool:
        self.kept.append(stream)
        return True


async def exchange(kept: Wire, fresh: Wire, body: bytes = b"{}") -> tuple[OneKept, bytes]:
    connections = OneKept(kept)
    transport = PlainTransport(fresh.connect, kept=connections)
    response = await transport.send("POST", "/", [(b"host", b"x")], body, connect_s=2)
    read = b""
    while (data := await response.read()) is not None:
        read += data
    await response.aclose()
    assert connections.free.value == 1
    return connections, read


async def test_where_the_request_did_not_leave_another_connection_takes_it(autojump_clock):
    dead, fresh = Wire([], sends=[trio.BrokenResourceError()]), Wire([WHOLE])
    connections, read = await exchange(dead, fresh)
    assert read == SAID
    assert dead.closed
    assert not fresh.closed
    assert connections.kept == [fresh]
    assert fresh.written == dead.written


@pytest.mark.parametrize("end", [b"", trio.BrokenResourceError()])
async def test_a_request_that_left_whole_is_never_sent_twice(autojump_clock, end):
    dead, fresh = Wire([end]), Wire([WHOLE])
    with pytest.raises(HttpFailure) as caught:
        await exchange(dead, fresh)
    assert caught.value.failure is Failure.BROKEN  # the broker may make another call of it, and counts it
    assert dead.closed
    assert fresh.written == []


async def test_a_refusal_that_comes_before_all_was_read_is_the_answer(autojump_clock):
    refusing = Wire([WHOLE], sends=[trio.BrokenResourceError()])
    connections, read = await exchange(refusing, Wire([]))
    assert read == SAID
    assert refusing.closed  # half a request is still on its way there
    assert connections.kept == []


async def test_cancelled_while_it_is_used_again_nothing_stays_open(autojump_clock):
    dead, fresh = Wire([None]), Wire([WHOLE])
    connections = OneKept(dead)
    transport = PlainTransport(fresh.connect, kept=connections)
    with trio.move_on_after(1) as scope:
        await transport.send("POST", "/", [(b"host", b"x")], b"{}", connect_s=2)
    assert scope.cancelled_caught
    assert dead.closed
    assert connections.free.value == 1
    assert fresh.written == []


# ── for whom ──


async def test_connections_go_nowhere_else():
    async with serving(Server()) as pool:
        for url in (
            f"http://localhost:{pool.port}",
            f"http://127.0.0.1:{pool.port + 1}",
            f"https://127.0.0.1:{pool.port}",
        ):
            with pytest.raises(ValueError, match="elsewhere"):
                Upstream("x", url, pool)


async def test_without_the_permit_none_is_taken_and_none_is_opened():
    pool = ConnectionPool("openai", "api.example.com", 443)
    refused = outbound.COUNTERS.refused
    for permit in (None, Permit(Purpose.BROKER, "api.example.org", 443)):
        with pytest.raises(outbound.OutboundRefused):
            pool.under(permit).take()
        with pytest.raises(RuntimeUnavailable, match="outside this machine"):
            await Upstream("openai", "https://api.example.com", pool, permit=permit).ask("GET", "/", timeout_s=2)
    assert outbound.COUNTERS.refused == refused + 4
    assert pool.under(ELSEWHERE).take() is None
    assert pool.free.value == pool.in_use_max
    outbound.COUNTERS.refused = refused


async def test_what_is_written_counts_for_whoever_has_it_now():
    near, far = memory_stream_pair()
    first, second = attrs.evolve(ELSEWHERE, meter=Meter()), attrs.evolve(ELSEWHERE, meter=Meter())
    before = outbound.COUNTERS.bytes_out
    stream = outbound.CountedStream(near, first.meter)
    await stream.send_all(b"12345")
    outbound.charge(stream, second)
    await stream.send_all(b"123")
    assert (first.meter.bytes_out, second.meter.bytes_out) == (5, 3)
    assert outbound.COUNTERS.bytes_out == before + 8
    outbound.COUNTERS.bytes_out = before
    await far.aclose()
    await stream.aclose()
