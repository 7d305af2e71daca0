"""ModelStream: drives one runtime stream to its end and passes its tokens on, stamped by the runtime on arrival."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import attrs
import msgspec
import trio

from actors.kernel import Outlet
from actors.reply_line import Begun, ReplySink
from actors.resume import Elsewhere, Resumption
from engine.domain.alignment import TokenLedger
from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.events import AnswerResumed, SessionSignal, TokenBatch
from engine.domain.generation import Chunk, GenerationEnd, GenerationRequest, Seam, StreamRef, Token
from engine.domain.runtime import ChunksTogether, Forwarder, ForwardRequest, Read, Runtime

T = TypeVar("T")

BATCH_TOKENS_MAX: Final = 256
ARRIVALS_MAX: Final = 4_096  # looked at to tell a model's own pace from that of a buffer
CAUGHT_UP_S: Final = 0.0005  # of waiting for the runtime; what lies in our buffers comes sooner
DEADLINE_SLACK: Final = 0.01  # of a limit


@attrs.frozen
class Timeouts:
    """Seconds a caller waits for a runtime: until its first record, between records, for a load."""

    first_token_s: float = 300.0
    progress_s: float = 120.0
    load_s: float = 300.0


@attrs.define(eq=False)
class ModelStream:
    """`tokens`, `first_us` and `last_us` (arrivals of the first and the last token) may be read while it runs.

    With `reply`, everything the runtime says is handed to it too, before the next is read. With `forward`, that is what
    the runtime is asked, in its own dialect, in place of `request`; should that answer break off, the rest of it is
    asked for with `request`. `elsewhere` lends the models of `request.resume`."""

    ref: StreamRef
    runtime: Runtime
    request: GenerationRequest
    signals: Outlet[SessionSignal]
    timeouts: Timeouts
    reply: ReplySink | None = None
    forward: ForwardRequest | None = None
    elsewhere: Elsewhere | None = None
    tokens: int = 0
    first_us: int | None = None
    last_us: int | None = None
    arrivals: list[tuple[int, int]] = attrs.field(factory=list)  # µs and tokens of the first reads with any
    _ledger: TokenLedger = attrs.field(factory=TokenLedger)
    _behind: bool = False  # we were held up: what arrives is what piled up meanwhile, and no cadence
    _waited: bool = False  # for the item at hand: it came by itself, and with it the backlog is over
    _limit_s: float = 0.0
    _patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _asked: Runtime = attrs.field(default=attrs.Factory(lambda self: self.runtime, takes_self=True), init=False)
    _resumption: Resumption | None = attrs.field(default=None, init=False)
    _seam: Seam | None = attrs.field(default=None, init=False)  # of the attempt that runs
    _sewn_attempt: int = attrs.field(default=0, init=False)
    _after_seam: bool = attrs.field(default=False, init=False)

    async def run(self) -> GenerationEnd:
        """Until the runtime's terminal record; where `request.resume` allows it, that of whoever went on.

        Raises UpstreamTruncated when the stream stops without one, UpstreamTimeout when no token comes in time, and
        whatever the runtime raises. Cancelled here: the runtime is stopped before this returns."""
        self._resumption = self._may_resume()
        first = partial(self._generate, self.runtime, self.request)
        try:
            return await self._patiently(first if self.forward is None else partial(self._forward, self.forward))
        except EngineError as error:
            if self._resumption is None or not self.tokens:
                raise
            return await self._resumption.go_on(error, self._go_on)

    @property
    def resumed(self) -> int:
        """Seams so far."""
        return 0 if self._resumption is None else self._resumption.resumed

    def _may_resume(self) -> Resumption | None:
        rules, load_s = self.request.resume, self.timeouts.load_s
        if rules is None:
            return None
        ref = self.ref
        return Resumption(rules, self.runtime, self.request, ref.stream_id, ref.model, load_s, self.elsewhere)

    async def _patiently(self, ask: Callable[[], Awaitable[GenerationEnd | None]]) -> GenerationEnd:
        self._limit_s = self.timeouts.first_token_s
        self._patience = trio.CancelScope(deadline=trio.current_time() + self._limit_s)
        with self._patience:
            end = await ask()
            if end is not None:
                return end
            raise UpstreamTruncated(f"{self._asked.name} broke off without its final record", tokens=self.tokens)
        raise UpstreamTimeout(f"{self._asked.name} gave no token for {self._limit_s:g} s", limit_s=self._limit_s)

    async def _go_on(self, runtime: Runtime, request: GenerationRequest, seam: Seam) -> GenerationEnd:
        """The rest of an answer that broke off."""
        self._seam = seam
        return await self._patiently(partial(self._generate, runtime, request))

    async def _generate(self, runtime: Runtime, request: GenerationRequest) -> GenerationEnd | None:
        self._asked = runtime
        asked_s = trio.current_time()
        async with runtime.generate(request) as chunks:
            if self._seam is None:
                await self._hand_on(Begun(1000 * (trio.current_time() - asked_s)))
            together = chunks if isinstance(chunks, ChunksTogether) else None
            while (chunk := await self._next(chunks)) is not None:
                if self._seam is not None:
                    chunk = await self._sewn(chunk)
                read = (chunk,) if together is None else (chunk, *together.rest())
                await self._take(read, read)
                if read[-1].end is not None:
                    return read[-1].end
        return None

    async def _sewn(self, chunk: Chunk) -> Chunk:
        """The first chunk of a continuation carries the seam before it."""
        if self._seam is None or self._resumption is None or self._seam.attempt == self._sewn_attempt:
            return chunk
        self._sewn_attempt = self._seam.attempt
        self._resumption.resumed += 1
        self._after_seam = True
        told = AnswerResumed(self.ref.session_id, self._seam)
        if not self.signals.try_put(told):
            await self._held(self.signals.put(told))
        return msgspec.structs.replace(chunk, seam=self._seam)

    async def _forward(self, asked: ForwardRequest) -> GenerationEnd | None:
        """To the end of the body: bytes after the terminal record are the caller's too."""
        assert isinstance(self.runtime, Forwarder)
        end: GenerationEnd | None = None
        asked_s = trio.current_time()
        if asked.at_once:
            self._patience.deadline = math.inf  # how long such an answer may take, the runtime says
        async with self.runtime.forward(asked) as answer:
            waited_ms = 1000 * (trio.current_time() - asked_s)
            await self._hand_on(Begun(waited_ms, answer.status, answer.content_type, answer.retry_after))
            while (read := await self._next(answer.reads)) is not None:
                self._is_whole(read.ends_body)
                await self._take(read.chunks, (read,))
                for chunk in read.chunks:
                    end = chunk.end or end
            self._is_whole(True)
            if answer.status != 200:
                raise _refused(self.runtime.name, answer.status)
        # Whether the runtime cut the prompt it does not say, and the client's request was not ours to change.
        return None if end is None else attrs.evolve(end, prompt_tokens_dropped=None)

    async def _next(self, items: AsyncIterator[T]) -> T | None:
        """The next item, None at the end. Once one had to be waited for, nothing is piled up any more; its own gap
        still holds the time that we were held up."""
        began = trio.current_time() if self._behind else 0.0
        try:
            item: T | None = await items.__anext__()  # `anext` with a default makes an object that passes each step on
        except StopAsyncIteration:
            item = None
        if self._behind:
            self._waited = trio.current_time() - began >= CAUGHT_UP_S
        return item

    def _is_whole(self, whole: bool) -> None:
        """Tell the caller whether the runtime's body has come to its own end: an error that it reports may be one."""
        if self.reply is not None:
            self.reply.whole = whole

    async def _take(self, chunks: Sequence[Chunk], items: Sequence[Chunk | Read]) -> None:
        """What came in one read: to the reply first, for whom somebody waits, then its tokens to the mapper. A read
        without a token is no progress. What came in it before a chunk that cannot be passed on is the reply's still;
        its bytes are not."""
        sound = next((index for index, chunk in enumerate(chunks) if not _is_unicode(chunk)), len(chunks))
        if unsound := sound < len(chunks):
            chunks = chunks[:sound]
            items = (Read(b"", tuple(chunks)),) if chunks else ()
        throttled = self._behind
        if self._waited:
            self._behind = self._waited = False
        if self.reply is not None:
            for item in items:
                await self._hand_on(item)
        if chunks:
            await self._pass_on([token for chunk in chunks for token in self._tokens(chunk, throttled)])
        if unsound:
            raise UpstreamProtocolError(f"{self.runtime.name} sent text that is not valid Unicode")

    async def _hand_on(self, item: Begun | Chunk | Read) -> None:
        if self.reply is not None and not self.reply.try_put(item):
            await self._held(self.reply.put(item))

    async def _held(self, wait: Awaitable[float]) -> None:
        """Waiting for room of our own is not the runtime's fault."""
        until, self._patience.deadline = self._patience.deadline, math.inf
        self._patience.deadline = until + await wait
        self._behind, self._waited = True, False

    def _tokens(self, chunk: Chunk, throttled: bool) -> tuple[Token, ...]:
        """`throttled`: we were held up before it came."""
        # How long it took to go on after a seam says nothing about the model either.
        tokens = self._ledger.take(chunk, throttled=throttled or self._after_seam)
        if self._resumption is not None:
            self._resumption.so_far.take(chunk, len(tokens))
        if tokens:
            self._after_seam = False
        return tokens

    async def _pass_on(self, tokens: Sequence[Token]) -> None:
        """The tokens of a read to the mapper."""
        if not tokens:
            return
        if self.first_us is None:
            self.first_us = tokens[0].t_us
        self.last_us = tokens[-1].t_us
        if len(self.arrivals) < ARRIVALS_MAX:
            self.arrivals.append((self.last_us, len(tokens)))
        for at in range(0, len(tokens), BATCH_TOKENS_MAX):
            batch = TokenBatch(self.ref, tuple(tokens[at : at + BATCH_TOKENS_MAX]))
            if not self.signals.try_put(batch):
                await self._held(self.signals.put(batch))
            self.tokens += len(batch.tokens)
        self._limit_s = self.timeouts.progress_s
        _extend(self._patience, self._limit_s)


def _extend(patience: trio.CancelScope, limit_s: float) -> None:
    """`limit_s` from now, or up to 1 % later: moving a deadline costs as much as the rest of a token's way through
    here, so it is not moved for every one."""
    until, slack_s = trio.current_time() + limit_s, limit_s * DEADLINE_SLACK
    if not until <= patience.deadline <= until + slack_s:
        patience.deadline = until + slack_s


def _is_unicode(chunk: Chunk) -> bool:
    """Half a surrogate pair is no text: it cannot be sent on. The decoder of records refuses them by itself."""
    if chunk.raw:
        return True
    texts = [chunk.text]
    for entry in chunk.logprobs:
        texts.append(entry.token)
        texts += [candidate.token for candidate in entry.top]
    text = "".join(texts)
    if text.isascii():  # as most are; known without a look
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(runtime: str, status: int) -> EngineError:
    """For the session's own end; the caller got the runtime's words."""
    message = f"{runtime} refused the request ({status})"
    if status == 404:
        return ModelNotFound(message, status=status)
    if status in (429, 503):
        return Overloaded(message, status=status)
    return InvalidRequest(message, status=status) if status < 500 else UpstreamProtocolError(message, status=status)
