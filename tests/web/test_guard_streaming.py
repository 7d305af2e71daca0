"""HTTP behind the guard: pieces of a streamed answer on their short way to the kernel, which may take only part."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from policies.access import loopback_rules
from tests.fakes.http_server import make_app, serving
from tests.fakes.network import ask, http_head, read_answer, read_to_end, receive
from transport import listen
from transport.listen import ListenLimits, bound_port, open_listener
from web.guard import SENDS_PER_TURN, HttpLimits, HttpServer

MORE_THAN_BUFFERS_BYTES = 16 * 1024 * 1024  # of sender and receiver together

Asgi = Callable[[dict[str, Any], Any, Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[None]]


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def piece(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def streaming(answer: Asgi, write_timeout_s: float = 5.0) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server on a real socket whose every answer is `answer`; and its port."""
    app = make_app()
    app.asgi_app = answer  # type: ignore[method-assign,assignment]
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    limits = HttpLimits(listen=ListenLimits(write_timeout_s=write_timeout_s))
    async with serving(app, listener, limits, loopback_rules(port, port, token="t")) as server:
        yield server, port


async def asking(port: int, method: str = "GET", version: str = "1.1", *headers: str) -> trio.SocketStream:
    client = await trio.open_tcp_stream("127.0.0.1", port)
    await client.send_all(http_head(method, "/", f"127.0.0.1:{port}", headers, version))
    return client


async def pass_time_until(over: trio.Event, clock: MockClock, seconds: float) -> None:
    """Let that much time pass, and again, until `over`: the kernel may take some more of a write that stood."""
    while not over.is_set():
        clock.jump(seconds)
        await wait_all_tasks_blocked()


async def whole_body(client: trio.SocketStream) -> bytes:
    """The body of a large response, up to its end or that of the connection; with its framing."""
    data = bytearray()
    while not data.endswith((b"0\r\n\r\n", b"last")) and (read := await receive(client)):
        data += read
    return bytes(data).partition(b"\r\n\r\n")[2]


@contextmanager
def kernel_that_takes(sizes: Sequence[int]) -> Iterator[None]:
    """Non-blocking writes take at most these many bytes, in turn; 0 is a full buffer. Writes that wait are the real
    ones."""
    turns = itertools.cycle(sizes)

    def write(fd: int, data: bytes | memoryview) -> int:
        size = next(turns)
        if size == 0:
            raise BlockingIOError
        return os.write(fd, memoryview(data)[:size])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listen, "os", SimpleNamespace(write=write, path=os.path))
        yield


