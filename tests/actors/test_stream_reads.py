"""ModelStream over forwarded answers: what came with a fault, in one read, and before it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.reply_line import Begun, ReplyLine
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import UpstreamProtocolError
from engine.domain.events import SessionSignal, StreamRef
from engine.domain.generation import Chunk, Dialect, GenerationRequest
from engine.domain.runtime import Forwarded, ForwardRequest, Read
from tests.fakes.runtime import ScriptedRuntime

ASKED = ForwardRequest(Dialect.OLLAMA, "/api/generate", b"{}", "a")


@attrs.define(eq=False)
class ForwardingRuntime(ScriptedRuntime):
    """Answers every forwarded request with these reads."""

    reads: tuple[Read, ...] = ()
    dialects: frozenset[Dialect] = frozenset({Dialect.OLLAMA})

    @asynccontextmanager
    async def forward(self, request: ForwardRequest):
        async def given():
            for read in self.reads:
                await trio.lowlevel.checkpoint()
                yield read

        answers = given()
        try:
            yield Forwarded(200, "application/x-ndjson", answers)
        finally:
            await answers.aclose()


async def test_what_came_before_an_unreadable_chunk_of_the_same_read_is_delivered(autojump_clock):
    half = Chunk("\ud800", 0)
    runtime = ForwardingRuntime(
        EngineClock.start(), reads=(Read(b"x", (Chunk("a", 0),)), Read(b"yz", (Chunk("b", 0), half)))
    )
    outlet, _ = mailbox[SessionSignal]("signals", 8)
    line = ReplyLine()
    ref, request = StreamRef("s", "s:0", "a"), GenerationRequest("a", prompt="x")
    made = ModelStream(ref, runtime, request, outlet, Timeouts(), line, ASKED)
    with pytest.raises(UpstreamProtocolError):
        await made.run()
    items = [await line.next() for _ in range(3)]
    assert isinstance(items[0], Begun)
    assert items[1:] == [Read(b"x", (Chunk("a", 0),)), Read(b"", (Chunk("b", 0),))]
    assert made.tokens == 2
