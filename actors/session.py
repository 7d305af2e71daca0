"""Sessions: one per request. The session task sits outside the scope it cancels, so it can always tell the end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs
import trio

from actors.catalog import ModelRef
from actors.council import Council, Member
from actors.kernel import Outlet
from actors.lease import PoolHandle
from actors.model_use import STREAMING, ModelUse, refusal_of
from actors.reply_line import ReplyLine, ReplySink
from actors.stream import Timeouts
from actors.transcript import Transcript
from engine.domain.energy import EnergyParams
from engine.domain.ensemble import EnsembleParams
from engine.domain.errors import EngineError, InternalError, Overloaded, SessionNotFound, UpstreamTruncated
from engine.domain.events import AnswerResumed, ModelChanged, SessionClosed, SessionOpened, SessionSignal
from engine.domain.generation import Clock, EndReason, GenerationEnd, GenerationRequest, Origin, Seam, StreamRef
from engine.domain.models import ModelState
from engine.domain.runtime import ForwardRequest

RETRY_AFTER_S: Final = 1
RETOLD_US: Final = 5_000_000  # ends this recent may still have been in the mailboxes of a stage that crashed
ENDED_MAX: Final = 4_096  # records of ended sessions kept for a later /stop or /stream

logger = logging.getLogger("wf.session")


@attrs.frozen
class SessionRequest:
    """What somebody asks of a model or a council. `request.model` is the runtime's own name for `model`."""

    model: ModelRef
    request: GenerationRequest
    origin: Origin
    reply: ReplyLine | None = None  # of a caller who answers in a dialect of his own
    forward: ForwardRequest | None = None  # ask the runtime this, in its own dialect
    again: Callable[[EngineError], float | None] | None = None  # s until it is asked once more, where it may be
    instead: Callable[[EngineError], ModelRef] | None = None  # who answers where it could not begin to; or raises

    @property
    def mode(self) -> str:
        return "single" if self.model.seats is None else self.model.seats.mode

    @property
    def models(self) -> tuple[str, ...]:
        """The public names of those who are asked."""
        return (self.model.name,) if self.model.seats is None else tuple(m.name for m in self.model.seats.members)

    @property
    def here(self) -> tuple[ModelRef, ...]:
        """Those of them that take turns in the pool."""
        asked = (self.model,) if self.model.seats is None else self.model.seats.members
        return tuple(model for model in asked if not model.satellite)

    def refuse_unanswerable(self) -> None:
        """Raises InvalidRequest where none of those who are asked can do what is asked, as far as they know that
        without a model in memory. What is forwarded, its runtime judges itself."""
        if self.forward is not None:
            return
        asked = (self.model,) if self.model.seats is None else self.model.seats.members
        refusals = [refusal for model in asked if (refusal := refusal_of(model, self.request)) is not None]
        if len(refusals) == len(asked):
            raise refusals[0]

    @property
    def dropped_models(self) -> tuple[str, ...]:
        return () if self.model.seats is None else self.model.seats.dropped


@attrs.frozen
class Constants:
    """Of the maths, published with every session."""

    energy: EnergyParams
    ensemble: EnsembleParams


@attrs.frozen
class SessionReport:
    """What `/stop` says about a session; times in ms, `stop_latency_ms` null unless it was stopped."""

    session_id: str
    state: str  # queued | loading | waiting | streaming | ended
    reason: EndReason | None
    tokens_generated: int
    duration_ms: float
    stop_latency_ms: float | None


@attrs.frozen
class ReplyTimes:
    """What a reply says of its generation; ms, null where there was nothing to measure. `prompt_ms` is from having the
    model to the first token: waiting for it and loading it are not in it."""

    tokens: int
    total_ms: float
    load_ms: float | None
    prompt_ms: float | None
    generation_ms: float | None


