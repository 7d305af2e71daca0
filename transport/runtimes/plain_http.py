"""HTTP/1.1 on a stream of trio: one request after another on it at most, the body as the socket gives it.

h11 reads and writes the protocol, but for the plain chunks that nearly all of a streamed body is made of: those are
cut here, and what else may stand between two of them is left to h11. What one read of the socket brings of a body is
handed on in one piece, however many chunks the server made of it: many tokens that are there are one wake of their
reader, and not many. There are no generators here, so whatever is cancelled leaves nothing to the garbage collector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Final, Protocol

import attrs
import h11
import trio

from transport.outbound import NoTls, OutboundRefused

WRITE_S: Final = 30.0  # for a whole request
POOL_S: Final = 5.0  # for one of the connections
CONNECTIONS_MAX: Final = 128
READ_BYTES: Final = 64 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024  # all interim responses and the head together; also one trailer or chunk header
CHUNKS_MAX: Final = 256  # handed on at once; parsing more of them would keep other tasks from running

_CHUNK_HEAD: Final = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,6})\r\n")  # of a chunk with data, and nothing besides
_CHUNK_HEAD_BEGUN: Final = re.compile(rb"(?:[1-9A-Fa-f][0-9A-Fa-f]{0,6}\r?)?")
_CHUNK_END: Final = b"\r\n"
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_BODILESS: Final = frozenset({204, 304})

Connect = Callable[[], Awaitable[trio.abc.Stream]]
Headers = Sequence[tuple[bytes, bytes]]


class Failure(Enum):
    """Where an exchange failed."""

    CONNECT_TIMEOUT = auto()
    NO_CONNECTION = auto()  # refused, unknown name, no such socket
    NOT_PERMITTED = auto()  # it leads out of this machine
    NO_TLS = auto()  # the certificate is none for that name, or there is no TLS at all
    CONNECTIONS_IN_USE = auto()
    WRITE_TIMEOUT = auto()
    NO_HTTP = auto()  # before the head: ended, or something else than HTTP; or a request that cannot be written
    BROKEN = auto()  # before the head
    UNREACHABLE = auto()
    MALFORMED_BODY = auto()
    TRUNCATED = auto()  # the connection ended inside the body


class HttpFailure(Exception):
    """An exchange failed; how is in `failure`. The words of h11 are left out: they quote a request or an answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.name)
        self.failure = failure


class KeptConnections(Protocol):
    """Connections that wait for their next request. `free` bounds those in use."""

    @property
    def free(self) -> trio.Semaphore: ...

    def take(self) -> trio.abc.Stream | None: ...

    def keep(self, stream: trio.abc.Stream) -> bool: ...


@attrs.define(eq=False)
class PlainTransport:
    """The way to one server; `connect` opens a connection and raises OSError.

    At most `connections_max` are open at once. Nothing is kept between requests, unless `kept` is given: then a
    connection whose answer was read to its end is kept there, and taken from there again.
    """

    connect: Connect
    connections_max: int = CONNECTIONS_MAX
    kept: KeptConnections | None = None
    _free: trio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._free = trio.Semaphore(self.connections_max, max_value=self.connections_max)
        if self.kept is not None:
            self._free = self.kept.free

    @property
    def connections_open(self) -> int:
        return self.connections_max - self._free.value

    async def send(self, method: str, target: str, headers: Headers, body: bytes, *, connect_s: float) -> PlainResponse:
        """Send a request and read the head of its response; how long that takes, the caller bounds.

        `headers` hold no framing. Raises HttpFailure. Cancelled or failed anywhere: the connection is closed; after
        that the response owns it.
        """
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        data = _written(parser, method, target, headers, body)
        try:
            with trio.fail_after(POOL_S):
                await self._free.acquire()
        except trio.TooSlowError:
            raise HttpFailure(Failure.CONNECTIONS_IN_USE) from None
        try:
            stream, head, rest, whole = await self._exchanged(parser, data, connect_s)
        except BaseException:
            self._free.release()
            raise
        chunks = PlainChunks(rest) if _in_chunks(method, head) else None
        if rest and chunks is None:
            parser.receive_data(rest)
        return PlainResponse(head, stream, parser, self._free, chunks, self.kept if whole else None)

    async def _exchanged(
        self, parser: h11.Connection, data: bytes, connect_s: float
    ) -> tuple[trio.abc.Stream, h11.Response, bytes, bool]:
        """The connection, the head and what was read behind it, and whether the whole request was written."""
        stream = self._taken()
        if stream is not None:
            found = await self._again(stream, parser, data)
            if found is not None:
                return found
        stream = await self._connected(connect_s)
        try:
            whole = await _write(stream, data)
            return stream, *await _read_head(stream, parser), whole
        except BaseException:
            await _close(stream)
            raise

    def _taken(self) -> trio.abc.Stream | None:
        try:
            return None if self.kept is None else self.kept.take()
        except OutboundRefused as error:
            raise HttpFailure(Failure.NOT_PERMITTED) from error

    async def _again(
        self, stream: trio.abc.Stream, parser: h11.Connection, data: bytes
    ) -> tuple[trio.abc.Stream, h11.Response, bytes, bool] | None:
        """The exchange on a connection that was kept; None when that turns out to be dead, nothing came back and the
        request did not leave whole: then nobody can have acted on it. One that left whole is never sent twice."""
        try:
            whole = await _write(stream, data)
            try:
                first = await _read(stream)
            except trio.BrokenResourceError:
                first = b""
            if first:
                return stream, *await _read_head(stream, parser, first), whole
        except BaseException:
            await _close(stream)
            raise
        await _close(stream)
        if whole:
            raise HttpFailure(Failure.BROKEN)
        return None

    async def _connected(self, connect_s: float) -> trio.abc.Stream:
        try:
            with trio.fail_after(connect_s):
                return await self.connect()
        except trio.TooSlowError:
            raise HttpFailure(Failure.CONNECT_TIMEOUT) from None
        except OutboundRefused as error:
            raise HttpFailure(Failure.NOT_PERMITTED) from error
        except NoTls as error:
            raise HttpFailure(Failure.NO_TLS) from error
        except (OSError, UnicodeError, trio.BrokenResourceError) as error:  # UnicodeError: a name that is none
            raise HttpFailure(Failure.NO_CONNECTION) from error


