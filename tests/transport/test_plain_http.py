"""HTTP/1.1 on a stream: what is written, what is taken for an answer, and what is handed on of each read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from functools import partial

import attrs
import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.runtimes.plain_http import (
    CHUNKS_MAX,
    HEAD_BYTES_MAX,
    POOL_S,
    READ_BYTES,
    WRITE_S,
    Failure,
    HttpFailure,
    PlainResponse,
    PlainTransport,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@attrs.define(eq=False)
class Wire(trio.abc.Stream):
    """A connection of which every read is scripted: some bytes, an error, or (None) nothing for ever. Then it ends."""

    reads: list[bytes | Exception | None]
    sends: list[bytes | Exception | None] = attrs.field(factory=list)  # scripted in the same way; bytes: they arrive
    written: list[bytes] = attrs.field(factory=list)
    closed: bool = False

    async def connect(self) -> Wire:
        await trio.lowlevel.checkpoint()
        return self

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        read = self.reads.pop(0) if self.reads else b""
        if read is None:
            await trio.sleep_forever()
        if isinstance(read, Exception):
            raise read
        assert read is not None
        assert len(read) <= (max_bytes or 0)
        return read

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written.append(bytes(data))
        send = self.sends.pop(0) if self.sends else b""
        if send is None:
            await trio.sleep_forever()
        if isinstance(send, Exception):
            raise send

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        """A close that waits for something is not waited for."""
        self.closed = True
        await trio.sleep_forever()


async def send(wire: Wire, method: str = "GET", body: bytes = b"") -> PlainResponse:
    return await PlainTransport(wire.connect).send(method, "/", [(b"host", b"x")], body, connect_s=2)


async def reads_of(response: PlainResponse) -> list[bytes]:
    reads = []
    while (data := await response.read()) is not None:
        reads.append(data)
    return reads


async def exchange(reads: Iterable[bytes | Exception], method: str = "GET") -> list[bytes]:
    wire = Wire(list(reads))
    response = await send(wire, method)
    try:
        return await reads_of(response)
    finally:
        await response.aclose()
        assert wire.closed


async def failure(reads: Iterable[bytes | Exception]) -> tuple[Failure, list[bytes]]:
    """How it fails, and what was handed on before; at the end without fault this fails."""
    wire, seen = Wire(list(reads)), []
    with pytest.raises(HttpFailure) as caught:
        response = await send(wire)
        try:
            while (data := await response.read()) is not None:
                seen.append(data)
        finally:
            await response.aclose()
    assert wire.closed
    assert not isinstance(caught.value.__cause__, h11.ProtocolError)  # it quotes the server
    return caught.value.failure, seen


# ── the request ──


async def test_a_request_is_one_write():
    wire = Wire([OK + b"content-length: 0\r\n\r\n"])
    response = await send(wire, "POST", b'{"a":1}')
    assert wire.written == [b'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n{"a":1}']
    await response.aclose()


@pytest.mark.parametrize(("method", "framed"), [("GET", False), ("HEAD", False), ("DELETE", False), ("POST", True)])
async def test_an_empty_body_is_announced_where_one_is_expected(method: str, framed: bool):
    wire = Wire([OK + b"content-length: 0\r\n\r\n"])
    await (await send(wire, method)).aclose()
    assert (b"content-length: 0\r\n" in wire.written[0]) == framed


async def test_a_header_that_cannot_be_written_is_not_told():
    wire = Wire([])
    with pytest.raises(HttpFailure) as caught:
        headers = [(b"host", b"x"), (b"authorization", b"secret\r\nx: y")]
        await PlainTransport(wire.connect).send("GET", "/", headers, b"", connect_s=2)
    assert caught.value.failure is Failure.NO_HTTP
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    assert not wire.written


async def test_a_refusal_before_the_request_is_read_is_an_answer():
    wire = Wire([b"HTTP/1.1 413 No\r\ncontent-length: 3\r\n\r\nbig"], sends=[trio.BrokenResourceError()])
    response = await send(wire, "POST", b"x" * 100)
    assert (response.status, await reads_of(response)) == (413, [b"big"])
    await response.aclose()


# ── the answer ──

ANSWERS = {
    "length": OK + b"content-length: 5\r\n\r\nhello",
    "chunks": CHUNKED + chunk(b"he") + chunk(b"llo") + LAST,
    "extensions and trailers": CHUNKED + b"2;a=b\r\nhe\r\n03\r\nllo\r\n0\r\nx: y\r\n\r\n",
    "until it closes": OK + b"\r\nhello",
    "1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
    + OK
    + b"content-length: 5\r\n\r\nhello",
    "more than announced": OK + b"content-length: 5\r\n\r\nhello and more",
}


@pytest.mark.parametrize("name", ANSWERS)
@given(data=st.data())
@settings(deadline=None)
async def test_bodies_however_they_are_cut(name: str, data: st.DataObject):
    answer = ANSWERS[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1))))
    reads = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    pieces = await exchange(reads)
    assert b"".join(pieces) == b"hello"
    assert b"" not in pieces


@pytest.mark.parametrize("name", ANSWERS)
async def test_bodies_byte_by_byte(name: str):
    assert b"".join(await exchange([bytes([byte]) for byte in ANSWERS[name]])) == b"hello"


async def test_the_end_of_a_head_may_come_in_three_reads():
    assert await exchange([CHUNKED[:-2], CHUNKED[-2:-1], CHUNKED[-1:] + chunk(b"x") + LAST]) == [b"x"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 204 None\r\n\r\n", b"HTTP/1.1 304 Same\r\ncontent-length: 5\r\n\r\n"])
async def test_answers_without_a_body(answer: bytes):
    assert await exchange([answer, OSError("not read")]) == []


async def test_the_answer_to_head_has_no_body():
    assert await exchange([OK + b"content-length: 5\r\n\r\n", OSError("not read")], "HEAD") == []


async def test_headers():
    response = await send(Wire([OK + b"A: 1\r\nb: \xe9\r\na: 2\r\n\r\n"]))
    assert [response.header(name) for name in ("a", "A", "B", "c")] == ["1, 2", "1, 2", "é", None]
    await response.aclose()


async def test_what_one_read_brings_is_one_piece():
    a, b, c = (chunk(word) for word in (b"a", b"b", b"c"))
    assert await exchange([CHUNKED + a, b + c + a[:2], a[2:], b[:1], b[1:] + LAST]) == [b"a", b"bc", b"a", b"b"]
    assert await exchange([CHUNKED + a + b + c + LAST]) == [b"abc"]
    many = [chunk(b"x") * (2 * CHUNKS_MAX + 1) + LAST]
    assert [len(data) for data in await exchange([CHUNKED, *many])] == [CHUNKS_MAX, CHUNKS_MAX, 1]


ODD = [
    b"2;a=b\r\nhe\r\n",
    b"02\r\nhe\r\n",
    b"0\r\nx: y\r\n\r\n",
    b"2\r\nhe",
    b"g\r\n",
    b"\r",
    b"2\r\nhey\r\n",
    b"00\r\n",
]


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40).map(chunk) | st.sampled_from([LAST, *ODD]), max_size=6),
    data=st.data(),
)
@settings(deadline=None)
async def test_chunks_are_what_h11_takes_them_for(parts: list[bytes], data: st.DataObject):
    """However they are cut: the same bytes, the same end, the same fault."""
    raw = b"".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))))
    reads = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if raw[a:b]]
    expected, fault = by_h11(reads)
    wire = Wire([CHUNKED + (reads.pop(0) if reads and data.draw(st.booleans()) else b""), *reads])
    response, seen, found = await send(wire), bytearray(), None
    try:
        while (piece := await response.read()) is not None:
            assert piece
            seen += piece
    except HttpFailure as error:
        found = error.failure
    await response.aclose()
    assert (bytes(seen), found) == (expected, fault)


def by_h11(reads: list[bytes]) -> tuple[bytes, Failure | None]:
    parser, seen = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX), bytearray()
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    for read in (CHUNKED, *reads, b""):
        parser.receive_data(read)
        try:
            while (event := parser.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.EndOfMessage):
                    return bytes(seen), None
                seen += event.data if isinstance(event, h11.Data) else b""
        except h11.RemoteProtocolError:
            return bytes(seen), Failure.MALFORMED_BODY if read else Failure.TRUNCATED
    raise AssertionError("the end of the connection is always an end")


async def test_a_part_of_a_chunk_is_handed_on_before_the_rest_comes():
    assert await exchange([CHUNKED, b"5\r", b"\nhe", b"ll", b"o", b"\r", b"\n" + LAST]) == [b"he", b"ll", b"o"]


@pytest.mark.parametrize("ends", ["in order", "by reset", "by our close"])
async def test_reading_from_a_socket(ends: str):
    """Where there is a socket it is waited for and read directly."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    transport = PlainTransport(partial(trio.open_tcp_stream, "127.0.0.1", port))
    async with listener, trio.open_nursery() as nursery:
        asked = trio.Event()
        peers: list[trio.SocketStream] = []

        async def serve() -> None:
            peers.append(await listener.accept())
            await peers[0].receive_some()
            await peers[0].send_all(CHUNKED[:20])
            await trio.testing.wait_all_tasks_blocked()
            await peers[0].send_all(CHUNKED[20:] + chunk(b"one"))
            await asked.wait()
            if ends == "by reset":
                linger = struct.pack("ii", 1, 0)
                peers[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if ends == "in order":
                await peers[0].send_all(chunk(b"two") + LAST)
            if ends != "by our close":
                await peers[0].aclose()

        nursery.start_soon(serve)
        response = await transport.send("GET", "/", [(b"host", b"x")], b"", connect_s=2)
        assert await response.read() == b"one"
        asked.set()
        if ends == "in order":
            assert (await response.read(), await response.read()) == (b"two", None)
        elif ends == "by reset":
            with pytest.raises(HttpFailure) as caught:
                await response.read()
            assert caught.value.failure is Failure.TRUNCATED
        else:
            nursery.start_soon(close_when_blocked, response)
            with pytest.raises(HttpFailure) as caught:
                await response.read()
            assert caught.value.failure is Failure.TRUNCATED
        await response.aclose()
        for peer in peers:
            await peer.aclose()


async def close_when_blocked(response: PlainResponse) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await response.aclose()


async def test_every_read_can_be_cancelled_and_loses_nothing():
    response = await send(Wire([CHUNKED + chunk(b"x") * (CHUNKS_MAX + 1) + LAST]))
    sizes = []
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await response.read()
        assert scope.cancelled_caught
        sizes.append(len(await response.read() or b""))
    assert sizes == [CHUNKS_MAX, 1, 0]
    await response.aclose()


# ── faults ──


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-nonsense\r\n\r\n",
        b"\x16\x03\x01",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        OK + b"content-length: -5\r\n\r\n",
        OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
        OK + b"bad header\r\n\r\n",
        OK + b"bad : x\r\n\r\n",
    ],
)
async def test_heads_that_are_not_http(head: bytes):
    assert await failure([head]) == (Failure.NO_HTTP, [])


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"-1\r\nx\r\n", b"1\r\nabc\r\n", b"1\r\na\n\n", b"f" * 21 + b"\r\n", b"\r\n", b"0\r\nx y\r\n\r\n"],
)
async def test_bodies_that_are_not_http(body: bytes):
    first = CHUNKED + chunk(b"good")
    for reads in ([first + body], [first, body], [CHUNKED, chunk(b"good") + body]):
        found, seen = await failure(reads)
        assert found is Failure.MALFORMED_BODY
        assert b"".join(seen).startswith(b"good")


