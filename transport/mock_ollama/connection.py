"""One HTTP/1.1 connection by h11: requests in, responses out, and an eye on whether the client is still there.

There is no web framework in between, because a fault must reach the wire exactly as it is written in a script.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Final

import attrs
import h11
import trio

from engine import __version__
from transport.listen import DeadlineStream

HEAD_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
PIPELINED_BYTES_MAX: Final = 64 * 1024  # taken while a response is under way; then the client is no longer watched
READ_BYTES: Final = 65_536
IDLE_S: Final = 300.0  # for the next bytes of a request, also between two
LINGER_S: Final = 1.0
PLAIN: Final = "text/plain; charset=utf-8"

Headers = Iterable[tuple[str, str]]


@attrs.frozen
class Request:
    """A whole request; header names in lower case, `path` without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)


@attrs.define(eq=False)
class Responder:
    """Writes one response. What is given to `begin`, `data` and `bare` waits for `flush`."""

    _http: h11.Connection
    _stream: DeadlineStream
    _head_only: bool
    began: bool = False
    _waiting: bytearray = attrs.field(factory=bytearray)

    @property
    def waiting_bytes(self) -> int:
        return len(self._waiting)

    async def whole(self, status: int, body: bytes, content_type: str, headers: Headers = ()) -> None:
        """A response with its length, to its end."""
        self._head(status, [("content-type", content_type), ("content-length", str(len(body))), *headers])
        self.data(body)
        await self.end()

    def begin(self, status: int, content_type: str, headers: Headers = ()) -> None:
        """The head of a chunked response, if it did not begin yet."""
        if not self.began:
            self._head(status, [("content-type", content_type), *headers])

    def data(self, data: bytes) -> None:
        """A chunk of its own."""
        if not self._head_only:
            self._put(h11.Data(data=data))

    def bare(self, data: bytes) -> None:
        """Bytes that HTTP does not know of."""
        self._waiting += data

    async def flush(self) -> None:
        """Raises BrokenResourceError when the client is gone."""
        if self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            await self._stream.send_all(data)
        else:
            await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        """The end of the body; of an empty one, if nothing began. Idempotent."""
        if self._http.our_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self.begin(200, PLAIN)
            self._put(h11.EndOfMessage())
        await self.flush()

    async def unless_left(self, run: Callable[[], Awaitable[None]]) -> None:
        """Runs `run`, and cancels it when the client leaves; as with Go's server, one that closes its side has left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            await run()
            nursery.cancel_scope.cancel()

    async def _watch(self, running: trio.CancelScope) -> None:
        taken = 0
        while taken < PIPELINED_BYTES_MAX:
            data = await _receive(self._stream)
            if not data:
                running.cancel()
                return
            taken += len(data)
            self._http.receive_data(data)

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.began = True
        named = [*headers, ("server", f"wf-mock/{__version__}")]
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in named]
        self._put(h11.Response(status_code=status, headers=encoded, reason=HTTPStatus(status).phrase))

    def _put(self, event: h11.Event) -> None:
        self._waiting += self._http.send(event) or b""


Answer = Callable[[Request, Responder], Awaitable[bool]]
"""Answers one request; False: the connection is over."""


@attrs.define(eq=False)
class Connection:
    """Serves requests one after the other until either side has had enough."""

    stream: DeadlineStream
    answer: Answer
    on_malformed: Callable[[], None]
    _http: h11.Connection = attrs.field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    )

    async def serve(self) -> None:
        """Raises nothing of HTTP's; BrokenResourceError when the client is gone in the middle."""
        while True:
            try:
                request = await self._next_request()
            except h11.RemoteProtocolError as error:
                self.on_malformed()
                await self._refuse(error.error_status_hint)
                return
            if request is None:
                return
            responder = Responder(self._http, self.stream, request.method == "HEAD")
            if not await self.answer(request, responder):
                return
            if self._http.our_state is h11.MUST_CLOSE or self._http.their_state is h11.MUST_CLOSE:
                await self.stream.finish(LINGER_S)
                return
            self._http.start_next_cycle()

    async def _next_request(self) -> Request | None:
        """None when the client has no more, or is too slow. Raises h11.RemoteProtocolError."""
        head: h11.Request | None = None
        body = bytearray()
        with trio.move_on_after(IDLE_S) as idle:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                        await self.stream.send_all(self._http.send(go_on) or b"")
                    self._http.receive_data(await _receive(self.stream))
                    idle.deadline = trio.current_time() + IDLE_S
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > BODY_BYTES_MAX:
                        raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    return _request(head, bytes(body))
                else:
                    return None
        return None

    async def _refuse(self, status: int) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            responder = Responder(self._http, self.stream, head_only=False)
            await responder.whole(status, str(status).encode(), PLAIN, [("connection", "close")])
            await self.stream.finish(LINGER_S)


async def _receive(stream: DeadlineStream) -> bytes:
    """Empty at the end, however it came."""
    try:
        return bytes(await stream.receive_some(READ_BYTES))
    except trio.BrokenResourceError:
        return b""


def _request(head: h11.Request, body: bytes) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    path = head.target.partition(b"?")[0].decode("latin-1")
    return Request(head.method.decode("latin-1"), path, headers, body)
