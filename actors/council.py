"""Council: several models for one session, and one answer out of theirs.

Members speak in one nursery under the session's scope, so stopping the session stops them all. A member that fails
leaves; the others go on. Once enough of them have ended, the rest gets a grace; then the answer is chosen.

A model outside this machine (a satellite) speaks beside the others and never holds them up: it takes no place in a wave
and no part in the quorum, nobody's words wait for it, and once those of this machine are done it is over, unless none
of them has an answer.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

import attrs
import trio

from actors.catalog import ModelRef, Seats
from actors.kernel import Outlet
from actors.lease import Grant, PoolHandle
from actors.model_use import ELSEWHERE, LOADING, QUEUED, STREAMING, ModelUse, refusal_of
from actors.reply_line import Begun, ReplyLine
from actors.transcript import Transcript
from engine.domain.agreement import agreed, decided
from engine.domain.council import CouncilChosen, CouncilFormed, MemberEnded, MemberStarted
from engine.domain.errors import EngineError, FallbackFailed, InternalError, UpstreamTruncated
from engine.domain.events import SessionSignal
from engine.domain.generation import (
    Clock,
    EndReason,
    GenerationEnd,
    GenerationRequest,
    Origin,
    Parameters,
    StreamRef,
)
from engine.domain.models import ModelState
from engine.domain.synthesis import Choice, CouncilMethod, MemberAnswer, MemberState, candidates, choose, council_report
from engine.domain.verdict import judge_prompt, parse_verdict
from policies.timing import Timing

CONSENSUS_EVERY_S: Final = 0.25  # between looks at whether all say the same
VERDICT_TOKENS_MAX: Final = 64
COMPARED_HERE_MAX: Final = 512  # characters of each answer that are compared in a fraction of a frame; more in a thread
GRACE_OVER: Final = "the others had ended, and its grace was over"
AGREED: Final = "all members said the same so far, and one of them goes on"
DECIDED: Final = "most members gave the same answer"
NOT_WAITED_FOR: Final = "those of this machine had ended, and it is outside"
NOT_NEEDED: Final = "enough members had ended before its turn"

logger = logging.getLogger("wf.council")


@attrs.define(eq=False)
class Member:
    """One seat: a model's use, what it said, and how it ended."""

    use: ModelUse
    transcript: Transcript
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    end: GenerationEnd | None = None
    error: EngineError | None = None
    cut: str | None = None  # why it is ended by us, now or at the end of its grace
    order: int | None = None  # in which members ended
    begun: bool = False  # it was asked
    done: bool = False

    def answer(self) -> MemberAnswer:
        state = MemberState.RUNNING
        if self.error is not None:
            state = MemberState.CUT if isinstance(self.error, UpstreamTruncated) else MemberState.FAILED
        elif self.cut is not None:
            state = MemberState.CUT
        elif self.end is not None:
            state = MemberState.LENGTH if self.end.reason is EndReason.LENGTH else MemberState.FINISHED
        return MemberAnswer(
            stream_id=self.use.ref.stream_id,
            model=self.use.ref.model,
            text=self.transcript.text,
            certainty=self.transcript.certainty,
            tokens=self.use.tokens,
            state=state,
            finished_order=self.order,
            reason=self.cut if self.error is None else self.error.message,
        )


