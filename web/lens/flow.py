"""One request of the lens, whatever its dialect: understood, resolved, run as a session, answered as it comes.

The dialect modules (transport/wire/dialects) say what was asked and how a reply looks; here is the way between them. A
runtime that speaks the client's dialect gets the request itself, any other one gets it translated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from typing import Final, Protocol

import attrs
import trio
from quart import Response, request

from actors.catalog import ModelRef
from actors.lease import Tell
from actors.reply_line import Ended, ReplyLine, Spoken
from actors.resume import DETAIL
from actors.session import SessionRequest
from engine.domain.errors import EngineError, InvalidRequest
from engine.domain.events import ModelChanged
from engine.domain.generation import Dialect, EndReason, Origin, ResumeRules
from engine.domain.models import Capability, ModelState
from engine.domain.runtime import Embedder, Embeddings, EmbedRequest, Forwarder, ForwardRequest
from policies.leaving import leave_after_s
from policies.resume import rules_for
from policies.selection import Wants, wants_of
from transport.wire.dialects.field_names import in_words_of
from transport.wire.dialects.openai_asks import AS_ONE
from transport.wire.dialects.reply import Asked, Reply, ReplyFacts, needs
from transport.wire.dialects.wf_field import with_wf
from web.handles import Engine, on_leave
from web.lens.exchange import NATIVE, TRANSLATED, ConnectionCut, Exchange, Terms, decided, failure_of
from web.lens.tracing import trace_headers

__all__ = [
    "UNLOAD",
    "ConnectionCut",
    "DialectModule",
    "aged_headers",
    "answer",
    "call_headers",
    "embed",
    "explained",
    "failure_of",
    "is_passive",
    "listed",
    "look_up",
    "refusal",
    "resolve",
    "tell_of",
]

LENS_HEADER: Final = "x-wf-lens"
UNLOAD: Final = (0, "0", "0s")  # a keep_alive that takes a model out
LEAVE_HEADER: Final = "x-wf-on-disconnect"
RESUME_HEADER: Final = "x-wf-resume"
AGE_HEADER: Final = "x-wf-age-ms"


ErrorBody = Callable[[EngineError], bytes]


class DialectModule(Protocol):
    """What a module of transport/wire/dialects has."""

    @property
    def NATIVE_PATHS(self) -> Collection[str]: ...  # what a runtime can be asked directly

    def parse(self, path: str, body: bytes) -> Asked: ...
    def reply_for(self, asked: Asked, native: bool, facts: ReplyFacts) -> Reply: ...
    def forward_body(self, asked: Asked, model: str, *, logprobs: bool = True) -> bytes: ...
    def error_body(self, error: EngineError) -> bytes: ...


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
    body = error_body(error)
    if DETAIL in error.details:
        body = with_wf(body, {name: error.details[name] for name in (DETAIL, "resumed")})
    return Response(body, status=error.status, content_type="application/json", headers=headers)


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
    found = look_up(engine, asked.model) if unload else resolve(engine, asked.model, _wants(asked))
    model = await found
    if asked.load_only and load_only is not None:
        return await engine.lens.calls.run(load_only(engine, asked, model))
    terms = _terms(engine)
    tried: list[tuple[ModelRef, EngineError]] = []
    ask = partial(_open, engine, dialect, origin, asked, model, terms)
    while True:
        exchange = ask()
        early_s = engine.lens.head_wait_s if asked.stream and not terms.passive else float("inf")
        with trio.move_on_after(early_s) as wait:
            first = await exchange.begin()
        if wait.cancelled_caught:
            return _streamed(exchange, exchange.late_pieces(ask), exchange.blank().content_type)
        if isinstance(first, Ended):
            if terms.passive or first.error is None:  # nobody stands in for one that was stopped
                raise exchange.failure(first)
            model = engine.providers.next_after(model, exchange.failure(first), _wants(asked), tried)
            ask = partial(_open, engine, dialect, origin, asked, model, terms)
            continue
        if first.status in (None, 200):
            break
        body = await exchange.refusal_body()
        if not exchange.concede(first):
            content_type = first.content_type or "application/json"
            headers = exchange.headers() | ({} if first.retry_after is None else {"retry-after": first.retry_after})
            return Response(body, status=first.status, content_type=content_type, headers=headers)
    content_type = first.content_type if terms.passive and first.content_type else exchange.reply.content_type
    if asked.stream:
        return _streamed(exchange, exchange.pieces(), content_type)
    return await _whole(exchange, content_type)


def _wants(asked: Asked) -> Wants:
    """What whoever stands in must be able to do."""
    return attrs.evolve(wants_of(asked.request), logprobs=asked.logprobs)


def _terms(engine: Engine) -> Terms:
    """Raises InvalidRequest for a header that says nothing."""
    passive, asked = is_passive(engine), request.headers.get(RESUME_HEADER)
    if passive and asked == "allow":
        raise InvalidRequest(f"{RESUME_HEADER}: passive changes no byte, so a broken answer stays broken")
    try:
        resume = rules_for(engine.lens.resume_enabled, engine.lens.resume, asked)
    except ValueError as error:
        raise InvalidRequest(f"{RESUME_HEADER}: {error}") from None
    leave_s = _leave_s(request.headers.get(LEAVE_HEADER) or engine.lens.on_disconnect)
    return Terms(passive, leave_s, None if passive else resume, request.scope)


def _open(
    engine: Engine, dialect: DialectModule, origin: Origin, asked: Asked, model: ModelRef, terms: Terms
) -> Exchange:
    """The session for the request, running."""
    passive, began_us = terms.passive, engine.clock()
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
    forward, at_once = None, False
    if native:
        own = model.info.name
        if not passive and _tells_more_at_once(asked, model):
            asked, at_once = attrs.evolve(asked, options=asked.options | {AS_ONE}), True
        if passive and asked.model not in (own, own.removesuffix(":latest")):
            raise InvalidRequest(f"{LENS_HEADER}: passive changes no byte, so the model must be called {own}")
        plain = None if passive or asked.logprobs else dialect.forward_body(asked, own, logprobs=False)
        sent = asked.body if passive else dialect.forward_body(asked, own)
        named = asked.model if passive else own
        tools = bool(asked.request.tools)
        forward = ForwardRequest(
            asked.dialect, asked.path, sent, named, plain, tools, as_it_comes=passive, at_once=at_once
        )
    elif fields := needs(asked):
        raise InvalidRequest(
            f"{', '.join(fields)}: {model.name} runs in {model.runtime.name}, which has no such thing",
            fields=list(fields),
        )
    if asked.logprobs and not native and _gives_none(model):
        raise InvalidRequest(f"logprobs: {model.name} in {model.runtime.name} gives no log-probabilities")
    line = ReplyLine()
    asked_of = attrs.evolve(
        asked.request,
        model=model.info.name,
        resume=_resumable(terms.resume, asked),
        logprobs_wanted=asked.logprobs,
    )
    try:
        session = engine.sessions.start(SessionRequest(model, asked_of, origin, reply=line, forward=forward))
    except InvalidRequest as error:
        raise in_words_of(asked, error) from None
    on_leave(terms.scope, line.leave)
    on_leave(terms.scope, partial(engine.sessions.leave, session, terms.leave_s))
    make_reply, route = partial(dialect.reply_for, asked), NATIVE if native else TRANSLATED
    return Exchange(engine, asked, model, session, line, make_reply, terms, route, began_us)


def _tells_more_at_once(asked: Asked, model: ModelRef) -> bool:
    """llama.cpp's streams have no log-probabilities of tokens that say nothing (the end, the marks around thinking),
    none beside tools, and others than its whole answers where a stop string ended the text. So a client that wants them
    in one piece gets that piece, although nothing of it is seen before."""
    llama_cpp = model.runtime.kind == "llama_cpp" or model.info.details.get("owned_by") == "llamacpp"
    return llama_cpp and asked.dialect is Dialect.OPENAI and asked.logprobs and not asked.stream


def _resumable(rules: ResumeRules | None, asked: Asked) -> ResumeRules | None:
    """Whoever goes on is asked in our words, so what has none stands in the way."""
    if rules is None or not (fields := needs(asked)):
        return rules
    return attrs.evolve(rules, refused=f"{', '.join(fields)}: cannot be asked again in other words")


def _streamed(exchange: Exchange, pieces: AsyncIterator[bytes], content_type: str) -> Response:
    response = Response(
        pieces,
        content_type=content_type,
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"} | exchange.headers(),
    )
    response.timeout = None  # an answer takes as long as it takes
    return response


async def _whole(exchange: Exchange, content_type: str) -> Response:
    """One body. What goes wrong on the way still has a status."""
    body = bytearray()
    while not isinstance(item := await exchange.line.next(), Ended):
        body += _wholly(exchange.spoken(item))
    broken = not exchange.line.whole if exchange.passive else item.end is None and item.reason is not EndReason.ABORTED
    if broken:
        raise exchange.failure(item)
    body += _wholly(exchange.spoken(item))
    return Response(bytes(body), content_type=content_type, headers=exchange.headers())


def _wholly(spoken: Spoken) -> bytes:
    if spoken.error is not None:
        raise spoken.error
    return spoken.data


async def explained(engine: Engine, error_body: ErrorBody, call: Awaitable[Response]) -> Response:
    """The response to a call that is no answer with text; a refusal is in its dialect too, also when the engine stops
    meanwhile."""
    try:
        return await engine.lens.calls.run(call)
    except EngineError as error:
        return refusal(error_body, error)


@attrs.frozen
class Embedded:
    """`load_ms` is what loading the model took, null where nobody can tell."""

    found: Embeddings
    load_ms: float | None
    headers: dict[str, str]


async def embed(engine: Engine, name: str, asked: EmbedRequest) -> Embedded:
    """Vectors by the model that the client calls `name`. Raises InvalidRequest when its runtime makes none."""
    model = await resolve(engine, name)
    if not isinstance(model.runtime, Embedder):
        raise InvalidRequest(f"{model.name} runs in {model.runtime.name}, which makes no embeddings; use another model")
    began_us = engine.clock()
    async with engine.pool.lease(model, tell_of(engine, model)) as grant:
        granted_us = engine.clock()
        found = await model.runtime.embed(attrs.evolve(asked, model=model.info.name))
        answered_us = engine.clock()
    queue_ms = (granted_us - began_us) / 1000
    headers = call_headers(engine, model, TRANSLATED, began_us, queue_ms, answered_us - granted_us)
    return Embedded(found, grant.load_ms, headers)


def call_headers(
    engine: Engine, model: ModelRef, route: str, began_us: int, queue_ms: float, runtime_us: int
) -> dict[str, str]:
    """Of the reply to a call that is no session: `queue_ms` were spent on waiting for the model and its load,
    `runtime_us` with the runtime, the rest since `began_us` was ours."""
    overhead_ms = max(0.0, (engine.clock() - began_us - runtime_us) / 1000 - queue_ms)
    timed = {"x-wf-queue-ms": f"{queue_ms:.1f}", "x-wf-overhead-ms": f"{overhead_ms:.1f}"}
    return decided(model, route) | timed | trace_headers()


def _gives_none(model: ModelRef) -> bool:
    """Of other servers it shows in their answers only."""
    told = model.runtime.kind in ("embedded", "synthetic", "ollama")
    return told and Capability.LOGPROBS not in model.info.capabilities


async def resolve(engine: Engine, name: str, wants: Wants | None = None) -> ModelRef:
    """The model that a client wants something of, by an alias or by its name; with `pull: auto` it is downloaded."""
    return await engine.providers.resolve(engine.lens.aliases.get(name, name), wants)


async def look_up(engine: Engine, name: str) -> ModelRef:
    """The model that a client only speaks of."""
    return await engine.catalog.resolve(engine.lens.aliases.get(name, name))


async def listed(engine: Engine, content_type: str, write: Callable[[], bytes]) -> Response:
    """A list that `write` makes of the catalog. The runtimes are asked again where they were not just now."""
    headers = await aged_headers(engine)
    body = engine.lens.written.body(request.path, engine.catalog.rounds, write)
    return Response(body, content_type=content_type, headers=headers)


async def aged_headers(engine: Engine) -> dict[str, str]:
    """Of a list: how old it is at most."""
    return {AGE_HEADER: f"{1000 * await engine.catalog.recent():.0f}"}


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


def _leave_s(text: str) -> float | None:
    try:
        return leave_after_s(text)
    except ValueError as error:
        raise InvalidRequest(f"{LEAVE_HEADER}: {error}") from None