@attrs.define(eq=False)
class PlainChunks:
    """Chunks of a body that have a size and data and nothing else. `rest` is what was not cut yet: where something else
    than such a chunk begins, `over` is True, and what is there is for another parser. `more`: the next `cut` says more,
    also without more bytes."""

    rest: bytes
    over: bool = False
    more: bool = False
    _left: int = 0  # bytes of the chunk at hand that are still to come
    _owed: bytes = b""  # of the line end after it

    def cut(self) -> list[bytes]:
        """At most CHUNKS_MAX parts of what is there. Raises HttpFailure (MALFORMED_BODY) where no chunk ends as it
        should, after the parts before were handed out."""
        parts: list[bytes] = []
        buffer, at = self.rest, 0
        self.more = False
        while len(parts) < CHUNKS_MAX:
            if self._left:
                part = buffer[at : at + self._left]
                if not part:
                    break
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._owed = _CHUNK_END
            if self._owed:
                ending = buffer[at : at + len(self._owed)]
                if not self._owed.startswith(ending):
                    if not parts:
                        raise HttpFailure(Failure.MALFORMED_BODY)
                    self.more = True
                    break
                at += len(ending)
                self._owed = self._owed[len(ending) :]
                if self._owed:
                    break
            if at == len(buffer):  # as after nearly every read
                break
            head = _CHUNK_HEAD.match(buffer, at)
            if head is None:
                self.over = _CHUNK_HEAD_BEGUN.fullmatch(buffer, at) is None
                break
            at, self._left = head.end(), int(head[1], 16)
        else:
            self.more = True
        self.rest = buffer[at:]
        return parts


