"""The frames WebSocket: `ws://…/ws` on trio-websocket, behind our own accept loop.

One connection: the request head is read and judged here, before any WebSocket code sees it; trio-websocket does the
handshake, reading, ping, pong and the peer's close; data frames go around it through a `PushStream`. Whatever ends a
connection asks for it with `close`, which never waits. The goodbye is then said in one place: one close frame, a
bounded wait for the peer, the socket shut. trio-websocket alone would wait for a silent peer for ever.

Close codes: 1001 shutdown, 1002 or 1007 bytes that are no WebSocket frame or no UTF-8, 1008 too many messages, 1009 a
message too large, 1011 an error of ours or no answer to a ping, 4008 too slow.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs

import attrs
import h11
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from actors.frame_client import Sink
from actors.frame_history import Since, parse_since
from engine.domain.errors import EngineError, InvalidRequest, NotFound, Overloaded
from policies.access import FRAMES_PROTOCOL, AccessRules, RequestHead, check
from transport.listen import Acceptor, DeadlineStream, ListenCounters, ListenLimits
from transport.push_stream import PushStream
from transport.wire.frames import SCHEMA_VERSION

PATH: Final = b"/ws"
READ_BYTES: Final = 4096
RETRY_AFTER_S: Final = 1

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_CLOSE_FRAME: Final = 1006  # never on the wire: the connection ended without a goodbye
INVALID_PAYLOAD: Final = 1007
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
NOT_UNDERSTOOD: Final = (PROTOCOL_ERROR, INVALID_PAYLOAD, TOO_BIG)  # the library's own verdicts, more may be unread


class FrameClient(Protocol):
    """One connection as the hub sees it."""

    def receive(self, message: bytes) -> None:
        """One client message, UTF-8. Answers come through the sink. Never raises."""

    def refuse(self, error: EngineError) -> None:
        """A message that is none; the client is told. Never raises."""

    def detach(self) -> None:
        """The connection is over. Idempotent."""


class FrameSource(Protocol):
    """Where frames come from: the hub."""

    def connect(self, sink: Sink, since: Since | None) -> FrameClient:
        """A new client. Pushes hello at once, and what it missed `since`, else a snapshot."""


@attrs.frozen
class FrameLimits:
    """`listen.write_timeout_s` is the stall limit: so long may a write stand still. `close_write_s`: how long a close
    frame may take to go out. `close_wait_s`: how long the peer may take to answer it."""

    listen: ListenLimits = attrs.field(factory=lambda: ListenLimits(connections_max=1024))
    handshake_s: float = 5.0
    head_bytes_max: int = 16 * 1024
    message_bytes_max: int = 64 * 1024
    messages_per_s: int = 100
    ping_interval_s: float = 5.0
    pong_timeout_s: float = 10.0
    close_write_s: float = 1.0
    close_wait_s: float = 2.0


@attrs.define(eq=False)
class FrameCounters:
    """`refused` by HTTP status at the upgrade; `closed` by the close code that went out, 1006 when none did. An echo of
    the peer's own code counts under that code."""

    listen: ListenCounters = attrs.field(factory=ListenCounters)
    active: int = 0
    opened: int = 0
    refused: dict[int, int] = attrs.field(factory=dict)
    closed: dict[int, int] = attrs.field(factory=dict)
    messages_in: int = 0  # pings of the peer too
    pushes: int = 0
    pushes_refused: int = 0  # earlier bytes were still on their way
    pong_timeouts: int = 0

    def count_closed(self, code: int) -> None:
        self.closed[code] = self.closed.get(code, 0) + 1

    def count_refused(self, status: int) -> None:
        self.refused[status] = self.refused.get(status, 0) + 1


@attrs.define(eq=False)
class _Session:
    """One open connection; the hub's `Sink`."""

    stream: PushStream
    since: Since | None
    limits: FrameLimits
    counters: FrameCounters
    ending: trio.Event = attrs.field(factory=trio.Event)
    code: int | None = None
    reason: str = ""
    read_out: trio.Event = attrs.field(factory=trio.Event)  # the library reads no more
    peer_closed: bool = False  # its close frame came, so nothing else will
    open: bool = False  # past the handshake
    _second_began: float = 0.0
    _in_this_second: int = 0

    def push(self, frame: bytes) -> bool:
        if self.ending.is_set() or not self.stream.push(frame):
            self.counters.pushes_refused += 1
            return False
        self.counters.pushes += 1
        return True

    def close(self, code: int | None, reason: str) -> None:
        """The first one counts. None: there is nobody left to say goodbye to."""
        if not self.ending.is_set():
            self.code, self.reason = code, reason
            self.ending.set()

    def count_message(self) -> None:
        """A message or ping came in; too many in one second end the connection."""
        self.counters.messages_in += 1
        now = trio.current_time()
        if now - self._second_began >= 1.0:
            self._second_began, self._in_this_second = now, 0
        self._in_this_second += 1
        if self._in_this_second > self.limits.messages_per_s:
            self.close(POLICY_VIOLATION, f"more than {self.limits.messages_per_s} messages per second")


