"""A broken answer that goes on: the same tokens in the same order, one marked seam, and nothing without being asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.reply_line import Begun, ReplyLine
from actors.resume import AnswerSoFar, Place
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelNotFound,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.events import AnswerResumed, SessionSignal, StreamRef, TokenBatch
from engine.domain.generation import Chunk, EndReason, GenerationRequest, Message, ResumeRules, Seam, TokenKind
from policies.resume import TEXT_BYTES_MAX
from tests.fakes.runtime import Cut, End, Fail, Say, ScriptedRuntime, Step

REF = StreamRef("s", "s:0", "a")
ONCE = ResumeRules(pause_s=1.0)
ASKED = GenerationRequest("a", prompt="x")
HALF = (Say("Once ", 0.1), Say("upön", 0.1))


@attrs.define(eq=False)
class Breaking(ScriptedRuntime):
    """Plays the next of `scripts` with every request."""

    scripts: list[tuple[Step, ...]] = attrs.field(factory=list)
    kind: str = "ollama"

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        self.script = self.scripts.pop(0)
        async with ScriptedRuntime.generate(self, request) as chunks:
            yield chunks


@attrs.define(eq=False)
class Run:
    runtime: Breaking
    stream: ModelStream
    line: ReplyLine
    inlet: object
    told: list = attrs.field(factory=list)  # tokens before, and the seam

    @classmethod
    def of(cls, *scripts: tuple[Step, ...], rules: ResumeRules | None = ONCE, **more: object) -> Run:
        runtime = Breaking(EngineClock.start(), scripts=list(scripts))
        outlet, inlet = mailbox[SessionSignal]("signals", 64)
        line = ReplyLine()
        request = attrs.evolve(ASKED, resume=rules)
        timeouts = Timeouts(first_token_s=10, progress_s=5)
        return cls(runtime, ModelStream(REF, runtime, request, outlet, timeouts, line, **more), line, inlet)

    async def tokens(self) -> list:
        async with self.inlet.open() as channel:
            found = []
            while True:
                try:
                    batch = channel.receive_nowait()
                except trio.WouldBlock:
                    return found
                if isinstance(batch, AnswerResumed):
                    self.told.append((len(found), batch.seam))
                else:
                    assert isinstance(batch, TokenBatch)
                    found += batch.tokens

    async def chunks(self) -> list[Chunk]:
        self.line.end(EndReason.FINISHED, None, None)
        begun, *items = [await self.line.next() for _ in range(self.line._channel[1].statistics().current_buffer_used)]
        assert isinstance(begun, Begun)
        return items


async def failure_of(run: Run) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await run.stream.run()
    return caught.value


BREAKS = (Cut(), Fail(UpstreamProtocolError("x")), Fail(UpstreamTruncated("x")), Fail(RuntimeUnavailable("x")))


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda step: str(step)[:40])
async def test_it_goes_on_where_it_broke_off(breaks, autojump_clock):
    run = Run.of((*HALF, breaks), (Say(" a", 0.1), Say(" time", 0.1), End()))
    began = trio.current_time()
    end = await run.stream.run()
    assert trio.current_time() - began >= 1.4  # with its pause
    tokens = await run.tokens()
    assert [t.text for t in tokens] == ["Once ", "upön", " a", " time"]
    assert [t.position for t in tokens] == [0, 1, 2, 3]
    assert [t.offset for t in tokens] == [0, 5, 10, 12]
    assert [t.throttled for t in tokens] == [False, False, True, False]  # the wait is nobody's cadence
    chunks = await run.chunks()
    assert [c.seam for c in chunks if c.seam] == [Seam("s:0", "a", 2, 10, _code(breaks), 1)]
    assert run.told == [(2, chunks[2].seam)]
    assert "".join(c.text for c in chunks) == "Once upön a time"
    assert (end.reason, end.resumed, end.eval_count, end.prompt_tokens) == (EndReason.FINISHED, 1, None, None)
    assert (run.stream.tokens, run.stream.resumed) == (4, 1)
    assert run.runtime.opened == run.runtime.closed == 2
    second = run.runtime.requests[1]
    assert second.messages == (Message("user", "x"), Message("assistant", "Once upön"))
    assert second.continues


def _code(step: Step) -> str:
    return step.error.code if isinstance(step, Fail) else UpstreamTruncated.code


async def test_a_silence_too_long_breaks_it_too(autojump_clock):
    run = Run.of((*HALF, Say("late", 60)), (Say(" a"), End()))
    end = await run.stream.run()
    assert end.resumed == 1
    (seam,) = [c.seam for c in await run.chunks() if c.seam]
    assert seam.reason == UpstreamTimeout.code


async def test_nothing_of_it_happens_unasked(autojump_clock):
    run = Run.of((*HALF, Cut()), (Say(" a"), End()), rules=None)
    error = await failure_of(run)
    assert isinstance(error, UpstreamTruncated)
    assert "not_resumed" not in error.details
    assert run.runtime.opened == 1


async def test_before_the_first_token_it_stays_as_it_is(autojump_clock):
    run = Run.of((Cut(),), (Say(" a"), End()))
    assert "not_resumed" not in (await failure_of(run)).details
    assert run.runtime.opened == 1


async def test_an_invalid_request_is_never_gone_on_with(autojump_clock):
    run = Run.of((*HALF, Fail(InvalidRequest("no"))), (Say(" a"), End()))
    error = await failure_of(run)
    assert isinstance(error, InvalidRequest)
    assert error.details["not_resumed"] == "it did not break off"
    assert run.runtime.opened == 1


async def test_it_may_break_as_often_as_is_allowed(autojump_clock):
    rules = ResumeRules(attempts_max=2, pause_s=0)
    run = Run.of((*HALF, Cut()), (Say(" a"), Cut()), (Say(" time"), Cut()), rules=rules)
    error = await failure_of(run)
    assert isinstance(error, UpstreamTruncated)
    assert error.details["resumed"] == 2
    assert "attempts made: 2" in error.details["not_resumed"]
    seams = [c.seam for c in await run.chunks() if c.seam]
    assert [(s.attempt, s.position, s.offset) for s in seams] == [(1, 2, 10), (2, 3, 12)]
    assert run.runtime.requests[2].messages[-1].content == "Once upön a"


async def test_an_attempt_that_brings_nothing_leaves_no_seam(autojump_clock):
    rules = ResumeRules(attempts_max=2, pause_s=1)
    run = Run.of((*HALF, Cut()), (Fail(RuntimeUnavailable("down")),), (Say(" a"), End()), rules=rules)
    end = await run.stream.run()
    assert end.resumed == 1
    (seam,) = [c.seam for c in await run.chunks() if c.seam]
    assert (seam.attempt, seam.reason) == (2, UpstreamTruncated.code)


async def test_what_refused_to_go_on_is_told_with_what_broke(autojump_clock):
    run = Run.of((*HALF, Cut()), (Fail(InvalidRequest("prefill is not supported")),))
    error = await failure_of(run)
    assert isinstance(error, UpstreamTruncated)
    assert "prefill is not supported" in error.details["not_resumed"]
    assert error.details["resumed"] == 0


async def test_a_runtime_that_cannot_go_on_with_a_text_is_not_asked(autojump_clock):
    run = Run.of((*HALF, Cut()), (Say(" a"), End()))
    run.runtime.kind = "synthetic"
    assert "cannot go on with a text" in (await failure_of(run)).details["not_resumed"]
    assert run.runtime.opened == 1


async def test_another_model_goes_on_and_is_named(autojump_clock):
    other = Breaking(EngineClock.start(), scripts=[(Say(" a"), End())], name="other", kind="embedded")
    lent, back = [], []

    @asynccontextmanager
    async def elsewhere(name):
        lent.append(name)
        if name == "gone":
            raise ModelNotFound("no such model")
        yield Place(other, "b-own")
        back.append(name)

    rules = ResumeRules(attempts_max=3, who="other", models=("gone", "a", "b"), pause_s=0)
    run = Run.of((*HALF, Cut()), rules=rules, elsewhere=elsewhere)
    await run.stream.run()
    (seam,) = [c.seam for c in await run.chunks() if c.seam]
    assert (seam.model, seam.attempt) == ("b", 2)
    assert (lent, back) == (["gone", "b"], ["b"])
    assert other.requests[0].model == "b-own"


async def test_without_anybody_to_lend_another_model_there_is_none(autojump_clock):
    run = Run.of((*HALF, Cut()), rules=ResumeRules(who="other", models=("b",)))
    assert "no other model" in (await failure_of(run)).details["not_resumed"]


async def test_another_model_is_not_waited_for_without_end(autojump_clock):
    @asynccontextmanager
    async def elsewhere(name):
        await trio.sleep_forever()
        yield

    run = Run.of((*HALF, Cut()), rules=ResumeRules(who="other", models=("b",), pause_s=0), elsewhere=elsewhere)
    began = trio.current_time()
    assert "within 300 s" in (await failure_of(run)).details["not_resumed"]
    assert trio.current_time() - began < 302


async def test_stopped_in_the_pause_nothing_more_is_asked(autojump_clock):
    run = Run.of((*HALF, Cut()), (Say(" a"), End()), rules=ResumeRules(pause_s=60))
    with trio.move_on_after(5) as scope:
        await run.stream.run()
    assert scope.cancelled_caught
    assert run.runtime.opened == run.runtime.closed == 1


def test_a_long_text_is_let_go_and_its_length_stays():
    so_far = AnswerSoFar()
    so_far.take(Chunk("x" * TEXT_BYTES_MAX, 0), 1)
    assert so_far.given().text is not None
    so_far.take(Chunk("ö", 0), 1)
    assert so_far.given().text is None
    assert (so_far.bytes_given, so_far.given().tokens) == (TEXT_BYTES_MAX + 2, 2)


def test_what_kinds_were_given():
    so_far = AnswerSoFar()
    so_far.take(Chunk("", 0, TokenKind.THINKING), 0)
    assert so_far.given().kinds == frozenset()
    so_far.take(Chunk("hm", 0, TokenKind.THINKING), 1)
    assert so_far.given().kinds == {TokenKind.THINKING}
    assert so_far.given().text == ""