@attrs.define(eq=False)
class PlainResponse:
    """The head of a response, and its body read by read. One task reads at a time."""

    _head: h11.Response
    _stream: trio.abc.Stream
    _parser: h11.Connection
    _free: trio.Semaphore
    _chunks: PlainChunks | None  # until something else than a plain chunk comes
    _kept: KeptConnections | None = None  # where the connection may go when all is over
    _unparsed: bool = attrs.field(default=True, init=False)  # the parser may have more without another read
    _over: bool = attrs.field(default=False, init=False)  # all of the body was handed on
    _eof: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def status(self) -> int:
        return int(self._head.status_code)

    def header(self, name: str) -> str | None:
        """All values of `name`, joined by commas."""
        wanted = name.lower().encode("latin-1")
        values = [value.decode("latin-1") for key, value in self._head.headers if key == wanted]
        return ", ".join(values) if values else None

    async def read(self) -> bytes | None:
        """What one read of the socket brought of the body, never empty; None at its end.

        Raises HttpFailure (MALFORMED_BODY or TRUNCATED), after all that came before the fault was handed on. Cancelled
        here, nothing is lost.
        """
        if self._closed:
            raise HttpFailure(Failure.TRUNCATED)
        if self._over or self._unparsed:
            await trio.lowlevel.checkpoint()
        while not self._over:
            if not self._unparsed:
                await self._receive()
            data = self._parse()
            if data:
                return data
        return None

    async def _receive(self) -> None:
        try:
            data = await _read(self._stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise HttpFailure(Failure.TRUNCATED) from error
        self._eof, self._unparsed = not data, True
        if self._chunks is None:
            self._parser.receive_data(data)
        elif data:
            self._chunks.rest += data
        else:
            raise HttpFailure(Failure.TRUNCATED)  # the last chunk is not a plain one

    def _parse(self) -> bytes:
        if self._chunks is None:
            return self._parse_by_h11()
        parts = self._chunks.cut()
        if self._chunks.over:  # h11 has seen nothing of the body yet, and goes on between two chunks
            self._parser.receive_data(self._chunks.rest)
            self._chunks = None
        else:
            self._unparsed = self._chunks.more
        return b"".join(parts)

    def _parse_by_h11(self) -> bytes:
        next_event = self._parser.next_event
        parts: list[bytes] = []
        try:
            while len(parts) < CHUNKS_MAX:
                event = next_event()
                if type(event) is h11.Data:
                    parts.append(event.data)
                    continue
                self._unparsed = False
                self._over = event is not h11.NEED_DATA  # then it is the end of the message
                break
        except h11.RemoteProtocolError:
            # Up to here everything was in order, so at the end of the connection the fault can only be that end. With
            # something to hand on the fault waits: a parser that has failed fails again.
            if not parts:
                raise HttpFailure(Failure.TRUNCATED if self._eof else Failure.MALFORMED_BODY) from None
        return b"".join(parts)

    async def aclose(self) -> None:
        """Close the connection now, whatever is still on its way; or keep it, where nothing is and that is wanted. Also
        when already cancelled; does not wait."""
        if not self._closed:
            self._closed = True
            try:
                if not (self._is_in_order() and self._kept is not None and self._kept.keep(self._stream)):
                    await _close(self._stream)
            finally:
                self._free.release()

    def _is_in_order(self) -> bool:
        """Both sides have said all, want to go on, and nothing came behind it."""
        parser = self._parser
        said_all = parser.our_state is h11.DONE and parser.their_state is h11.DONE
        return self._over and not self._eof and said_all and parser.trailing_data == (b"", False)


def _written(parser: h11.Connection, method: str, target: str, headers: Headers, body: bytes) -> bytes:
    framing = [(b"content-length", b"%d" % len(body))] if body or method in ("POST", "PUT", "PATCH") else []
    try:
        data = parser.send(h11.Request(method=method, target=target, headers=[*headers, *framing]))
        if body:
            data += parser.send(h11.Data(data=body))
        return data + parser.send(h11.EndOfMessage())
    except h11.LocalProtocolError:
        raise HttpFailure(Failure.NO_HTTP) from None


async def _write(stream: trio.abc.Stream, data: bytes) -> bool:
    """False when the other side took no more of it."""
    try:
        with trio.fail_after(WRITE_S):
            await stream.send_all(data)
        return True
    except trio.TooSlowError:
        raise HttpFailure(Failure.WRITE_TIMEOUT) from None
    except trio.BrokenResourceError:
        return False  # a server may refuse a request before it has read all of it: what it says is still to be read


async def _read_head(stream: trio.abc.Stream, parser: h11.Connection, rest: bytes = b"") -> tuple[h11.Response, bytes]:
    """With what was read behind it, which the parser was not given. Interim responses (1xx) are skipped. `rest` is what
    was read already."""
    size_bytes, before = 0, b""
    try:
        while not isinstance(event := parser.next_event(), h11.Response):
            if event is not h11.NEED_DATA:
                continue
            data = rest or (await _read(stream) if size_bytes <= HEAD_BYTES_MAX else b"")
            if not data:
                raise HttpFailure(Failure.NO_HTTP)
            ended = _HEAD_END.search(before + data)
            size = len(data) if ended is None else ended.end() - len(before)
            size_bytes += size
            parser.receive_data(data[:size])
            rest, before = data[size:], b"" if ended else (before + data)[-2:]
    except h11.RemoteProtocolError:
        raise HttpFailure(Failure.NO_HTTP) from None
    except trio.BrokenResourceError as error:
        raise HttpFailure(Failure.BROKEN) from error
    if size_bytes > HEAD_BYTES_MAX:
        raise HttpFailure(Failure.NO_HTTP)
    return event, rest


def _in_chunks(method: str, head: h11.Response) -> bool:
    """h11 has refused every transfer encoding but this one."""
    bodiless = method == "HEAD" or head.status_code in _BODILESS
    return not bodiless and any(name == b"transfer-encoding" for name, _ in head.headers)


async def _read(stream: trio.abc.Stream) -> bytes:
    """What is there, empty at the end. A stream tries first and waits then; here there is hardly ever something before
    the wait, and to find out costs more than the reading."""
    if not isinstance(stream, trio.SocketStream):
        return bytes(await stream.receive_some(READ_BYTES))
    sock = stream.socket
    while True:
        fd = sock.fileno()
        if fd == -1:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(fd)
        try:
            return os.read(sock.fileno(), READ_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError from error


async def _close(stream: trio.abc.Stream) -> None:
    """Like trio.aclose_forcefully, but a cancelled task goes on: it may have an error of its own to carry."""
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await stream.aclose()
