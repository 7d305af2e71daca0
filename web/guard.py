"""HTTP on hypercorn and quart-trio, behind our own accept loop, with what those libraries need guarded.

hypercorn as it comes dies of one request (a WebSocket upgrade with a byte above 127), speaks h2c unasked and leaves
connections open for ever when the app ended badly; quart-trio cancels itself inside the last send, so that the server
never gets to close. Both are pinned exactly, because what is subclassed here was never promised to stay.

    Acceptor → HttpConnection (hypercorn's TCPServer) → Http1Protocol (its H11Protocol, in http1.py) → Gate → the app

The limits on bodies are the app's own (MAX_CONTENT_LENGTH, BODY_TIMEOUT). hypercorn's `read_timeout` stays off: it
takes a client that listens to a stream for an idle one.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

import attrs
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr
from quart_trio import QuartTrio

from engine.domain.errors import EngineError, InternalError, Overloaded
from policies.access import AccessRules, RequestHead, check
from transport.listen import Acceptor, DeadlineStream, describe
from transport.wire.frames import SCHEMA_VERSION
from web.handles import PUSH
from web.http1 import Http1Protocol, HttpCounters, HttpLimits, error_response
from web.lens.exchange import ConnectionCut

__all__ = ["HttpCounters", "HttpLimits", "HttpServer"]

KEEP_ALIVE_MORE_S: Final = 2.0  # common clients drop an idle connection after 5 s: not both at the same moment
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
ALWAYS_ANSWERED: Final = ("GET", "/health")  # also when every connection is taken
RETRY_AFTER_S: Final = 1
SENDS_PER_TURN: Final = 2  # of an answer before other tasks run, where no send waits; more saves little and delays them

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

logger = logging.getLogger("wf.http")


@attrs.define(eq=False)
class HttpServer:
    """The app on one listener. `run` serves until `stop_accepting`, or until cancelled."""

    app: QuartTrio
    listener: trio.abc.Listener[trio.SocketStream] | trio.abc.Listener[trio.abc.HalfCloseableStream]
    rules: AccessRules
    limits: HttpLimits = attrs.field(factory=HttpLimits)
    counters: HttpCounters = attrs.field(factory=HttpCounters)
    frames_url: str | None = None  # where frames are, for who asks for them here
    _acceptor: Acceptor = attrs.field(init=False)
    _context: WorkerContext = attrs.field(init=False, factory=lambda: WorkerContext(None))

    def __attrs_post_init__(self) -> None:
        self._acceptor = Acceptor(self.listener, self.handle, self.limits.listen, self.counters.listen)

    def stop_accepting(self) -> None:
        """Close the listener and the idle connections; running responses get `drain_s`, then `run` returns."""
        self._acceptor.stop_accepting()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the app, serve, stop the app. Cancelled: every connection is reset at once."""
        async with _lifespan(self.app), trio.open_nursery() as nursery:
            nursery.start_soon(self._close_idle_when_draining)
            await self._acceptor.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    async def handle(self, stream: DeadlineStream, overflow: bool) -> None:
        """One connection; `overflow` ones are told to come back later."""
        gate = Gate(self.app, self.rules, self.counters, self.limits.listen.write_timeout_s, overflow)
        await HttpConnection(gate, self.limits, self.counters, self._context, stream, self.frames_url).run()

    async def _close_idle_when_draining(self) -> None:
        await self._acceptor.draining.wait()
        await self._context.terminated.set()


@asynccontextmanager
async def _lifespan(app: QuartTrio) -> AsyncIterator[None]:
    """What quart-trio's own lifespan does: background tasks get a nursery, startup and shutdown functions are run."""
    async with trio.open_nursery() as nursery:
        app.nursery = nursery
        await app.startup()
        try:
            yield
        finally:
            await app.shutdown()  # gives background tasks BACKGROUND_TASK_SHUTDOWN_TIMEOUT


