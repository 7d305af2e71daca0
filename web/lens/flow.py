"""One request of the lens, whatever its dialect: understood, resolved, run as a session, answered as it comes.

The dialect modules (transport/wire/dialects) say what was asked and how a reply looks; here is the way between them. A
runtime that speaks the client's dialect gets the request itself, any other one gets it translated.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from typing import Final, Protocol

import attrs
import trio
from quart import Response, request

from actors.catalog import ModelRef
from actors.lease import Tell
from actors.reply_line import Begun, Ended, Item, ReplyLine
from actors.session import Session, SessionRequest
from engine.domain.errors import EngineError, InvalidRequest, Overloaded, UpstreamTruncated
from engine.domain.events import ModelChanged
from engine.domain.generation import Chunk, EndReason, GenerationEnd, Origin
from engine.domain.models import Capability, ModelState
from engine.domain.runtime import Embedder, Embeddings, EmbedRequest, Forwarder, ForwardRequest, Read
from policies.leaving import leave_after_s
from transport.wire.dialects.reply import Asked, Reply, ReplyEnd, ReplyFacts, needs
from web.handles import Engine, on_leave

LENS_HEADER: Final = "x-wf-lens"
UNLOAD: Final = (0, "0", "0s")  # a keep_alive that takes a model out
KEEP_ALIVE_S: Final = 15.0
SSE_KEEP_ALIVE: Final = b": keep-alive\n\n"
LEAVE_HEADER: Final = "x-wf-on-disconnect"
REFUSAL_BYTES_MAX: Final = 64 * 1024
NATIVE: Final = "native"
_TRACE: Final = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


ErrorBody = Callable[[EngineError], bytes]


class DialectModule(Protocol):
    """What a module of transport/wire/dialects has."""

    @property
    def NATIVE_PATHS(self) -> Collection[str]: ...  # what a runtime can be asked directly

    def parse(self, path: str, body: bytes) -> Asked: ...
    def reply_for(self, asked: Asked, native: bool, facts: ReplyFacts) -> Reply: ...
    def forward_body(self, asked: Asked, model: str, *, logprobs: bool = True) -> bytes: ...
    def error_body(self, error: EngineError) -> bytes: ...


class ConnectionCut(Exception):
    """The runtime's stream broke off and we may not invent its end: the connection is reset."""


@attrs.define(eq=False)
class Exchange:
    """A session and the caller it answers."""

    engine: Engine
    asked: Asked
    model: ModelRef
    session: Session
    line: ReplyLine
    make_reply: Callable[[ReplyFacts], Reply]
    passive: bool
    route: str
    began_us: int
    queue_ms: float = 0.0
    overhead_ms: float = 0.0
    reply: Reply = attrs.field(init=False)

    async def begin(self) -> Begun | Ended:
        """The head of the runtime's answer, or the end when there is none."""
        first = await self.line.next()
        assert isinstance(first, Begun | Ended)
        if isinstance(first, Begun):
            self.reply = self.make_reply(ReplyFacts(secrets.token_hex(12), time.time(), self.asked.model))
            waited_ms = self.session.waited_ms
            head_ms = (self.engine.clock() - self.began_us) / 1000
            self.queue_ms = waited_ms
            self.overhead_ms = max(0.0, head_ms - waited_ms - first.waited_ms)
        return first

    async def refusal_body(self) -> bytes:
        """What the runtime says of a request that it refuses, in the dialect that it shares with the client."""
        body = bytearray()
        while not isinstance(item := await self.line.next(), Ended):
            if isinstance(item, Read) and len(body) < REFUSAL_BYTES_MAX:
                body += item.data
        return bytes(body)

    def concede(self, first: Begun) -> bool:
        """True for an older server without the path: it is remembered, and the request can go out again, translated."""
        json = (first.content_type or "").startswith("application/json")
        if self.passive or self.route != NATIVE or first.status not in (404, 405) or json:
            return False
        self.engine.lens.without_path.add((self.model.runtime.name, self.asked.path))
        return True

    async def pieces(self) -> AsyncIterator[bytes]:
        """The reply as it comes, to its terminal frame."""
        while True:
            with trio.move_on_after(KEEP_ALIVE_S) as wait:
                item = await self.line.next()
            if wait.cancelled_caught:
                if self.reply.content_type.startswith("text/event-stream") and not self.passive:
                    yield SSE_KEEP_ALIVE
                continue
            try:
                data = self.said(item)
            except EngineError as error:
                yield self.reply.fail(error)
                return
            if data:
                yield data
            if isinstance(item, Ended):
                return

    def said(self, item: Item) -> bytes:
        """What `item` is to the client. Raises EngineError when its dialect cannot say it; the session ends with it."""
        try:
            match item:
                case Chunk():
                    return self.reply.feed(item)
                case Read():
                    return item.data if self.passive else b"".join(map(self.reply.feed, item.chunks))
                case Ended():
                    return self._last(item)
                case _:
                    raise AssertionError("a stream begins once")
        except EngineError as error:
            self.session.stop(EndReason.ERROR, error)
            raise

    def _last(self, ended: Ended) -> bytes:
        if self.passive:
            if not self.line.whole:
                raise ConnectionCut
            return b""
        end = ended.end if ended.error is None else None
        if end is None and ended.reason is EndReason.ABORTED:
            end = GenerationEnd(EndReason.ABORTED)  # somebody pressed stop: the answer is what there is
        if end is None:
            return self.reply.fail(failure_of(ended))
        times = self.session.reply_end(end)
        return self.reply.finish(
            ReplyEnd(end, times.tokens, times.total_ms, times.load_ms, times.prompt_ms, times.generation_ms)
        )

    def headers(self) -> dict[str, str]:
        return {
            "x-wf-model": self.model.name,
            "x-wf-runtime": self.model.runtime.name,
            "x-wf-route": self.route,
            "x-wf-lens": "passive" if self.passive else "active",
            "x-wf-session": self.session.id,
            "x-wf-queue-ms": f"{self.queue_ms:.1f}",
            "x-wf-overhead-ms": f"{self.overhead_ms:.1f}",
        } | _trace_headers()


