"""ModelStream: tokens in order, time-outs, and a full queue that is never mistaken for the model's cadence."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import UpstreamTimeout, UpstreamTruncated
from engine.domain.events import SessionSignal
from engine.domain.generation import EndReason, GenerationRequest, StreamRef
from tests.fakes.runtime import Cut, End, Say, ScriptedRuntime, words

REF = StreamRef("s", "s:0", "a")


def stream(script, capacity=64, **timeouts):
    clock = EngineClock.start()
    runtime = ScriptedRuntime(clock, script)
    outlet, inlet = mailbox[SessionSignal]("signals", capacity)
    made = ModelStream(REF, runtime, GenerationRequest("a", prompt="x"), outlet, Timeouts(**timeouts))
    return made, runtime, inlet


async def taken(inlet):
    async with inlet.open() as channel:
        got = []
        while True:
            try:
                got.append(channel.receive_nowait())
            except trio.WouldBlock:
                return got


async def test_tokens_are_dense_stamped_and_in_order(autojump_clock):
    made, runtime, inlet = stream(words(5, after_s=0.1))
    end = await made.run()
    tokens = [t for batch in await taken(inlet) for t in batch.tokens]
    assert [t.position for t in tokens] == [0, 1, 2, 3, 4]
    assert [t.delta_us for t in tokens] == [None, 100_000, 100_000, 100_000, 100_000]
    assert [t.offset for t in tokens] == [0, 3, 6, 9, 12]
    assert (end.reason, made.tokens, runtime.closed) == (EndReason.FINISHED, 5, 1)


async def test_a_wait_for_room_marks_the_next_token(autojump_clock):
    made, _, inlet = stream((Say("a", 0.0), Say("b", 0.0), Say("c", 0.0), End()), capacity=1)
    batches = []

    async def slow_reader():
        async with inlet.open() as channel:
            while len(batches) < 3:
                await trio.sleep(1)
                batches.append(await channel.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_reader)
        await made.run()
    assert [batch.tokens[0].throttled for batch in batches] == [False, False, True]


async def test_what_piled_up_while_we_were_held_up_is_no_cadence(autojump_clock):
    """Until one has to be waited for again: all that came before lay in our buffers, and its own gap begins there."""
    piled = tuple(Say(letter, 0.0) for letter in "abcd")
    made, _, inlet = stream((*piled, Say("e", 0.05), Say("f", 0.05), End()), capacity=1)
    tokens = []

    async def slow_reader():
        async with inlet.open() as channel:
            while len(tokens) < 6:
                await trio.sleep(1 if len(tokens) < 2 else 0)
                tokens.extend((await channel.receive()).tokens)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_reader)
        await made.run()
    assert [token.throttled for token in tokens] == [False, False, True, True, True, False]


async def test_nothing_before_the_first_token_and_nothing_between_tokens(autojump_clock):
    made, runtime, _ = stream((Say("late", after_s=11),), first_token_s=10)
    with pytest.raises(UpstreamTimeout) as caught:
        await made.run()
    assert caught.value.details == {"limit_s": 10}
    assert runtime.closed == 1
    made, _, _ = stream((Say("a", 1), Say("b", after_s=6)), first_token_s=10, progress_s=5)
    with pytest.raises(UpstreamTimeout):
        await made.run()
    assert made.tokens == 1


async def test_a_stream_that_just_stops_is_truncated(autojump_clock):
    made, runtime, _ = stream((Say("half"), Cut()))
    with pytest.raises(UpstreamTruncated):
        await made.run()
    assert runtime.closed == 1


async def test_cancelled_while_held_counts_only_what_was_passed_on(autojump_clock):
    made, runtime, inlet = stream(words(5, after_s=0.0), capacity=1)
    with trio.move_on_after(1):
        await made.run()
    assert made.tokens == len(await taken(inlet)) == 1
    assert runtime.closed == 1


async def test_records_without_a_token_are_no_progress(autojump_clock):
    made, runtime, _ = stream(tuple(Say("", after_s=4, logprob=None) for _ in range(10)), first_token_s=10)
    with pytest.raises(UpstreamTimeout):
        await made.run()
    assert (made.tokens, runtime.closed) == (0, 1)


async def test_the_wait_for_the_head_counts_too(autojump_clock):
    class SlowHead(ScriptedRuntime):
        @asynccontextmanager
        async def generate(self, request):
            await trio.sleep(60)
            async with super().generate(request) as chunks:
                yield chunks

    clock = EngineClock.start()
    outlet, _ = mailbox[SessionSignal]("signals", 8)
    runtime = SlowHead(clock, words(1))
    began = trio.current_time()
    with pytest.raises(UpstreamTimeout):
        await ModelStream(REF, runtime, GenerationRequest("a", prompt="x"), outlet, Timeouts(first_token_s=10)).run()
    assert trio.current_time() - began == 10
    assert runtime.opened == 0