@attrs.define(eq=False)
class Session:
    """Exactly one SessionOpened first and one SessionClosed last, whatever happens in between."""

    id: str
    asked: SessionRequest
    pool: PoolHandle
    signals: Outlet[SessionSignal]
    clock: Clock
    constants: Constants
    timeouts: Timeouts
    find: Callable[[str], ModelRef] | None = None  # the model of a public name
    reason: EndReason | None = None
    closed: trio.Event = attrs.field(factory=trio.Event)
    opened_us: int = 0
    closed_us: int = 0
    stop_latency_ms: float | None = None
    _ended: bool = False
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _stop: tuple[EndReason, EngineError | None] | None = None
    _stop_us: int = 0
    _stand_ins: int = 0  # models that were asked in place of the first
    _work: ModelUse | Council = attrs.field(init=False)
    _told: SessionClosed | None = None

    def __attrs_post_init__(self) -> None:
        self.opened_us = self.clock()
        self._work = self._convene() if self.asked.model.seats is not None else self._use(0, self.asked.model)

    def _use(self, number: int, model: ModelRef, reply: ReplySink | None = None) -> ModelUse:
        """Stream `number` of this session."""
        return ModelUse(
            StreamRef(self.id, f"{self.id}:{number}", model.name),
            model,
            attrs.evolve(self.asked.request, model=model.info.name),
            self.pool,
            self.signals,
            self.clock,
            self.timeouts,
            reply or self.asked.reply,
            self.asked.forward,
            self.find,
        )

    def _convene(self) -> Council:
        asked, seats = self.asked, self.asked.model.seats
        assert seats is not None
        transcripts = [Transcript() for _ in seats.members]
        members = [
            Member(self._use(number, model, transcript), transcript)
            for number, (model, transcript) in enumerate(zip(seats.members, transcripts, strict=True))
        ]
        judge = None
        if seats.judge is not None:
            verdict = Transcript()
            judge = self._use(len(members), seats.judge, verdict), verdict
        council = Council(
            seats, tuple(members), judge, question_of(asked.request), self.pool, self.signals, self.clock, asked.reply
        )
        for member in members:
            member.transcript.claim = partial(council.claim, member)
        return council

    async def run(self) -> None:
        """To the end. Only the engine's own shutdown (after its grace) cancels this task; then nothing is told."""
        await self.signals.put(self._opened())
        end: GenerationEnd | None = None
        error: EngineError | None = None
        with self._scope:
            try:
                end = await self._answered()
            except EngineError as caught:
                error = caught
            except Exception as caught:
                logger.error("session %s failed: %s", self.id, type(caught).__name__, exc_info=caught)
                error = InternalError("the session failed inside the engine", session_id=self.id)
        self.closed_us = self.clock()
        self.reason, error = self._verdict(end, error)
        if self._stop is not None and end is None:
            self.stop_latency_ms = (self.closed_us - self._stop_us) / 1000
        self._ended = True
        if self.asked.reply is not None:
            self.asked.reply.end(self.reason, end, error)  # before the frames hear of it: it never waits for them
        self._told = self._closed(end, error)
        self._forget_prompt()
        await self.signals.put(self._told)
        self.closed.set()

    async def _answered(self) -> GenerationEnd:
        """By the model that was asked, or by who stands in for it. Nobody who has begun to speak is replaced."""
        while True:
            try:
                return await self._work.run()
            except EngineError as error:
                if self._work.tokens:
                    raise
                if await self._asked_again(error):
                    continue
                if self.asked.instead is None:
                    raise
                before, model = self.asked.model, self.asked.instead(error)
                self.asked = attrs.evolve(self.asked, model=model)
                self._work = self._use(0, model)
                self._stand_ins += 1
                told = f"{error.code}: {model.name} answers in its place"
                origin = Origin.SATELLITE if model.satellite else None
                seam = Seam(self._work.refs[0].stream_id, model.name, 0, 0, error.code, self._stand_ins, origin)
                await self.signals.put(ModelChanged(self.id, before.name, ModelState.FAILED, reason=told))
                await self.signals.put(AnswerResumed(self.id, seam))

    async def _asked_again(self, error: EngineError) -> bool:
        """The same model is to have another try, which is told; False where it is not."""
        pause_s = None if self.asked.again is None else self.asked.again(error)
        if pause_s is None:
            return False
        model, told = self.asked.model, f"{error.code}: it is asked again in {pause_s:.2f} s"
        await self.signals.put(ModelChanged(self.id, model.name, ModelState.QUEUED, reason=told))
        await trio.sleep(pause_s)
        self._work = self._use(0, model)
        return True

    async def tell_end_again(self) -> None:
        """For a stage that may have lost it; whoever has it already ignores it."""
        if self._told is not None:
            await self.signals.put(self._told)

    def stop(self, reason: EndReason, error: EngineError | None = None) -> None:
        """Cancel everything below the session: queue, load wait, runtime stream. Returns at once; `closed` tells the
        end."""
        if self._stop is None and self.state != "ended":
            self._stop, self._stop_us = (reason, error), self.clock()
            self._scope.cancel(reason=reason.value)

    def report(self) -> SessionReport:
        until_us = self.closed_us if self.state == "ended" else self.clock()
        duration_ms = (until_us - self.opened_us) / 1000
        state = "waiting" if self.state == STREAMING and self._work.answer.stream.first_us is None else self.state
        return SessionReport(self.id, state, self.reason, self._work.tokens, duration_ms, self.stop_latency_ms)

    @property
    def state(self) -> str:
        """queued, loading, streaming or ended."""
        return "ended" if self._ended else self._work.state

    @property
    def waited_ms(self) -> float:
        """For the model that answers: its turn, and its load."""
        return self._work.answer.waited_ms

    def reply_end(self, end: GenerationEnd) -> ReplyTimes:
        """The figures of a reply's last frame: of the model whose answer it is."""
        use = self._work.answer
        first_us, last_us = use.stream.first_us, use.stream.last_us
        return ReplyTimes(
            tokens=use.tokens,
            total_ms=(self.closed_us - self.opened_us) / 1000,
            load_ms=end.load_ms if end.load_ms is not None else use.load_ms,
            prompt_ms=None if first_us is None else max(0.0, (first_us - use.asked_us) / 1000 - use.waited_ms),
            generation_ms=None if first_us is None or last_us is None else (last_us - first_us) / 1000,
        )

    def _forget_prompt(self) -> None:
        """The record outlives the session; what was asked must not."""
        asked = self.asked.request
        request = GenerationRequest(asked.model, parameters=asked.parameters, runner_options=asked.runner_options)
        self.asked = attrs.evolve(self.asked, request=request, reply=None, forward=None, again=None, instead=None)
        self._work.forget()

    def _verdict(self, end: GenerationEnd | None, error: EngineError | None) -> tuple[EndReason, EngineError | None]:
        if end is not None:
            return end.reason, None
        if self._stop is not None:
            return self._stop
        assert error is not None  # nothing but a stop cancels the scope
        return EndReason.TRUNCATED if isinstance(error, UpstreamTruncated) else EndReason.ERROR, error

    def _opened(self) -> SessionOpened:
        return SessionOpened(
            session_id=self.id,
            at_us=self.opened_us,
            mode=self.asked.mode,
            streams=self._work.refs,
            dropped_models=self.asked.dropped_models,
            parameters=self.asked.request.parameters,
            energy_params=self.constants.energy,
            ensemble_params=None if self.asked.model.seats is None else self.constants.ensemble,
            origin=self.asked.origin,
            synthetic=self.asked.model.synthetic,
        )

    def _closed(self, end: GenerationEnd | None, error: EngineError | None) -> SessionClosed:
        assert self.reason is not None
        first_us = self._work.answer.stream.first_us
        details: dict[str, Any] | None = None if error is None else error.as_dict()
        return SessionClosed(
            session_id=self.id,
            at_us=self.closed_us,
            reason=self.reason,
            error=details,
            tokens=self._work.tokens,
            ttft_ms=None if first_us is None else (first_us - self.opened_us) / 1000,
            duration_ms=(self.closed_us - self.opened_us) / 1000,
            stop_latency_ms=self.stop_latency_ms,
            cold=self._work.cold,
            timing=self._work.timing(),
            prompt_tokens=None if end is None else end.prompt_tokens,
            prompt_tokens_dropped=0 if end is None else end.prompt_tokens_dropped,
            eval_count=None if end is None else end.eval_count,
            resumed=self._work.answer.stream.resumed,
            asked=self._work.answer.state == STREAMING,
        )