LoadOnly = Callable[[Engine, Asked, ModelRef], Awaitable[Response]]


async def answer(
    engine: Engine,
    dialect: DialectModule,
    origin: Origin,
    *,
    load_only: LoadOnly | None = None,
    prepare: Callable[[Asked], Asked] = lambda asked: asked,
) -> Response:
    """The response to the request at hand, in its dialect, whatever happens. `load_only` answers those that ask for no
    text, `prepare` may change what was asked."""
    try:
        return await _answer(engine, dialect, origin, load_only, prepare)
    except EngineError as error:
        return refusal(dialect.error_body, error)


def refusal(error_body: ErrorBody, error: EngineError) -> Response:
    """A whole answer that says why not."""
    headers = {"retry-after": str(error.details["retry_after_s"])} if "retry_after_s" in error.details else {}
    return Response(error_body(error), status=error.status, content_type="application/json", headers=headers)


def failure_of(ended: Ended) -> EngineError:
    """Why a session ended without its runtime's end."""
    if ended.error is not None:
        return ended.error
    if ended.reason is EndReason.SHUTDOWN:
        return Overloaded("the engine is stopping", retry_after_s=1)
    return UpstreamTruncated("the answer was stopped")


async def _answer(
    engine: Engine,
    dialect: DialectModule,
    origin: Origin,
    load_only: LoadOnly | None,
    prepare: Callable[[Asked], Asked],
) -> Response:
    body = await request.get_data(as_text=False)
    assert isinstance(body, bytes)
    asked = prepare(dialect.parse(request.path, body))
    unload = asked.load_only and asked.request.keep_alive in UNLOAD
    model = await (look_up if unload else resolve)(engine, asked.model)
    if asked.load_only and load_only is not None:
        return await load_only(engine, asked, model)
    while True:
        exchange = _open(engine, dialect, origin, asked, model, engine.clock())
        first = await exchange.begin()
        if isinstance(first, Ended):
            raise failure_of(first)
        if first.status in (None, 200):
            break
        body = await exchange.refusal_body()
        if not exchange.concede(first):
            content_type = first.content_type or "application/json"
            headers = exchange.headers() | ({} if first.retry_after is None else {"retry-after": first.retry_after})
            return Response(body, status=first.status, content_type=content_type, headers=headers)
    return _streamed(exchange, first) if asked.stream else await _whole(exchange, first)