@pytest.mark.parametrize("answer", [ANSWERS["length"], ANSWERS["chunks"], ANSWERS["extensions and trailers"]])
@pytest.mark.parametrize("ends", [(), (trio.BrokenResourceError(),)])
async def test_a_connection_that_ends_at_any_byte(answer: bytes, ends: tuple[Exception, ...]):
    head, body = answer.index(b"\r\n\r\n") + 4, ANSWERS["length"][-5:]
    for size in range(1, len(answer)):
        found, seen = await failure([answer[:size], *ends])
        if size < head:
            assert found is (Failure.BROKEN if ends else Failure.NO_HTTP)
            continue
        assert found is Failure.TRUNCATED
        assert body.startswith(b"".join(seen))


async def test_no_answer_at_all():
    assert await failure([]) == (Failure.NO_HTTP, [])
    assert await failure([trio.BrokenResourceError()]) == (Failure.BROKEN, [])


def split(data: bytes) -> list[bytes]:
    return [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]


async def test_a_head_has_a_size():
    start, end = OK + b"a: ", b"\r\ncontent-length: 1\r\n\r\n"
    room = b"x" * (HEAD_BYTES_MAX - len(start) - len(end))
    assert await exchange(split(start + room + end + b"y")) == [b"y"]
    for data in (start + room + b"x" + end + b"y", start + room * 3, b"HTTP/1.1 100 Continue\r\n\r\n" * 9000):
        reads: list[bytes | Exception] = [*split(data), AssertionError("read on")]
        assert await failure(reads) == (Failure.NO_HTTP, [])


