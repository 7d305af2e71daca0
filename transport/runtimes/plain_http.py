"""HTTP/1.1 on a stream of trio: one request a connection, the body as the socket gives it.

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
from typing import Final

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


@attrs.define(eq=False)
class PlainTransport:
    """The way to one server; `connect` opens a connection and raises OSError.

    At most `connections_max` are open at once. Nothing is kept between requests: there is nothing to close.
    """

    connect: Connect
    connections_max: int = CONNECTIONS_MAX
    _free: trio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._free = trio.Semaphore(self.connections_max, max_value=self.connections_max)

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
            stream = await self._connected(connect_s)
            try:
                await _write(stream, data)
                head, rest = await _read_head(stream, parser)
            except BaseException:
                await _close(stream)
                raise
        except BaseException:
            self._free.release()
            raise
        chunks = PlainChunks(rest) if _in_chunks(method, head) else None
        if rest and chunks is None:
            parser.receive_data(rest)
        return PlainResponse(head, stream, parser, self._free, chunks)

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
        """Close the connection now, whatever is still on its way. Also when already cancelled; does not wait."""
        if not self._closed:
            self._closed = True
            try:
                await _close(self._stream)
            finally:
                self._free.release()


def _written(parser: h11.Connection, method: str, target: str, headers: Headers, body: bytes) -> bytes:
    framing = [(b"content-length", b"%d" % len(body))] if body or method in ("POST", "PUT", "PATCH") else []
    try:
        data = parser.send(h11.Request(method=method, target=target, headers=[*headers, *framing]))
        if body:
            data += parser.send(h11.Data(data=body))
        return data + parser.send(h11.EndOfMessage())
    except h11.LocalProtocolError:
        raise HttpFailure(Failure.NO_HTTP) from None


async def _write(stream: trio.abc.Stream, data: bytes) -> None:
    try:
        with trio.fail_after(WRITE_S):
            await stream.send_all(data)
    except trio.TooSlowError:
        raise HttpFailure(Failure.WRITE_TIMEOUT) from None
    except trio.BrokenResourceError:
        pass  # a server may refuse a request before it has read all of it: what it says is still to be read


async def _read_head(stream: trio.abc.Stream, parser: h11.Connection) -> tuple[h11.Response, bytes]:
    """With what was read behind it, which the parser was not given. Interim responses (1xx) are skipped."""
    size_bytes, rest, before = 0, b"", b""
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
        if sock.fileno() == -1:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(sock)
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
