"""A session and the client that it answers, in the client's dialect: what the runtime brings becomes the pieces of a
reply."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import attrs
import msgspec
import trio

from actors.catalog import ModelRef
from actors.reply_line import AtOnce, Begun, Ended, Item, ReplyLine, Spoken
from actors.resume import DETAIL
from actors.session import Session
from engine.domain.errors import EngineError, Overloaded, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, GenerationEnd, ResumeRules, Seam
from engine.domain.runtime import Read
from engine.domain.synthesis import CouncilReport
from policies.resume import TOKENS_MAX
from transport.wire.dialects.field_names import in_words_of
from transport.wire.dialects.reply import Asked, Reply, ReplyEnd, ReplyFacts
from transport.wire.dialects.wf_field import has_record, seam_fields, with_wf
from web.handles import PUSH, Engine
from web.lens.tracing import trace_headers

KEEP_ALIVE_S: Final = 15.0
_USAGE: Final = b'"usage":'  # in JSON text a quote is escaped, so it is the field
SSE_TYPE: Final = "text/event-stream"
SSE_KEEP_ALIVE: Final = b": keep-alive\n\n"
REFUSAL_BYTES_MAX: Final = 64 * 1024
NATIVE: Final = "native"
TRANSLATED: Final = "translated"

_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ConnectionCut(Exception):
    """The runtime's stream broke off and we may not invent its end: the connection is reset."""


@attrs.frozen
class Terms:
    """What a request's headers, or else the configuration, say of how it is answered. `scope` is the ASGI scope of the
    request, `traced` what its reply says of the trace."""

    passive: bool
    leave_s: float | None
    resume: ResumeRules | None
    scope: Any
    traced: dict[str, str] = attrs.field(factory=trace_headers)