@pytest.mark.parametrize("start", [b"1;", b"0\r\nx: "])
async def test_what_stands_between_chunks_has_a_size(start: bytes):
    reads: list[bytes | Exception] = [CHUNKED, start, *[b"x" * READ_BYTES] * 2, AssertionError("read on")]
    assert await failure(reads) == (Failure.MALFORMED_BODY, [])


@given(
    head=st.sampled_from([b"", OK, CHUNKED, OK + b"content-length: 9\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n"]),
    reads=st.lists(
        st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([chunk(b"ab"), LAST, b"\r\n", b"1\r\n", OK]))
    ),
)
@settings(deadline=None)
async def test_nothing_a_server_says_is_a_crash(head: bytes, reads: list[bytes]):
    try:
        pieces = await exchange([head, *reads] if head else reads)
    except HttpFailure:
        return
    assert b"" not in pieces


# ── time, and letting go ──


async def test_connecting_has_a_limit_and_its_errors(autojump_clock: trio.testing.MockClock):
    async def refused() -> Wire:
        raise ConnectionRefusedError

    for connect, found, after_s in (
        (trio.sleep_forever, Failure.CONNECT_TIMEOUT, 3),
        (refused, Failure.NO_CONNECTION, 0),
    ):
        transport, begin_s = PlainTransport(connect), trio.current_time()
        with pytest.raises(HttpFailure) as caught:
            await transport.send("GET", "/", [(b"host", b"x")], b"", connect_s=3)
        assert (caught.value.failure, trio.current_time() - begin_s) == (found, pytest.approx(after_s))
        assert transport.connections_open == 0