def chunks_of(raw: bytes) -> tuple[bytes, list[bytes]]:
    """The head of a whole response, and its chunks as h11 sees them."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "test")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(raw)
    parser.receive_data(b"")
    chunks: list[bytes] = []
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            if event.chunk_start:
                chunks.append(b"")
            chunks[-1] += bytes(event.data)
    return raw.partition(b"\r\n\r\n")[0], chunks


SIZES = st.lists(st.integers(1, 20) | st.integers(1, 3 * listen.WRITE_PIECE_BYTES), max_size=8)
TAKES = st.lists(st.integers(0, 12) | st.integers(0, 100_000), min_size=1, max_size=8)


@given(SIZES, TAKES, st.booleans())
@settings(max_examples=120, deadline=None)
def test_torn_writes_keep_the_framing(sizes, takes, last_has_bytes):
    """Wherever the kernel stops in the middle of head, size line, data or line end: h11 reads the same pieces."""
    pieces = [bytes([97 + n % 26]) * size for n, size in enumerate(sizes)]
    last = b"last" if last_has_bytes else b""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for data in pieces:
            await send(piece(data))
        await send(piece(last, more=False))

    async def main() -> None:
        async with streaming(answer) as (server, port):
            client = await asking(port, "GET", "1.1", "Connection: close")
            raw = await read_to_end(client)
            expected = [*pieces, last] if last else pieces
            head, chunks = chunks_of(raw)
            assert chunks == expected
            assert raw == head + b"\r\n\r\n" + b"".join(map(chunk, expected)) + b"0\r\n\r\n"
            assert server.counters.listen.bytes_out == len(raw)
            await client.aclose()
        assert server.counters.crashed == server.counters.listen.crashed == 0

    with kernel_that_takes(takes):
        trio.run(main)


@pytest.mark.parametrize("takes", [[10**9], [0], [7], [3, 0, 10**9]])
async def test_a_connection_goes_on_after_every_framing(takes):
    """Chunks, a length, no body: h11 knows where each ends, also where it did not see all that went out."""
    answers = iter([(), ((b"content-length", b"6"),), (), ((b"content-length", b"6"),)])

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start(*next(answers)))
        for data in (b"one", b"two"):
            await send(piece(data))
        await send(piece(b"", more=False))

    with kernel_that_takes(takes):
        async with streaming(answer) as (server, port):
            client = await trio.open_tcp_stream("127.0.0.1", port)
            for method, framing in (("GET", "chunked"), ("GET", None), ("HEAD", "chunked"), ("GET", None)):
                got = await ask(client, http_head(method, "/", f"127.0.0.1:{port}"), method)
                assert got.headers.get("transfer-encoding") == framing
                assert got.body == (b"" if method == "HEAD" else b"onetwo")
            assert server.counters.listen.accepted == 1
            await client.aclose()


async def test_an_answer_to_http_1_0_has_no_chunks_and_ends_with_the_connection():
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for data in (b"one", b"", b"two"):
            await send(piece(data))
        await send(piece(b"", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port, "GET", "1.0")
        assert (await read_to_end(client)).partition(b"\r\n\r\n")[2] == b"onetwo"
        await client.aclose()


async def test_an_empty_piece_does_not_end_the_body():
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for data in (b"", b"one", b"", b"two"):
            await send(piece(data))
        await send(piece(b"", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port)
        assert (await read_answer(client)).body == b"onetwo"
        await client.aclose()


async def test_more_than_the_declared_length_never_goes_out(caplog):
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"4")))
        await send(piece(b"four"))
        await send(piece(b"more"))

    async with streaming(answer) as (server, port):
        client = await asking(port)
        assert (await read_to_end(client)).endswith(b"\r\n\r\nfour")
        await client.aclose()
    assert server.counters.crashed == 1


@pytest.mark.parametrize("takes", [[10**9], [5, 0, 1]])
async def test_two_tasks_of_one_answer_never_mix_their_chunks(takes):
    pieces = [bytes([byte]) * (listen.WRITE_PIECE_BYTES + byte) for byte in range(10)]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def say(mine: list[bytes]) -> None:
            for data in mine:
                await send(piece(data))

        await send(start())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, pieces[::2])
            nursery.start_soon(say, pieces[1::2])
        await send(piece(b"", more=False))

    with kernel_that_takes(takes):
        async with streaming(answer) as (_, port):
            client = await asking(port, "GET", "1.1", "Connection: close")
            chunks = chunks_of(await read_to_end(client))[1]
            await client.aclose()
    assert sorted(chunks) == pieces
    assert [data for data in chunks if data[0] % 2] == pieces[1::2]


async def test_no_chunk_follows_the_end(mock_clock: MockClock):
    """The end waits behind a chunk that the client does not read yet; h11 knows that it was said."""
    refused: list[Exception] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(piece(b"first"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, piece(b"x" * MORE_THAN_BUFFERS_BYTES))
            await wait_all_tasks_blocked()
            nursery.start_soon(send, piece(b"", more=False))
            await wait_all_tasks_blocked()
            try:
                await send(piece(b"too late"))
            except h11.LocalProtocolError as error:
                refused.append(error)

    async with streaming(answer) as (_, port):
        client = await asking(port)
        while not refused:
            await wait_all_tasks_blocked()
        body = await whole_body(client)
        assert body == chunk(b"first") + chunk(b"x" * MORE_THAN_BUFFERS_BYTES) + b"0\r\n\r\n"
        assert await receive(client) == b""
        await client.aclose()


# --- clients that stop reading ---------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_in_the_middle_is_cut_and_nobody_else_waits(mock_clock: MockClock):
    """Time stands still until the test moves it: what the others get, they get without waiting for the stuck one."""
    ended = trio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        if scope["path"] == "/short":
            await send(piece(b"short", more=False))
            return
        gone = False

        async def listen_for_the_end() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen_for_the_end)
                while not gone:
                    await send(piece(b"x" * 1000))
        finally:
            ended.set()

    async with streaming(answer, write_timeout_s=5.0) as (server, port):
        stuck = await asking(port)
        assert (await receive(stuck)).startswith(b"HTTP/1.1 200")  # and from here on it does not read
        await wait_all_tasks_blocked()  # its answer stands, although it never pauses by itself
        other = await trio.open_tcp_stream("127.0.0.1", port)
        for _ in range(3):
            assert (await ask(other, http_head("GET", "/short", f"127.0.0.1:{port}"))).body == b"short"
        assert server.counters.listen.write_timeouts == 0
        assert not ended.is_set()
        await pass_time_until(ended, mock_clock, 5.1)
        assert server.counters.listen.write_timeouts == 1
        assert not (await read_to_end(stuck)).endswith(b"0\r\n\r\n")
        await stuck.aclose()
        await other.aclose()
        assert server.counters.crashed == server.counters.listen.crashed == 0


async def test_a_failed_write_ends_the_answer_and_the_connection_where_nobody_reads():
    """A second request waits for its turn, and so does who would have read the end of the connection."""
    ended = trio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def pieces() -> None:
            while True:
                await send(piece(b"x"))

        await send(start())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pieces)
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()
        finally:
            ended.set()

    async with streaming(answer) as (server, port):
        client = await asking(port)
        await client.send_all(http_head("GET", "/second", f"127.0.0.1:{port}"))
        await receive(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, listen.RESET_ON_CLOSE)
        await client.aclose()
        await ended.wait()
        while server.counters.listen.active:
            await trio.lowlevel.checkpoint()
        assert server.counters.crashed == 0


async def test_an_app_that_takes_nothing_in_is_not_waited_for_to_hear_that_its_client_is_gone(mock_clock: MockClock):
    over = trio.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await wait_all_tasks_blocked()  # its queue is full
        await send(start())
        await send(piece(b"x" * MORE_THAN_BUFFERS_BYTES))
        over.set()

    async with streaming(answer, write_timeout_s=5.0) as (server, port):
        client = await asking(port, "POST", "1.1", "Transfer-Encoding: chunked", "Content-Type: application/json")
        await client.send_all(chunk(b"body") * 50)
        await receive(client)
        await wait_all_tasks_blocked()
        await pass_time_until(over, mock_clock, 5.1)  # the write is given up, and then telling is
        assert server.counters.listen.write_timeouts == 1
        await client.aclose()
        mock_clock.autojump_threshold = 0


async def test_no_answer_keeps_other_tasks_from_their_turns():
    """Also while the kernel takes everything at once."""
    turns = 0
    sends = 40

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        await send(start())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            for _ in range(sends):
                await send(piece(b"x"))
            nursery.cancel_scope.cancel()
        await send(piece(b"", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port)
        assert (await read_answer(client)).body == b"x" * sends
        await client.aclose()
    assert turns >= sends // SENDS_PER_TURN // 2  # half: who runs first and last is the scheduler's choice


# --- cancelled --------------------------------------------------------------------------------------------------------


async def test_a_cancelled_send_that_has_not_begun_sends_nothing():
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for number in range(10):
            with trio.CancelScope() as cancelled:
                if number % 2:
                    cancelled.cancel()
                await send(piece(b"%d" % number))
            assert cancelled.cancelled_caught == bool(number % 2)
        await send(piece(b"", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port)
        assert (await read_answer(client)).body == b"02468"
        await client.aclose()


@pytest.mark.parametrize("reads_on", [True, False])
async def test_a_send_cancelled_half_way_ends_whole_or_with_the_connection(reads_on, mock_clock: MockClock):
    """What is out of a chunk cannot be taken back: it is finished, or nothing more follows it."""
    scopes: list[trio.CancelScope] = []
    over = trio.Event()
    whole = chunk(b"first") + chunk(b"x" * MORE_THAN_BUFFERS_BYTES)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(piece(b"first"))
        with trio.CancelScope() as sending:
            scopes.append(sending)
            await send(piece(b"x" * MORE_THAN_BUFFERS_BYTES))
        over.set()
        await send(piece(b"after", more=False))

    async with streaming(answer, write_timeout_s=5.0) as (server, port):
        client = await asking(port)
        while not scopes:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert not over.is_set()
        if reads_on:
            assert await whole_body(client) == whole + chunk(b"after") + b"0\r\n\r\n"
        else:
            await pass_time_until(over, mock_clock, 5.1)
            got = await whole_body(client)
            assert len(got) < len(whole)
            assert whole.startswith(got)
        assert server.counters.listen.write_timeouts == (0 if reads_on else 1)
        await client.aclose()


async def test_cancelled_while_another_task_writes_nothing_is_lost_and_nothing_is_torn(mock_clock: MockClock):
    """It waits for its turn shielded: bytes that h11 has counted must go out."""
    scopes: list[trio.CancelScope] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        size = MORE_THAN_BUFFERS_BYTES + len(b"last")
        await send(start((b"content-length", str(size).encode())))

        async def last() -> None:
            with trio.CancelScope() as waiting:
                scopes.append(waiting)
                await send(piece(b"last"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, piece(b"x" * MORE_THAN_BUFFERS_BYTES))
            await wait_all_tasks_blocked()
            nursery.start_soon(last)
        await send(piece(b"", more=False))

    async with streaming(answer) as (_, port):
        client = await asking(port)
        while not scopes:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert await whole_body(client) == b"x" * MORE_THAN_BUFFERS_BYTES + b"last"
        await client.aclose()