@attrs.define(eq=False)
class Council:
    """The work of a session with several models; `reply` gets the chosen answer."""

    seats: Seats
    members: tuple[Member, ...]
    judge: tuple[ModelUse, Transcript] | None
    question: str
    pool: PoolHandle
    signals: Outlet[SessionSignal]
    clock: Clock
    reply: ReplyLine | None = None
    chosen: Member | None = None
    _order: Iterator[int] = attrs.field(factory=itertools.count)
    _live: Member | None = None  # whose words the caller gets as they come
    _enough: bool = False

    def __attrs_post_init__(self) -> None:
        """Chunks are kept only where a whole answer is handed on; with method `first` it goes out as it comes."""
        first = self.seats.spec.method is CouncilMethod.FIRST
        for member in self.members:
            member.transcript.keeps = self.reply is not None and not (first and not member.use.model.satellite)
        if self.judge is not None:
            self.judge[1].keeps = False

    # ── what a session asks of its work ──

    @property
    def refs(self) -> tuple[StreamRef, ...]:
        """Of the members, and of the judge last."""
        members = tuple(member.use.ref for member in self.members)
        return members if self.judge is None else (*members, self.judge[0].ref)

    @property
    def tokens(self) -> int:
        return sum(use.tokens for use in self._uses)

    @property
    def state(self) -> str:
        states = [use.state for use in self._uses]
        return next((state for state in (STREAMING, LOADING) if state in states), QUEUED)

    @property
    def answer(self) -> ModelUse:
        """Whose figures a reply shows: the chosen one's, before that the first that spoke or was asked."""
        spoken = [m for m in self.members if m.use.stream.first_us is not None]
        spoken.sort(key=lambda member: member.use.stream.first_us or 0)
        asked = [member for member in self.members if member.begun]
        return (self.chosen or (spoken or asked or self.members)[0]).use

    @property
    def cold(self) -> bool | None:
        """Whether any member had to be loaded."""
        told = [use.cold for use in self._uses if use.cold is not None]
        return any(told) if told else None

    def timing(self) -> Timing | None:
        """Untrusted when one member's is."""
        told = [timing for use in self._uses if (timing := use.timing()) is not None]
        return max(told, key=lambda timing: timing == "untrusted") if told else None

    def forget(self) -> None:
        """Drop what was asked and said: records outlive sessions, texts must not."""
        self.question, self.reply = "", None
        for use in self._uses:
            use.forget()
        for transcript in (*(member.transcript for member in self.members), *(self.judge or ())[1:]):
            transcript.forget()

    async def run(self) -> GenerationEnd:
        """Until an answer is chosen. Raises what the only member's failure was, or FallbackFailed when all failed, and
        as the pool does. Cancelled here: all members are stopped."""
        await self._speak()
        answers = [member.answer() for member in self.members]
        live = None if self._live is None else self._live.use.ref.stream_id
        choice = await self._choose(answers, live)
        self.chosen = next((m for m in self.members if m.use.ref.stream_id == choice.member), None)
        ref = None if self.chosen is None else self.chosen.use.ref
        told = council_report(choice, answers, texts=False)
        said = CouncilChosen(self._id, choice.method, ref, choice.confidence, choice.reason, told)
        await self.signals.put(said)
        if self.chosen is None:
            raise self._failure()
        if self.reply is not None and self.chosen is not self._live:
            if not any(member.begun for member in self._here):
                await self.reply.put(Begun(0.0))
            await self.chosen.transcript.hand_on(self.reply)
        if self.chosen.error is not None:  # it was sent on as it came, and broke off
            raise self.chosen.error
        end = self.chosen.end or GenerationEnd(EndReason.ABORTED)  # its own scope ended it
        return attrs.evolve(end, report=council_report(choice, answers, texts=True))

    # ── the members ──

    @property
    def _here(self) -> list[Member]:
        """Those of this machine."""
        return [member for member in self.members if not member.use.model.satellite]

    async def _speak(self) -> None:
        for member in self._here:
            member.error = refusal_of(member.use.model, member.use.request)
        by_model = {member.use.model.name: member for member in self._here if member.error is None}
        plan = self.pool.plan([member.use.model for member in by_model.values()])
        waves = [[by_model[model.name] for model in wave] for wave in plan.waves]
        await self.signals.put(self._formed(waves))
        for member in self._here:
            if member.error is not None:  # nothing is loaded for one that could not answer
                await self._ended(member, None)
        async with trio.open_nursery() as satellites:
            for member in self.members:
                if member.use.model.satellite:
                    satellites.start_soon(self._satellite, member)
            await self._in_waves(waves)
            if any(member.end is not None for member in self._here):
                for member in self.members:
                    self._cut(member, NOT_WAITED_FOR)

    async def _satellite(self, member: Member) -> None:
        """One outside this machine: it is asked at once, and waits for nobody."""
        member.begun = True
        member.use.take(ELSEWHERE)
        await self.signals.put(MemberStarted(member.use.ref, None, None, origin=Origin.SATELLITE))
        await self._member(member, ELSEWHERE)

    async def _in_waves(self, waves: Sequence[Sequence[Member]]) -> None:
        hot: list[ModelRef] = []  # of the wave before: they may go at once to make room for the next
        for wave in waves:
            if self._enough:
                for member in wave:
                    await self._ended(member, NOT_NEEDED)
            else:
                await self._wave(wave, hot)
                hot = [member.use.model for member in wave]

    def _formed(self, waves: Sequence[Sequence[Member]]) -> CouncilFormed:
        reason = self.seats.reason
        if len(waves) > 1:
            reason = "; ".join(filter(None, (reason, "not all of them fit into memory at once")))
        return CouncilFormed(
            session_id=self._id,
            members=tuple(member.use.ref for member in self.members),
            dropped_models=self.seats.dropped,
            waves=tuple(tuple(member.use.ref.stream_id for member in wave) for wave in waves),
            method=self.seats.spec.method,
            celebrates=self.seats.celebrates,
            reason=reason,
        )

    async def _wave(self, wave: Sequence[Member], hot: Sequence[ModelRef]) -> None:
        by_model = {member.use.model.name: member for member in wave}
        for member in wave if hot else ():  # what it waited for the wave before says nothing about its model
            member.use.asked_us = self.clock()

        async def tell(model: ModelRef, state: ModelState, position: int | None, reason: str | None) -> None:
            await by_model[model.name].use.tell(state, position, reason)

        models, options = [member.use.model for member in wave], wave[0].use.request.runner_options  # the same for all
        async with AsyncExitStack() as stack:
            grants: tuple[Grant | EngineError, ...]
            try:
                grants = await stack.enter_async_context(self.pool.lease_set(models, tell, hot=hot, options=options))
            except EngineError as error:  # none of them is had; what others have said counts all the same
                grants = (error,) * len(wave)
            await self._together(tuple(zip(wave, grants, strict=True)))

    async def _together(self, wave: Sequence[tuple[Member, Grant | EngineError]]) -> None:
        begins = not any(member.begun for member in self._here)
        for member, grant in wave:
            if isinstance(grant, Grant):
                member.begun = True
                member.use.take(grant)
        if self.reply is not None and begins and any(member.begun for member in self._here):
            await self.reply.put(Begun(0.0))  # not before somebody is asked: what fails earlier has a status of its own
        for member, grant in wave:  # told in the council's order, whoever runs first
            if isinstance(grant, Grant):
                use = member.use
                await self.signals.put(MemberStarted(use.ref, grant.cold, grant.load_ms, use.asked_us))
        async with trio.open_nursery() as nursery:
            if self.seats.spec.stop_on_consensus:
                nursery.start_soon(self._watch)
            async with trio.open_nursery() as members:
                for member, grant in wave:
                    members.start_soon(self._member, member, grant)
            nursery.cancel_scope.cancel(reason="all have ended")

    async def _member(self, member: Member, grant: Grant | EngineError) -> None:
        if isinstance(grant, EngineError):
            member.error = grant
        else:
            with member.scope:
                try:
                    member.end = await member.use.speak(grant)
                except EngineError as error:
                    if not member.scope.cancel_called:  # else it came of our ending it
                        member.error = error
                except Exception as error:
                    logger.error("a council member failed: %s", type(error).__name__, exc_info=error)
                    member.error = InternalError("the member failed inside the engine")
        await self._ended(member, member.cut)

    async def _ended(self, member: Member, cut: str | None) -> None:
        """Tell it, and see whether enough have."""
        stream, use = member.use.stream, member.use
        member.done, member.order = True, next(self._order)
        member.cut = cut if member.end is None and member.error is None else None
        ended_us = self.clock()
        reason = EndReason.ABORTED if member.end is None else member.end.reason
        if member.error is not None:
            reason = EndReason.TRUNCATED if isinstance(member.error, UpstreamTruncated) else EndReason.ERROR
        await self.signals.put(
            MemberEnded(
                stream=use.ref,
                at_us=ended_us,
                reason=reason,
                tokens=use.tokens,
                ttft_ms=None if stream.first_us is None else (stream.first_us - use.asked_us) / 1000,
                duration_ms=(ended_us - use.asked_us) / 1000,
                cut=member.cut,
                error=None if member.error is None else member.error.as_dict(),
                prompt_tokens=None if member.end is None else member.end.prompt_tokens,
                eval_count=None if member.end is None else member.end.eval_count,
            )
        )
        self._count()

    def _count(self) -> None:
        """Once a quorum has ended, or the one that is sent on as it comes has, the others get their grace."""
        here = self._here
        ended = sum(member.end is not None for member in here)
        live_done = self._live is not None and self._live.done
        quorum = min(self.seats.spec.quorum_members, len(here))
        settled = self.seats.spec.stop_on_consensus and self._is_settled()
        self._enough = self._enough or ended >= quorum or live_done or settled
        if self._enough:
            for member in self.members:
                self._cut(member, DECIDED if settled else GRACE_OVER, 0.0 if settled else self.seats.spec.grace_s)

    def _is_settled(self) -> bool:
        """Most have ended with the same words: the rest cannot change what consensus chooses."""
        able = [m for m in self._here if m.error is None and (m.end is not None or not m.done)]
        texts = [member.transcript.text for member in able if member.end is not None]
        return self.seats.spec.method is CouncilMethod.CONSENSUS and decided(texts, len(able))

    def _cut(self, member: Member, why: str, after_s: float = 0.0) -> None:
        """End it `after_s` from now, unless it ends before or is to be cut sooner. Whose words the caller gets as they
        come goes on to its end: what is cut there could not be told from an answer."""
        at_s = trio.current_time() + after_s
        if not member.done and member is not self._live and at_s < member.scope.deadline:
            member.cut, member.scope.deadline = why, at_s

    def claim(self, member: Member) -> ReplyLine | None:
        """`member` begins to speak: with method `first` its words go to the caller as they come, if nobody's do yet.
        Never a satellite's: whoever hears it would wait for it."""
        if self.seats.spec.method is not CouncilMethod.FIRST or self._live is not None or member.use.model.satellite:
            return None
        self._live = member
        member.cut, member.scope.deadline = None, math.inf
        return self.reply

    async def _watch(self) -> None:
        """Where all say the same, one is enough: the one that has said the most goes on."""
        while True:
            await trio.sleep(CONSENSUS_EVERY_S)
            able = [m for m in self._here if m.begun and m.error is None and (m.end is not None or not m.done)]
            if not agreed([member.transcript.text for member in able]):
                continue
            speaking = [member for member in able if not member.done]
            if not speaking:
                return
            furthest = max(speaking, key=lambda member: len(member.transcript.text))
            for member in speaking:
                if member is not (self._live or furthest):
                    self._cut(member, AGREED)
            return

    # ── the answer ──

    async def _choose(self, answers: list[MemberAnswer], live: str | None) -> Choice:
        method = self.seats.spec.method
        verdict = None
        if method is CouncilMethod.JUDGE and len(able := candidates(answers)) > 1:
            verdict = await self._verdict(able)

        def compare() -> Choice:
            return choose(method, answers, spoke_first=live, verdict=verdict)

        if all(len(answer.text) <= COMPARED_HERE_MAX for answer in answers):
            return compare()
        return await trio.to_thread.run_sync(compare, abandon_on_cancel=True)  # nothing of it is needed any more

    async def _verdict(self, able: Sequence[MemberAnswer]) -> int | None:
        """What the judge says; None when it gives no clear answer, or fails."""
        assert self.judge is not None
        use, transcript = self.judge

        async def tell(_model: ModelRef, state: ModelState, position: int | None, reason: str | None) -> None:
            await use.tell(state, position, reason)

        use.request = use.stream.request = GenerationRequest(
            use.model.info.name,
            prompt=judge_prompt(self.question, able),
            parameters=Parameters(temperature=0.0, max_tokens=VERDICT_TOKENS_MAX),
        )
        hot = [member.use.model for member in self.members]  # they have answered, and may go to make room for it
        try:
            async with self.pool.lease_set([use.model], tell, hot=hot) as (grant,):
                if isinstance(grant, EngineError):
                    raise grant
                await use.speak(grant)
        except EngineError as error:
            logger.warning("the judge of a council failed: %s", error.code)
            return None
        except Exception as error:  # the answers are there; wording decides
            logger.error("the judge of a council failed: %s", type(error).__name__, exc_info=error)
            return None
        return parse_verdict(transcript.text, len(able))

    def _failure(self) -> EngineError:
        errors = [member.error for member in self.members if member.error is not None]
        if errors and all(error.code == errors[0].code for error in errors):
            return errors[0]
        failed = {m.use.ref.model: m.error.code for m in self.members if m.error is not None}
        return FallbackFailed("no member of the council gave an answer", members=failed)

    @property
    def _id(self) -> str:
        return self.members[0].use.ref.session_id

    @property
    def _uses(self) -> list[ModelUse]:
        uses = [member.use for member in self.members]
        return uses if self.judge is None else [*uses, self.judge[0]]