class HttpConnection(TCPServer):
    """hypercorn's connection over a DeadlineStream. Closing is ours: end every task of the connection, say that nothing
    more comes, and read on for a moment. hypercorn waits for its reader, which a full queue can keep for ever."""

    def __init__(
        self,
        gate: Gate,
        limits: HttpLimits,
        counters: HttpCounters,
        context: WorkerContext,
        stream: DeadlineStream,
        frames_url: str | None,
    ) -> None:
        super().__init__(partial(_serve_asgi, gate), _config(limits), context, {}, cast("Any", stream))
        self.limits = limits
        self.counters = counters
        self.frames_url = frames_url
        self._deadline_stream = stream
        self._tasks = trio.CancelScope()
        self._watch = trio.CancelScope()
        self._idle_wait = trio.CancelScope()
        self._answered = False  # it was idle before: what comes next is not its first request
        self._idle_until = math.inf  # on the clock of trio; infinity while a request is under way
        self._torn = b""  # the rest of what was pushed; nothing may go out before it
        self._gate = gate

    async def run(self) -> None:
        with self._tasks:
            async with TaskGroup() as group:
                self._task_group = group
                protocol = Http1Protocol(self, *_addresses(self._deadline_stream))
                self.protocol, self._gate.protocol = cast("Any", protocol), protocol
                self._set_idle(True)
                group.spawn(self._close_when_idle)
                await self._read_data()
                self._watch.cancel()  # the peer is gone: nothing to wait for but the app
        await self._deadline_stream.finish(self.limits.linger_s)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self.write(event.data)
        elif isinstance(event, Updated):
            self._set_idle(event.idle)
        else:
            await super().protocol_send(event)

    def _set_idle(self, idle: bool) -> None:
        limit_s = self.limits.head_s + (KEEP_ALIVE_MORE_S if self._answered else 0.0)
        self._idle_until = trio.current_time() + limit_s if idle else math.inf
        self._idle_wait.deadline = self._idle_until
        self._answered = True

    async def _close_when_idle(self) -> None:
        """End the connection once it was idle for `head_s`, or idle when the engine stops. One task for its whole life:
        hypercorn starts one for each pause between two requests, which is a tenth of a small answer."""
        with self._watch:
            while not self.context.terminated.is_set():
                self._idle_wait = trio.CancelScope(deadline=self._idle_until)
                with self._idle_wait:
                    await self.context.terminated.wait()
                if trio.current_time() >= self._idle_until:  # else a request came in the turn in which the time ran out
                    break
            if self._idle_until < math.inf:
                await self._initiate_server_close()

    async def write(self, data: bytes) -> None:
        """Write all of it, or end the connection: no other bytes ever follow a part of `data`.

        What the kernel takes at once costs no scope, no lock and no checkpoint. The rest waits for the peer, as long as
        the stream's write deadline lets it. Cancelled here: not before `data` is out or the connection is over.
        """
        try:
            sent = 0 if self._torn or self.send_lock.locked() else self._deadline_stream.send_nowait(data)
            if sent < len(data) or self._torn:
                await self._write_waiting(memoryview(data)[sent:])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # An app that takes nothing off its queue cannot be told that its client is gone.
            with trio.move_on_after(self.limits.listen.write_timeout_s, shield=True):
                await self.protocol.handle(Closed())
            await self._close()  # the reader need not notice: it may be waiting for this answer's end

    def push(self, data: bytes) -> bool:
        """Write what the kernel takes of `data` now; the rest is written before anything else, by a task of its own.
        False where nothing can go out now: something waits to be written already, or the connection is over."""
        if self._torn or self.send_lock.locked():
            return False
        try:
            sent = self._deadline_stream.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False  # `write` finds the same, and ends the connection
        if 0 < sent < len(data):
            self._torn = data[sent:]
            self._task_group.spawn(self.write, b"")
        return sent > 0

    async def _write_waiting(self, data: memoryview) -> None:
        with trio.CancelScope(shield=True):
            if self.send_lock.locked():
                await self.send_lock.acquire()
            else:
                self.send_lock.acquire_nowait()  # not a checkpoint: what comes before `data` may just have gone out
            try:
                if self._torn:
                    torn, self._torn = self._torn, b""
                    await self._deadline_stream.send_all(torn)
                await self._deadline_stream.send_all(data)
            finally:
                self.send_lock.release()

    async def _close(self) -> None:
        self._tasks.cancel()

    async def _initiate_server_close(self) -> None:
        await self.protocol.handle(Closed())
        await self._close()