@attrs.define(eq=False)
class SessionTable:
    """All sessions, running and lately ended. An actor: it owns the sessions' nursery."""

    pool: PoolHandle
    signals: Outlet[SessionSignal]
    clock: Clock
    constants: Constants
    timeouts: Timeouts
    live_max: int
    record_ttl_s: float
    find: Callable[[str], ModelRef] | None = None
    pin_runner_options: bool = False  # requests come without their own
    runner_options_dropped: int = 0  # requests that had some
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)
    admit: Callable[[SessionRequest], SessionRequest] = lambda asked: asked  # raises for what may not begin
    _live: dict[str, Session] = attrs.field(factory=dict)
    _ended: dict[str, Session] = attrs.field(factory=dict)  # in the order of their ends
    _nursery: trio.Nursery | None = None
    _closing: bool = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until `close`; then when the last session has told its end."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    @property
    def live(self) -> int:
        return len(self._live)

    def start(self, asked: SessionRequest) -> Session:
        """A new session, running at once. Raises Overloaded when too many are alive or the engine is stopping, what
        `admit` raises, and as SessionRequest.refuse_unanswerable and PoolHandle.refuse_impossible."""
        self.prune()
        if self._closing or self._nursery is None:
            raise Overloaded("the engine is stopping", retry_after_s=RETRY_AFTER_S)
        if self.live >= self.live_max:
            raise Overloaded(
                f"{self.live_max} sessions are alive, the most allowed",
                limit=self.live_max,
                retry_after_s=RETRY_AFTER_S,
            )
        asked = self.admit(asked)
        asked.refuse_unanswerable()
        self.pool.refuse_impossible(asked.here)
        if self.pin_runner_options and asked.request.runner_options:
            self.runner_options_dropped += 1
            asked = attrs.evolve(asked, request=attrs.evolve(asked.request, runner_options={}))
        session = Session(
            self.new_id(), asked, self.pool, self.signals, self.clock, self.constants, self.timeouts, self.find
        )
        self._live[session.id] = session
        self._nursery.start_soon(self._see_through, session, name=f"session {session.id}")
        return session

    async def _see_through(self, session: Session) -> None:
        try:
            await session.run()
        finally:
            self._ended[session.id] = self._live.pop(session.id)

    def get(self, session_id: str) -> Session:
        """A running or lately ended session. Raises SessionNotFound."""
        self.prune()
        session = self._live.get(session_id) or self._ended.get(session_id)
        if session is None:
            raise SessionNotFound("there is no such session; records are kept for a minute after the end")
        return session

    def known(self) -> list[Session]:
        """Those that can be asked about: running, and lately ended."""
        return [*self._live.values(), *self._ended.values()]

    def running(self) -> list[Session]:
        return [session for session in self._live.values() if session.state != "ended"]

    async def stop(self, session_id: str, reason: EndReason = EndReason.ABORTED) -> SessionReport:
        """Stop one and wait until its runtime is closed. Idempotent while the record lives. Cancelled here: it still
        stops."""
        session = self.get(session_id)
        session.stop(reason)
        await session.closed.wait()
        return session.report()

    def leave(self, session: Session, after_s: float | None) -> None:
        """The caller of `session` has left: stop it after so many seconds (0: now; None: never)."""
        if session.state == "ended" or after_s is None:
            return
        if after_s == 0 or self._nursery is None:
            session.stop(EndReason.ABORTED)
        else:
            self._nursery.start_soon(_stop_later, session, after_s)

    def fail_all(self, error: EngineError) -> None:
        """A stage behind the sessions lost its state: none of them may go on with a hole, and an end that was on its
        way through that stage is told again."""
        recent_us = self.clock() - RETOLD_US
        for session in self.known():
            session.stop(EndReason.ERROR, error)
            if session.state == "ended" and session.closed_us >= recent_us and self._nursery is not None:
                self._nursery.start_soon(session.tell_end_again)

    async def close(self, reason: EndReason = EndReason.SHUTDOWN) -> None:
        """Stop all and wait until each has told its end. New ones are refused from now on."""
        self._closing = True
        for session in self.running():
            session.stop(reason)
        for session in self.running():
            await session.closed.wait()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason="closed")

    def prune(self) -> None:
        """Forget what is too old. The oldest ends are the first in their dictionary."""
        horizon_us = self.clock() - round(self.record_ttl_s * 1e6)
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.closed_us >= horizon_us and len(self._ended) <= ENDED_MAX:
                return
            del self._ended[oldest.id]


def question_of(request: GenerationRequest) -> str:
    """What the user asked last."""
    asked = (message.content for message in reversed(request.messages) if message.role == "user")
    return request.prompt if request.prompt is not None else next(asked, "")


async def _stop_later(session: Session, after_s: float) -> None:
    with trio.move_on_after(after_s):
        await session.closed.wait()
    session.stop(EndReason.ABORTED)
