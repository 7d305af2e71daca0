"""ModelStream over an answer in one piece: no token of it tells of progress, so nobody loses patience with it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import UpstreamTimeout
from engine.domain.events import SessionSignal, StreamRef
from engine.domain.generation import Chunk, Dialect, EndReason, GenerationEnd, GenerationRequest
from engine.domain.runtime import Forwarded, ForwardRequest, Read
from tests.fakes.runtime import ScriptedRuntime

LONG_S = 5000.0


@attrs.define(eq=False)
class SlowRuntime(ScriptedRuntime):
    """Has its whole answer after LONG_S."""

    dialects: frozenset[Dialect] = frozenset({Dialect.OPENAI})

    @asynccontextmanager
    async def forward(self, request: ForwardRequest):
        async def given():
            yield Read(b"{}", (Chunk("a", self.clock(), end=GenerationEnd(EndReason.FINISHED)),))

        await trio.sleep(LONG_S)
        reads = given()
        try:
            yield Forwarded(200, "application/json", reads)
        finally:
            await reads.aclose()


def stream(at_once: bool) -> ModelStream:
    outlet, _ = mailbox[SessionSignal]("signals", 8)
    ref, request = StreamRef("s", "s:0", "a"), GenerationRequest("a", prompt="x")
    asked = ForwardRequest(Dialect.OPENAI, "/v1/chat/completions", b"{}", "a", at_once=at_once)
    return ModelStream(ref, SlowRuntime(EngineClock.start()), request, outlet, Timeouts(), forward=asked)


async def test_an_answer_in_one_piece_may_take_as_long_as_the_runtime_likes(autojump_clock):
    made = stream(at_once=True)
    end = await made.run()
    assert (end.reason, made.tokens) == (EndReason.FINISHED, 1)
    assert trio.current_time() >= LONG_S


async def test_others_are_waited_for_as_long_as_for_a_first_token(autojump_clock):
    with pytest.raises(UpstreamTimeout, match="gave no token for 300 s"):
        await stream(at_once=False).run()


async def test_it_can_still_be_stopped(autojump_clock):
    made = stream(at_once=True)
    with trio.move_on_after(1000) as scope:
        await made.run()
    assert scope.cancelled_caught
    assert trio.current_time() < LONG_S