@attrs.define(eq=False)
class FrameEndpoint:
    """The frames WebSocket on one listener. `run` serves until `stop_accepting`, or until cancelled."""

    source: FrameSource
    listener: trio.abc.Listener[trio.SocketStream] | trio.abc.Listener[trio.abc.HalfCloseableStream]
    rules: AccessRules
    limits: FrameLimits = attrs.field(factory=FrameLimits)
    counters: FrameCounters = attrs.field(factory=FrameCounters)
    _acceptor: Acceptor = attrs.field(init=False)
    _sessions: set[_Session] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        self._acceptor = Acceptor(self.listener, self.handle, self.limits.listen, self.counters.listen)

    def stop_accepting(self) -> None:
        """Close the listener and every connection with 1001; `run` returns when they are gone."""
        self._acceptor.stop_accepting()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `stop_accepting`. Cancelled: every connection is reset at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_all_when_draining)
            await self._acceptor.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    async def handle(self, stream: DeadlineStream, overflow: bool) -> None:
        """One connection from its first byte to its last. `overflow` ones are refused with 503."""
        deadline = trio.current_time() + self.limits.handshake_s
        with trio.move_on_at(deadline) as opening:
            try:
                received, head = await _read_head(stream, self.limits.head_bytes_max)
                refusal = self._judge(head, overflow)
                since = None if refusal else _since(head.target)
            except InvalidRequest as malformed:
                refusal = malformed
        if opening.cancelled_caught:
            self.counters.count_refused(408)
        elif refusal is not None:
            self.counters.count_refused(refusal.status)
            await stream.send_all(_rejection(refusal))
            await stream.finish(self.limits.close_wait_s)
        else:
            await self._serve(stream, received, since, deadline)

    def _judge(self, head: RequestHead, overflow: bool) -> EngineError | None:
        refusal = check(self.rules, head)
        if refusal is not None:
            return refusal
        if head.target.partition(b"?")[0] != PATH:
            return NotFound(f"the frames are at {PATH.decode()}")
        if not _is_upgrade(head):
            return InvalidRequest("frames come over a WebSocket; this request is no upgrade to one (RFC 6455)")
        if not all(value.isascii() for _, value in head.headers):
            return InvalidRequest("the headers of an upgrade must be ASCII")  # the library decodes them as such
        return Overloaded("all connections are taken", retry_after_s=RETRY_AFTER_S) if overflow else None

    async def _serve(self, stream: DeadlineStream, received: bytes, since: Since | None, deadline: float) -> None:
        push = PushStream(stream, received)
        session = _Session(push, since, self.limits, self.counters)
        try:
            async with trio.open_nursery() as nursery:
                ws = await self._handshake(nursery, push, deadline)
                if ws is not None:
                    await self._converse(nursery, ws, session)
                nursery.cancel_scope.cancel()
        except Exception:
            if push.close_code is None:
                await self._say_goodbye(push, INTERNAL_ERROR, "internal error")
                raise
            # The library tripped over its own answer to a late ping (trio-websocket#184) or to the peer's close frame.
            # Either way the peer has heard us, and nothing is lost.
            session.peer_closed = True
        finally:
            if session.open:
                self.counters.active -= 1
                self.counters.count_closed(push.close_code or NO_CLOSE_FRAME)
        if not session.peer_closed:
            await stream.finish(self.limits.close_wait_s)

    async def _handshake(self, nursery: trio.Nursery, push: PushStream, deadline: float) -> WebSocketConnection | None:
        """None when the library refused the upgrade (it has answered then), the time was up, or the peer left."""
        with trio.move_on_at(deadline) as opening:
            push.on_release = opening.cancel  # the library tells nobody that it gave up
            try:
                request = await wrap_server_stream(nursery, push, max_message_size=self.limits.message_bytes_max)
                chosen = FRAMES_PROTOCOL if FRAMES_PROTOCOL in request.proposed_subprotocols else None
                return await request.accept(subprotocol=chosen)
            except ConnectionClosed:
                return None
        self.counters.count_refused(408 if trio.current_time() >= deadline else 400)
        return None

    async def _converse(self, nursery: trio.Nursery, ws: WebSocketConnection, session: _Session) -> None:
        """From hello to goodbye. When it returns, nothing more will be written."""
        session.open = True
        session.stream.on_ping = session.count_message
        session.stream.open(nursery)
        self.counters.opened += 1
        self.counters.active += 1
        self._sessions.add(session)
        try:
            client = self.source.connect(session, session.since)
            if self._acceptor.draining.is_set():  # since the handshake began
                session.close(GOING_AWAY, "shutting down")
            try:
                nursery.start_soon(self._read, ws, session, client)
                nursery.start_soon(self._ping, ws, session)
                await session.ending.wait()
            finally:
                client.detach()
        finally:
            self._sessions.discard(session)
        if session.code is not None:
            await self._say_goodbye(session.stream, session.code, session.reason)
            if session.stream.close_code is not None:
                with trio.move_on_after(self.limits.close_wait_s):
                    await session.read_out.wait()

    async def _read(self, ws: WebSocketConnection, session: _Session, client: FrameClient) -> None:
        """Always reading: the library answers pings and closes only while its messages are taken."""
        try:
            while True:
                message = await ws.get_message()
                if session.ending.is_set():  # goodbye is said; what still comes is only read to reach the answer
                    continue
                session.count_message()
                if isinstance(message, bytes):
                    if not session.ending.is_set():
                        client.refuse(InvalidRequest("bad message: it is binary; send JSON as a text message"))
                elif len(data := message.encode()) > self.limits.message_bytes_max:  # the library counts characters
                    session.close(TOO_BIG, f"message over {self.limits.message_bytes_max} bytes")
                elif not session.ending.is_set():
                    client.receive(data)
        except ConnectionClosed as closed:
            code = closed.reason.code if closed.reason else NO_CLOSE_FRAME
            session.peer_closed = session.ending.is_set() or code not in (NO_CLOSE_FRAME, *NOT_UNDERSTOOD)
            session.read_out.set()
            # Over bytes it cannot read, the library closes without a word. Else it spoke, or there is nobody to hear.
            session.close(code if code in (PROTOCOL_ERROR, INVALID_PAYLOAD) else None, "not a valid WebSocket frame")

    async def _ping(self, ws: WebSocketConnection, session: _Session) -> None:
        try:
            while True:
                await trio.sleep(self.limits.ping_interval_s)
                with trio.move_on_after(self.limits.pong_timeout_s) as waiting:
                    await ws.ping()
                if waiting.cancelled_caught:
                    self.counters.pong_timeouts += 1
                    session.close(INTERNAL_ERROR, "no answer to a ping")
                    return
        except ConnectionClosed:
            pass  # the reader ends the session

    async def _say_goodbye(self, push: PushStream, code: int, reason: str) -> None:
        """A close frame, if the peer reads it in time."""
        with trio.move_on_after(self.limits.close_write_s):
            try:
                await push.close(code, reason)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _close_all_when_draining(self) -> None:
        await self._acceptor.draining.wait()
        for session in self._sessions:
            session.close(GOING_AWAY, "shutting down")


