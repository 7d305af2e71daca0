"""A network in memory, and the far side of our listeners: what a client says and hears, down to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import h11
import msgspec
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair
from wsproto.frame_protocol import FrameProtocol, Opcode

from actors.frame_client import Sink
from actors.frame_history import Since
from engine.domain.errors import EngineError

Stream = trio.abc.HalfCloseableStream


@attrs.define(eq=False)
class MemoryListener(trio.abc.Listener[Stream]):
    """A listener whose connections are pairs of streams, so that a whole server runs in virtual time.

    With `lockstep` a write waits until the peer has read it: a peer that does not read is felt at once. `errors` are
    raised by the next accepts, in order.
    """

    lockstep: bool = False
    errors: list[OSError] = attrs.field(factory=list)
    closed: bool = False
    _queue: tuple[trio.MemorySendChannel[Stream], trio.MemoryReceiveChannel[Stream]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Stream](64)
    )

    async def connect(self) -> Stream:
        """The client's end of a new connection. Raises OSError once the listener is closed."""
        if self.closed:
            raise ConnectionRefusedError
        client, server = lockstep_stream_pair() if self.lockstep else memory_stream_pair()
        await self._queue[0].send(server)
        return client

    async def accept(self) -> Stream:
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return await self._queue[1].receive()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


@attrs.frozen
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The native error body."""
        error: dict[str, Any] = msgspec.json.decode(self.body)["error"]
        return error


def http_head(method: str, target: str, host: str, headers: Iterable[str] = (), version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", f"Host: {host}", *headers, "", ""]).encode("latin-1")


async def read_answer(stream: trio.abc.ReceiveStream, method: str = "GET") -> HttpAnswer:
    """One HTTP response, whole. Raises EOFError when the connection ends inside of it."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
    parser.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body = b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(bytes(await receive(stream)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            headers = {name.decode(): value.decode() for name, value in response.headers}
            return HttpAnswer(response.status_code, headers, body)
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError


async def ask(stream: Stream, request: bytes, method: str = "GET") -> HttpAnswer:
    await stream.send_all(request)
    return await read_answer(stream, method)


async def receive(stream: trio.abc.ReceiveStream) -> bytes:
    """Some bytes; none at all for every way in which a connection can be over."""
    try:
        return bytes(await stream.receive_some(65_536))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """All bytes until the server closes."""
    data = b""
    while piece := await receive(stream):
        data += piece
    return data


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@attrs.define(eq=False)
class WebSocketPeer:
    """The client's side of a WebSocket that does only what it is told: no automatic pong, no automatic close."""

    stream: Stream
    _frames: FrameProtocol = attrs.field(factory=lambda: FrameProtocol(client=True, extensions=[]))
    over: bool = False

    async def send_text(self, text: str) -> None:
        await self.stream.send_all(self.text(text))

    def text(self, text: str) -> bytes:
        return bytes(self._frames.send_data(text))

    async def send(self, frame: bytes | bytearray) -> None:
        await self.stream.send_all(frame)

    def ping(self, payload: bytes = b"") -> bytes:
        return bytes(self._frames.ping(payload))

    def pong(self, payload: bytes) -> bytes:
        return bytes(self._frames.pong(payload))

    def binary(self, payload: bytes) -> bytes:
        return bytes(FrameProtocol(client=True, extensions=[]).send_data(payload))

    def close(self, code: int) -> bytes:
        return bytes(self._frames.close(code))

    async def frame(self) -> tuple[Opcode, Any]:
        """The next whole frame; (Opcode.CLOSE, (1006, "")) when the connection ended without one."""
        payload: Any = None
        while True:
            for frame in self._frames.received_frames():
                part = frame.payload
                payload = part if payload is None else payload + part
                if frame.frame_finished:
                    return frame.opcode, payload
            data = await receive(self.stream)
            if not data:
                self.over = True
                return Opcode.CLOSE, (1006, "")
            self._frames.receive_bytes(data)

    async def next_text(self) -> str:
        """The next text; pings on the way are answered."""
        while True:
            opcode, payload = await self.frame()
            if opcode is Opcode.PING:
                await self.send(self.pong(payload))
            elif opcode is Opcode.TEXT:
                return str(payload)
            else:
                raise AssertionError(f"{opcode!r} {payload!r} instead of text")

    async def closed_with(self) -> tuple[int, str]:
        """Code and reason of the server's close frame; what comes before it is thrown away."""
        while True:
            opcode, payload = await self.frame()
            if opcode is Opcode.CLOSE:
                code, reason = payload
                return int(code), reason


async def upgrade(stream: Stream, host: str, headers: Iterable[str] = (), target: str = "/ws") -> WebSocketPeer:
    """The handshake; raises AssertionError when it is refused."""
    await stream.send_all(http_head("GET", target, host, (*UPGRADE, *headers)))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await receive(stream)
        assert piece, f"refused: {answer!r}"
        answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"sec-websocket-extensions" not in head.lower()
    peer = WebSocketPeer(stream)
    peer._frames.receive_bytes(rest)
    return peer


def text_frame(text: str) -> bytes:
    """A whole server frame."""
    return bytes(FrameProtocol(client=False, extensions=[]).send_data(text))


@attrs.define(eq=False)
class RecordedClient:
    """One connection as the recording source saw it."""

    sink: Sink
    since: Since | None = None
    received: list[bytes] = attrs.field(factory=list)
    refused: list[EngineError] = attrs.field(factory=list)
    detached: int = 0
    on_message: Callable[[bytes], None] | None = None

    def receive(self, message: bytes) -> None:
        self.received.append(message)
        if self.on_message is not None:
            self.on_message(message)

    def refuse(self, error: EngineError) -> None:
        self.refused.append(error)

    def detach(self) -> None:
        self.detached += 1


@attrs.define(eq=False)
class RecordingSource:
    """A frame source that pushes what the test tells it to, and keeps what comes back."""

    clients: list[RecordedClient] = attrs.field(factory=list)
    on_connect: Callable[[], None] | None = None

    def connect(self, sink: Sink, since: Since | None = None) -> RecordedClient:
        if self.on_connect is not None:
            self.on_connect()
        client = RecordedClient(sink, since)
        self.clients.append(client)
        assert sink.push(text_frame("hello"))
        return client