@attrs.define(eq=False)
class Gate:
    """An ASGI layer around the app: who may call, what is said when there is no room, one id for every request, and an
    answer when the app itself failed."""

    app: AsgiApp | QuartTrio
    rules: AccessRules
    counters: HttpCounters
    write_timeout_s: float
    overflow: bool = False
    protocol: Http1Protocol | None = None  # of the connection

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.counters.requests += 1
        head = RequestHead(scope["method"], scope["raw_path"], tuple(scope["headers"]))
        answer = _Answer(send, _request_id(head), scope["path"], self.write_timeout_s, self.overflow)
        # The app takes the id from the header, so that its log, its error bodies and the response agree.
        own = [(name, value) for name, value in head.headers if name != b"x-request-id"]
        scope["headers"] = [*own, (b"x-request-id", answer.request_id.encode("ascii"))]
        error = check(self.rules, head) or self._no_room(scope)
        if error is not None:
            self.counters.refused[error.code] = self.counters.refused.get(error.code, 0) + 1
            answer.last |= head.has_body  # we do not wait for what is still to come of it
            await answer.refuse(error, receive)
            return
        failed = False
        if self.protocol is not None:
            scope[PUSH] = partial(self.protocol.push_piece, self.protocol.stream)
        try:
            await self.app(scope, receive, answer.send)  # type: ignore[arg-type]
        except* ConnectionCut:
            self.counters.cut += 1
            logger.info("request %s is passive: its runtime broke off, and so does its answer", answer.request_id)
            failed = True
        except* Exception as group:
            self.counters.crashed += 1
            logger.error("request %s failed: %s", answer.request_id, describe(group))
            failed = True
        finally:
            scope.pop(PUSH, None)  # it holds what holds the scope
        if failed and not answer.started:  # once started, the missing end of the body tells the client
            answer.last = True
            await answer.refuse(InternalError("the engine failed on this request; its log has the request id"), receive)

    def _no_room(self, scope: dict[str, Any]) -> EngineError | None:
        if not self.overflow or (scope["method"], scope["path"]) == ALWAYS_ANSWERED:
            return None
        return Overloaded("all connections are taken", retry_after_s=RETRY_AFTER_S)


@attrs.define(eq=False)
class _Answer:
    """The way back for one request; the `last` one of its connection says so."""

    _send: Send
    request_id: str
    path: str
    _write_timeout_s: float
    last: bool
    started: bool = False
    _sends: int = 0

    async def send(self, message: dict[str, Any]) -> None:
        """Cancelled before, never in the middle. quart-trio cancels itself inside its last send, because that one tells
        its own reader "disconnected"; and hypercorn, cancelled inside a send, no longer knows what it has sent."""
        self._sends += 1
        if self._sends % SENDS_PER_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if message.get("more_body"):  # one write, which shields itself, and nothing after it
            await self._send(message)
        elif message["type"] == "http.response.start":  # the same
            self._set_own_headers(message)
            await self._send(message)
            self.started = True
        else:
            with trio.move_on_after(self._write_timeout_s, shield=True):  # the write itself has its own deadline
                await self._send(message)

    def _set_own_headers(self, message: dict[str, Any]) -> None:
        headers = message["headers"] = list(message.get("headers", ()))
        names = {name.lower() for name, _ in headers}
        if b"x-request-id" not in names:
            headers.append((b"x-request-id", self.request_id.encode("ascii")))
        if b"x-schema-version" not in names:
            headers.append((b"x-schema-version", SCHEMA_VERSION.encode("ascii")))
        if self.last:
            headers.append((b"connection", b"close"))

    async def refuse(self, error: EngineError, receive: Receive) -> None:
        """Answer instead of the app, which also means: take the body off hypercorn's queue, or it stands still."""
        headers, body = error_response(error, self.request_id, self.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, receive)
            await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
            nursery.cancel_scope.cancel()


def _config(limits: HttpLimits) -> Config:
    """hypercorn's settings; all of its own logging is off, since it writes heads and tracebacks."""
    config = Config()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.head_bytes_max
    config.keep_alive_timeout = limits.head_s
    config.read_timeout = None
    return config


def _addresses(stream: DeadlineStream) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """Both ends of the connection as ASGI names them; None where there is no socket."""
    if stream.socket is None:
        return None, None
    sock = stream.socket
    try:
        peer = sock.getpeername()
    except OSError:  # gone already
        return None, None
    return parse_socket_addr(sock.family, peer), parse_socket_addr(sock.family, sock.getsockname())


async def _serve_asgi(gate: Gate, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
    """hypercorn hands an app two helpers for threads besides; nothing here uses them."""
    await gate(scope, receive, send)


async def _discard(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _request_id(head: RequestHead) -> str:
    given = [value for name, value in head.headers if name == b"x-request-id"]
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return secrets.token_hex(8)