@attrs.define(eq=False)
class Exchange:
    """A session and the caller it answers. `make_reply` takes whether the runtime speaks the dialect itself."""

    engine: Engine
    asked: Asked
    model: ModelRef
    session: Session
    line: ReplyLine
    make_reply: Callable[[bool, ReplyFacts], Reply]
    terms: Terms
    route: str
    began_us: int
    queue_ms: float | None = None  # null before the runtime answers
    overhead_ms: float | None = None
    report: CouncilReport | None = None  # of a council that has answered
    reply: Reply = attrs.field(init=False)
    _facts: ReplyFacts = attrs.field(init=False)
    _seams: list[Seam] = attrs.field(factory=list, init=False)
    _untold: Seam | None = attrs.field(default=None, init=False)  # the client has not heard of it yet
    _kept: list[Chunk] = attrs.field(factory=list, init=False)  # for a reply that may have to be translated midway
    _push: Callable[[bytes], bool] | None = attrs.field(default=None, init=False)  # the client's connection has one
    _said_s: float = attrs.field(default=0.0, init=False)  # when the last words went out, on the clock of trio

    @property
    def passive(self) -> bool:
        return self.terms.passive

    async def begin(self) -> Begun | Ended:
        """The head of the runtime's answer, or the end when there is none. Cancelled here, nothing is lost."""
        first = await self.line.next()
        assert isinstance(first, Begun | Ended)
        if isinstance(first, Begun):
            self._facts = self._new_facts()
            self.reply = self.make_reply(self.route == NATIVE, self._facts)
            self.queue_ms = self.session.waited_ms
            head_ms = (self.engine.clock() - self.began_us) / 1000
            self.overhead_ms = max(0.0, head_ms - self.queue_ms - first.waited_ms)
        return first

    def blank(self) -> Reply:
        """A reply that nothing was said with yet."""
        return self.make_reply(self.route == NATIVE, self._new_facts())

    def _new_facts(self) -> ReplyFacts:
        return ReplyFacts(secrets.token_hex(12), time.time(), self.asked.model)

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

    # ── a stream ──

    async def pieces(self) -> AsyncIterator[bytes]:
        """The reply as it comes, to its terminal frame, less what went out at once meanwhile."""
        keep_alive = self._keep_alive(self.reply)
        self._push = self.terms.scope.get(PUSH)
        at_once = None if self._push is None else self._say_at_once
        while True:
            item = await (self._next_within(KEEP_ALIVE_S, at_once) if keep_alive else self.line.next(at_once))
            if item is None:
                yield keep_alive
                continue
            spoken = self.spoken(item)
            if spoken.error is not None:
                yield spoken.data + self._failed(spoken.error)  # what the dialect could say before it is said
                return
            if spoken.data:
                yield spoken.data
            if isinstance(item, Ended):
                return

    async def _next_within(self, limit_s: float, at_once: AtOnce | None) -> Item | None:
        """None when nothing was said for `limit_s`."""
        self._said_s = trio.current_time()
        while (until_s := self._said_s + limit_s) > trio.current_time():
            with trio.move_on_at(until_s):
                return await self.line.next(at_once)
        return None

    def _say_at_once(self, item: Begun | Chunk | Read) -> Spoken | None:
        """To the client without a detour through the task that answers it, which sleeps meanwhile."""
        spoken = self.spoken(item)
        if spoken.error is not None:
            return spoken
        if spoken.data:
            assert self._push is not None
            if not self._push(spoken.data):
                return spoken
            self._said_s = trio.current_time()
        return None

    async def late_pieces(self, again: Callable[[], Exchange]) -> AsyncIterator[bytes]:
        """The same for a client that has its head already, before the runtime had a word. What goes wrong is told
        within the stream. `again` asks anew, translated, where the runtime has no such path."""
        exchange, blank = self, self.blank()
        keep_alive = self._keep_alive(blank)
        yield keep_alive  # the head goes out with it, also where it is empty
        while True:
            with trio.move_on_after(KEEP_ALIVE_S) as wait:
                first = await exchange.begin()
            if wait.cancelled_caught:
                if keep_alive:
                    yield keep_alive
                continue
            if isinstance(first, Ended):
                yield blank.fail(exchange.failure(first))
                return
            if first.status in (None, 200):
                break
            body = await exchange.refusal_body()
            if not exchange.concede(first):
                ended = await exchange.line.next()
                assert isinstance(ended, Ended)
                yield _within(blank, body) or blank.fail(exchange.failure(ended))
                return
            try:
                exchange = again()
            except EngineError as error:
                yield blank.fail(error)
                return
        async with aclosing(exchange.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    def _keep_alive(self, reply: Reply) -> bytes:
        """Only streams of events have a word that says nothing."""
        return SSE_KEEP_ALIVE if reply.content_type.startswith(SSE_TYPE) and not self.passive else b""

    # ── what is said ──

    def spoken(self, item: Item) -> Spoken:
        """What `item` is to the client; with an error when its dialect cannot say all of it. The session ends then."""
        if isinstance(item, Spoken):
            return item
        if self.passive and isinstance(item, Read):
            return Spoken(item.data)
        said = []
        try:
            match item:
                case Chunk():
                    said.append(self._fed(item))
                case Read():
                    for chunk in item.chunks:
                        said.append(self._fed(chunk))  # noqa: PERF401
                case Ended():
                    said.append(self._last(item))
                case _:
                    raise AssertionError("a stream begins once")
        except EngineError as error:
            self.session.stop(EndReason.ERROR, error)
            return Spoken(b"".join(said), error)
        return Spoken(b"".join(said))

    def _fed(self, chunk: Chunk) -> bytes:
        if chunk.seam is not None:
            self._sew(chunk.seam)
        elif self.terms.resume is not None and not self._seams and self.route == NATIVE:
            self._keep(chunk)
        data = self.reply.feed(chunk)
        if self._untold is None or not self.asked.stream or not has_record(data):
            return data
        seam, self._untold = self._untold, None
        return with_wf(data, {"seam": seam_fields(seam)})

    def _keep(self, chunk: Chunk) -> None:
        if (chunk.text or chunk.logprobs or chunk.tool_calls) and len(self._kept) <= TOKENS_MAX:
            self._kept.append(msgspec.structs.replace(chunk, raw=b""))

    def _sew(self, seam: Seam) -> None:
        """From here on the reply is made by us, whoever made it so far: who goes on was asked in other words."""
        self._seams.append(seam)
        self._untold = seam
        if self.route == NATIVE and len(self._seams) == 1:
            self.reply = self.make_reply(False, self._facts)
            for chunk in self._kept:
                self.reply.feed(chunk)  # the client has it
            self._kept.clear()

    def _last(self, ended: Ended) -> bytes:
        if self.passive:
            if not self.line.whole:
                raise ConnectionCut
            return b""
        end = ended.end if ended.error is None else None
        if end is None and ended.reason is EndReason.ABORTED:
            end = GenerationEnd(EndReason.ABORTED)  # somebody pressed stop: the answer is what there is
        if end is None:
            return self._failed(self.failure(ended))
        times = self.session.reply_end(end)
        data = self.reply.finish(
            ReplyEnd(end, times.tokens, times.total_ms, times.load_ms, times.prompt_ms, times.generation_ms)
        )
        fields = self._seams_told() if self._seams else {}
        if end.report is not None:
            fields["council"] = self.report = end.report
        if end.prompt_tokens is None and (self.route != NATIVE or self._seams) and _USAGE in data:
            fields["uncounted"] = ["prompt_tokens"]  # nobody counted them; these dialects must have a number there: 0
        return with_wf(data, fields, last=True) if fields else data

    def _failed(self, error: EngineError) -> bytes:
        data, why = self.reply.fail(error), error.details.get(DETAIL)
        fields = (self._seams_told() if self._seams else {}) | ({} if why is None else {DETAIL: why})
        return with_wf(data, fields, last=True) if fields else data

    def failure(self, ended: Ended) -> EngineError:
        """Why there is no good end, in the words of the client's dialect."""
        return in_words_of(self.asked, failure_of(ended))

    def _seams_told(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"resumed": len(self._seams)}
        if not self.asked.stream:
            fields["seams"] = [seam_fields(seam) for seam in self._seams]
        elif self._untold is not None:
            fields["seam"] = seam_fields(self._untold)
        return fields

    def headers(self) -> dict[str, str]:
        known = {"x-wf-queue-ms": self.queue_ms, "x-wf-overhead-ms": self.overhead_ms}
        return (
            decided(self.model, self.route)
            | {"x-wf-lens": "passive" if self.passive else "active", "x-wf-session": self.session.id}
            | {name: f"{ms:.1f}" for name, ms in known.items() if ms is not None}
            | council_headers(self.report)
            | self.terms.traced
        )


def council_headers(report: CouncilReport | None) -> dict[str, str]:
    """How a council came to a whole answer; of a streamed one its last record tells."""
    if report is None:
        return {}
    told = {"method": report.method.value, "chosen": report.chosen, "confidence": report.confidence}
    figures = {"agreement": report.agreement.mean, "members": len(report.members)}
    return {
        f"x-wf-council-{name}": f"{value:.3f}" if isinstance(value, float) else str(value)
        for name, value in (told | figures).items()
        if value is not None
    }


def decided(model: ModelRef, route: str) -> dict[str, str]:
    """The headers that say who answers."""
    return {"x-wf-model": model.name, "x-wf-runtime": model.runtime.name, "x-wf-route": route}


def failure_of(ended: Ended) -> EngineError:
    """Why a session ended without its runtime's end."""
    if ended.error is not None:
        return ended.error
    if ended.reason is EndReason.SHUTDOWN:
        return Overloaded("the engine is stopping", retry_after_s=1)
    return UpstreamTruncated("the answer was stopped")


def _within(reply: Reply, body: bytes) -> bytes:
    """A refusal as a record of a stream; empty when it is no JSON object."""
    said = body.replace(b"\n", b" ").replace(b"\r", b" ").strip()
    try:
        _object_decoder.decode(said)
    except (msgspec.DecodeError, RecursionError):
        return b""
    return b"data: " + said + b"\n\n" if reply.content_type.startswith(SSE_TYPE) else said + b"\n"