async def test_writing_has_a_limit(autojump_clock: trio.testing.MockClock):
    wire = Wire([], sends=[None])
    with pytest.raises(HttpFailure) as caught:
        await send(wire, "POST", b"x")
    assert (caught.value.failure, wire.closed) == (Failure.WRITE_TIMEOUT, True)
    assert trio.current_time() == pytest.approx(WRITE_S)


async def test_connections_are_counted(autojump_clock: trio.testing.MockClock):
    wires = [Wire([CHUNKED, None]) for _ in range(3)]
    waiting = iter(wires)

    async def connect() -> Wire:
        return await next(waiting).connect()

    async def ask() -> PlainResponse:
        return await transport.send("GET", "/", [(b"host", b"x")], b"", connect_s=2)

    transport = PlainTransport(connect, connections_max=2)
    first, second = await ask(), await ask()
    with pytest.raises(HttpFailure) as caught:
        await ask()
    assert (caught.value.failure, trio.current_time()) == (Failure.CONNECTIONS_IN_USE, pytest.approx(POOL_S))
    for _ in range(2):  # the second time does nothing
        await first.aclose()
    assert transport.connections_open == 1
    third = await ask()
    assert transport.connections_open == 2
    for response in (second, third):
        await response.aclose()
    assert (transport.connections_open, [wire.closed for wire in wires]) == (0, [True] * 3)


async def test_closing_in_a_cancelled_task():
    """It closes, and the task goes on to its next checkpoint: an error on its way out is not replaced."""
    wire = Wire([CHUNKED + chunk(b"a")])
    response = await send(wire)
    with trio.CancelScope() as scope:
        scope.cancel()
        await response.aclose()
    assert (wire.closed, scope.cancelled_caught) == (True, False)
    with pytest.raises(HttpFailure) as caught:
        await response.read()
    assert caught.value.failure is Failure.TRUNCATED
