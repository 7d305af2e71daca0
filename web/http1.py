"""HTTP/1.1 of one connection, with what hypercorn's own protocol needs guarded, and the short way out of a stream."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Final

import attrs
import h11
import msgspec
from hypercorn.events import Closed
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState, H11SendableEvent

from engine.domain.errors import EngineError
from transport.listen import ListenCounters, ListenLimits
from transport.wire.frames import SCHEMA_VERSION
from web.http_faults import fault_of, head_fault
from web.lens.shapes import shape_of

if TYPE_CHECKING:
    from web.guard import HttpConnection

ANTHROPIC_PATH: Final = "/v1/messages"

Headers = list[tuple[bytes, bytes]]


@attrs.frozen
class HttpLimits:
    """`head_s`: a request head must be complete within this; also how long an idle connection is kept. `linger_s`: how
    long a closed connection is still read from, so that the last answer arrives."""

    listen: ListenLimits = attrs.field(factory=ListenLimits)
    head_s: float = 5.0
    head_bytes_max: int = 16 * 1024
    headers_max: int = 100
    linger_s: float = 1.0


@attrs.define(eq=False)
class HttpCounters:
    """`refused` counts the refusals made here by error code; `malformed` those made below, by HTTP status. `cut`:
    passive answers that were reset because the runtime's own broke off."""

    listen: ListenCounters = attrs.field(factory=ListenCounters)
    requests: int = 0
    crashed: int = 0  # requests whose handler failed
    cut: int = 0
    refused: dict[str, int] = attrs.field(factory=dict)
    malformed: dict[int, int] = attrs.field(factory=dict)


class Http1Protocol(H11Protocol):
    """HTTP/1.1 and 1.0 only. No WebSocket, no h2c, no HTTP/2; nothing that two parsers could read in two ways."""

    def __init__(
        self,
        connection: HttpConnection,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> None:
        super().__init__(
            connection.app,
            connection.config,
            connection.context,
            connection._task_group,
            ConnectionState({}),
            False,
            client,
            server,
            connection.protocol_send,
        )
        self.limits = connection.limits
        self.counters = connection.counters
        self._write = connection.write
        self._push = connection.push
        self._frames_url = connection.frames_url
        self._in_chunks = False  # this response: known once h11 has framed the first piece of its body
        self._held = b""  # the head of a whole answer, until its body is there

    async def stream_send(self, event: StreamEvent) -> None:
        """Pieces of a body take the short way; all else goes hypercorn's."""
        if isinstance(event, Body):  # never an empty one: as a chunk it would end the body
            await self._send_piece(event.data)
            return
        if isinstance(event, Response):
            self._in_chunks = False
        await super().stream_send(event)

    async def _send_piece(self, data: bytes) -> None:
        """The first is framed by h11, which decides on the framing. When that made a chunk of it, the next ones are
        chunks too: h11 keeps no account of those, so it need not see them."""
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._in_chunks or self.connection.our_state is not h11.SEND_BODY:
            try:
                by_h11 = self.connection.send(h11.Data(data=data))
            except h11.LocalProtocolError:
                if self.connection.their_state is not h11.ERROR:
                    raise
                return
            self._in_chunks = by_h11 == framed
            framed = by_h11
        await self._write_after_head(framed)

    def push_piece(self, stream: object, data: bytes) -> bool:
        """Write one more piece of the body that `stream` is sending, now and without the app's `send`; False where it
        has to go that way, and nothing was written. The caller makes sure that no `send` is under way, and that `data`
        is not empty."""
        if not self._in_chunks or self.stream is not stream or self.connection.our_state is not h11.SEND_BODY:
            return False
        return self._push(b"%x\r\n%b\r\n" % (len(data), data))

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """A head that says how long its body is waits for that body: both are there, and two writes wake the client
        twice. That of a stream goes out at once."""
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._held = data
        elif data or isinstance(event, h11.EndOfMessage):
            await self._write_after_head(data)

    async def _write_after_head(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        if data:  # the end of a body whose length was told is no bytes
            await self._write(data)

    async def _check_protocol(self, event: h11.Request) -> None:
        """hypercorn switches to h2c or HTTP/2 here. We never do."""

    async def _create_stream(self, request: h11.Request) -> None:
        fault = head_fault(request, self.limits, self._frames_url)
        if fault is None:
            await super()._create_stream(request)
            return
        await self._refuse(fault, request.target.partition(b"?")[0].decode("ascii", "replace"))
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        """Called while h11's error is handled. Without a body in hypercorn; in our shape here, as every other error."""
        await self._refuse(fault_of(sys.exception(), status_code, self.limits), "")

    async def _refuse(self, error: EngineError, path: str) -> None:
        self.counters.malformed[error.status] = self.counters.malformed.get(error.status, 0) + 1
        headers, body = error_response(error, secrets.token_hex(8), path)
        headers += [(b"connection", b"close"), *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=error.status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


def error_response(error: EngineError, request_id: str, path: str) -> tuple[Headers, bytes]:
    """Headers and body of an error, in the shape of the dialect that is spoken at `path`."""
    error.details.setdefault("request_id", request_id)
    shape = shape_of(path)
    body = msgspec.json.encode(error.body()) if shape is None else shape(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-schema-version", SCHEMA_VERSION.encode("ascii")),
        (b"x-request-id", request_id.encode("ascii")),
    ]
    if path.startswith(ANTHROPIC_PATH):
        headers.append((b"request-id", request_id.encode("ascii")))  # where Anthropic's clients look
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="WF Engine: the password is an API key"'))
    if "retry_after_s" in error.details:
        headers.append((b"retry-after", str(error.details["retry_after_s"]).encode("ascii")))
    return headers, body