def _open(
    engine: Engine, dialect: DialectModule, origin: Origin, asked: Asked, model: ModelRef, began_us: int
) -> Exchange:
    """The session for the request, running."""
    leave_s = _leave_s(request.headers.get(LEAVE_HEADER) or engine.lens.on_disconnect)
    passive = is_passive(engine)
    native = (
        asked.path in dialect.NATIVE_PATHS
        and (passive or (model.runtime.name, asked.path) not in engine.lens.without_path)
        and isinstance(model.runtime, Forwarder)
        and asked.dialect in model.runtime.dialects
    )
    if passive and not native:
        raise InvalidRequest(
            f"{LENS_HEADER}: passive needs a runtime that speaks {asked.dialect} itself; {model.runtime.name} does not"
        )
    forward = None
    if native:
        own = model.info.name
        if passive and asked.model not in (own, own.removesuffix(":latest")):
            raise InvalidRequest(f"{LENS_HEADER}: passive changes no byte, so the model must be called {own}")
        plain = None if passive or asked.logprobs else dialect.forward_body(asked, own, logprobs=False)
        sent = asked.body if passive else dialect.forward_body(asked, own)
        named = asked.model if passive else own
        forward = ForwardRequest(asked.dialect, asked.path, sent, named, plain, bool(asked.request.tools))
    elif fields := needs(asked):
        raise InvalidRequest(
            f"{', '.join(fields)}: {model.name} runs in {model.runtime.name}, which has no such thing",
            fields=list(fields),
        )
    if asked.logprobs and not native and _gives_none(model):
        raise InvalidRequest(f"logprobs: {model.name} in {model.runtime.name} gives no log-probabilities")
    line = ReplyLine()
    asked_of = attrs.evolve(asked.request, model=model.info.name)
    session = engine.sessions.start(SessionRequest(model, asked_of, origin, reply=line, forward=forward))
    on_leave(request.scope, line.leave)
    on_leave(request.scope, partial(engine.sessions.leave, session, leave_s))
    route = NATIVE if native else "translated"
    return Exchange(
        engine, asked, model, session, line, partial(dialect.reply_for, asked, native), passive, route, began_us
    )


def _streamed(exchange: Exchange, first: Begun) -> Response:
    content_type = first.content_type if exchange.passive and first.content_type else exchange.reply.content_type
    response = Response(
        exchange.pieces(),
        content_type=content_type,
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"} | exchange.headers(),
    )
    response.timeout = None  # an answer takes as long as it takes
    return response


async def _whole(exchange: Exchange, first: Begun) -> Response:
    """One body. What goes wrong on the way still has a status."""
    body = bytearray()
    while not isinstance(item := await exchange.line.next(), Ended):
        body += exchange.said(item)
    broken = not exchange.line.whole if exchange.passive else item.end is None and item.reason is not EndReason.ABORTED
    if broken:
        raise failure_of(item)
    body += exchange.said(item)
    content_type = first.content_type if exchange.passive and first.content_type else exchange.reply.content_type
    return Response(bytes(body), content_type=content_type, headers=exchange.headers())


async def explained(error_body: ErrorBody, call: Awaitable[Response]) -> Response:
    """The response to a call that is no answer with text; a refusal is in its dialect too."""
    try:
        return await call
    except EngineError as error:
        return refusal(error_body, error)


async def embed(engine: Engine, name: str, asked: EmbedRequest) -> tuple[Embeddings, float | None]:
    """Vectors by the model that the client calls `name`, and what loading it took in ms (null: nobody can tell). Raises
    InvalidRequest when its runtime makes none."""
    model = await resolve(engine, name)
    if not isinstance(model.runtime, Embedder):
        raise InvalidRequest(f"{model.name} runs in {model.runtime.name}, which makes no embeddings")
    async with engine.pool.lease(model, tell_of(engine, model)) as grant:
        return await model.runtime.embed(attrs.evolve(asked, model=model.info.name)), grant.load_ms


def _gives_none(model: ModelRef) -> bool:
    """Of other servers it shows in their answers only."""
    told = model.runtime.kind in ("embedded", "synthetic", "ollama")
    return told and Capability.LOGPROBS not in model.info.capabilities


async def resolve(engine: Engine, name: str) -> ModelRef:
    """The model that a client wants something of, by an alias or by its name; with `pull: auto` it is downloaded."""
    return await engine.pulls.resolve(engine.lens.aliases.get(name, name), explicit=False)


async def look_up(engine: Engine, name: str) -> ModelRef:
    """The model that a client only speaks of."""
    return await engine.catalog.resolve(engine.lens.aliases.get(name, name))


def tell_of(engine: Engine, model: ModelRef) -> Tell:
    """News of a model that no session asked for."""

    async def tell(state: ModelState, position: int | None, reason: str | None) -> None:
        await engine.signals.put(ModelChanged(None, model.name, state, position=position, reason=reason))

    return tell


def is_passive(engine: Engine) -> bool:
    asked = request.headers.get(LENS_HEADER, engine.lens.mode)
    if asked not in ("active", "passive"):
        raise InvalidRequest(f"{LENS_HEADER}: active or passive")
    return asked == "passive"


def _trace_headers() -> dict[str, str]:
    """The caller's trace goes on, with a span of our own."""
    found = _TRACE.fullmatch(request.headers.get("traceparent", ""))
    return {} if found is None else {"traceparent": f"00-{found[1]}-{secrets.token_hex(8)}-{found[2]}"}


def _leave_s(text: str) -> float | None:
    try:
        return leave_after_s(text)
    except ValueError as error:
        raise InvalidRequest(f"{LEAVE_HEADER}: {error}") from None