def _is_upgrade(head: RequestHead) -> bool:
    """Which version of the protocol, the library looks at."""
    connection = {word.strip().lower() for value in head.values("connection") for word in value.split(",")}
    upgrades = [value.lower() for value in head.values("upgrade")] == ["websocket"] and "upgrade" in connection
    return head.method == "GET" and upgrades and bool(head.values("sec-websocket-key"))


def _since(target: bytes) -> Since | None:
    """`?since=<boot>.<frame>` of a request target, None without. Raises InvalidRequest."""
    asked = parse_qs(target.partition(b"?")[2].decode("ascii", "replace"), keep_blank_values=True).get("since")
    if asked is None:
        return None
    since = parse_since(asked[-1])
    if since is None:
        raise InvalidRequest("since: give <boot>.<frame>, the boot of hello and the number of a frame")
    return since


async def _read_head(stream: DeadlineStream, bytes_max: int) -> tuple[bytes, RequestHead]:
    """The bytes of one request head, and what they say. Raises InvalidRequest; BrokenResourceError: the peer left."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=bytes_max)
    received = b""
    try:
        while not isinstance(request := parser.next_event(), h11.Request):
            data = bytes(await stream.receive_some(READ_BYTES))
            if not data:
                raise trio.BrokenResourceError("the peer left")
            received += data
            parser.receive_data(data)
        alone = isinstance(parser.next_event(), h11.EndOfMessage) and not parser.trailing_data[0]
    except h11.RemoteProtocolError:
        raise InvalidRequest("the HTTP request is malformed or too large") from None
    if not alone:
        raise InvalidRequest("nothing may follow an upgrade request before it is answered")
    return received, RequestHead(request.method.decode("ascii"), request.target, tuple(request.headers))


def _rejection(error: EngineError) -> bytes:
    """A whole HTTP response with the native error body."""
    body = msgspec.json.encode(error.body())
    head = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        f"x-schema-version: {SCHEMA_VERSION}",
        f"x-request-id: {secrets.token_hex(8)}",
    ]
    if error.status == 401:
        head.append("www-authenticate: Bearer")
    if "retry_after_s" in error.details:
        head.append(f"retry-after: {error.details['retry_after_s']}")
    return "\r\n".join([*head, "", ""]).encode("ascii") + body
