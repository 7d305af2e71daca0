"""The 60 Hz tick in virtual time: the grid, missed ticks, a hub that refuses, and a flood."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import trio

from actors.clock import EngineClock
from actors.composer import FrameComposer, FrameCounter
from actors.kernel import mailbox
from engine.domain.energy import EnergyMeter
from engine.domain.events import MappedSignal, ModelChanged, SampleBatch, SessionClosed, SessionOpened
from engine.domain.frames import Frame
from engine.domain.generation import EndReason, Origin, Parameters, StreamRef
from engine.domain.models import ModelState
from engine.domain.telemetry import Telemetry
from policies.degrade import Ladder
from policies.load import load_policies
from tests.domain.strategies import PARAMS, token

REF = StreamRef("s", "s:0", "a")
POLICY = load_policies().degrade


def ladder(capacity=512):
    return Ladder(POLICY, capacity, 1000 / 60)


class Driver:
    def __init__(self, samples, frames, clock, counter, telemetry):
        self.samples, self.frames, self.clock, self.counter, self.telemetry = samples, frames, clock, counter, telemetry
        self.meter = None
        self.position = 0

    async def open(self):
        self.meter = EnergyMeter.started(PARAMS, self.clock())
        await self.samples.put(
            SessionOpened("s", self.clock(), "single", (REF,), (), Parameters(), PARAMS, Origin.API, False)
        )

    async def say(self):
        sample = self.meter.token(token(self.position, self.clock(), 50_000 if self.position else None))
        self.position += 1
        await self.samples.put(SampleBatch(REF, (sample,), self.meter.state))

    async def end(self):
        await self.samples.put(
            SessionClosed("s", self.clock(), EndReason.FINISHED, None, self.position, 1.0, 2.0, None, False)
        )

    def taken(self):
        """Frames in the mailbox now."""
        taken = []
        while True:
            try:
                taken.append(self.frames._channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return taken


@asynccontextmanager
async def composing(frames_capacity=1000, clock=None):
    clock = clock or EngineClock.start()
    samples, samples_in = mailbox[MappedSignal]("samples", 256)
    frames, frames_in = mailbox[Frame]("frames", frames_capacity)
    counter, telemetry = FrameCounter(), Telemetry()
    composer = FrameComposer(samples_in, frames, clock, telemetry, counter, ladder(), lambda: 0, wall_ms=lambda: 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: composer.run(task_status=task_status))
        yield Driver(samples, frames_in, clock, counter, telemetry)
        nursery.cancel_scope.cancel()


def kinds(frame):
    return [event.type for event in frame.events]


async def test_an_idle_engine_ticks_once_a_second(autojump_clock):
    async with composing() as d:
        await trio.sleep(4.5)
        assert [frame.mono_us for frame in d.taken()] == [1_000_000, 2_000_000, 3_000_000, 4_000_000]


async def test_a_session_is_on_the_very_next_tick_of_the_grid(autojump_clock):
    async with composing() as d:
        await trio.sleep(1.234)
        d.taken()
        await d.open()
        await trio.sleep(0.1)
        frames = d.taken()
        assert frames[0].mono_us == 75 * 1_000_000 // 60  # the first tick after 1.234 s
        assert kinds(frames[0]) == ["experience.session_start", "energy.update"]
        assert [f.frame for f in frames] == list(range(frames[0].frame, frames[0].frame + len(frames)))
        assert d.counter.missed == 0


async def test_a_model_event_without_a_session_does_not_wait_for_the_next_second(autojump_clock):
    async with composing() as d:
        await trio.sleep(0.5)
        await d.samples.put(ModelChanged(None, "a", ModelState.LOADING))
        await trio.sleep(0.05)
        (frame,) = d.taken()
        assert kinds(frame) == ["experience.model"]


async def test_a_flood_of_messages_cannot_postpone_a_frame(autojump_clock):
    async with composing() as d:
        await d.open()
        for _ in range(600):
            await d.say()
            await trio.sleep(0.001)
        monos = [frame.mono_us for frame in d.taken()]
        assert {b - a for a, b in itertools.pairwise(monos)} <= {16_666, 16_667}


async def test_a_frame_the_hub_refuses_is_folded_into_the_next(autojump_clock):
    async with composing(frames_capacity=1) as d:
        await d.open()
        for _ in range(10):
            await d.say()
            await trio.sleep(1 / 60)
        first = d.taken()
        await trio.sleep(1.5 / 60)  # past the next tick, not on it
        (merged,) = d.taken()
        texts = [
            s for f in (*first, merged) for e in f.events if e.type == "experience.token" for s in e.payload.samples
        ]
        assert len(texts) == 10
        assert kinds(merged).count("energy.update") == 1
        assert d.counter.merged > 0
        assert d.counter.dropped_visual > 0


async def test_ticks_that_are_over_are_skipped_and_counted(autojump_clock):
    """The engine was held up (here: the clock jumps) for ten ticks: one frame, not ten."""

    class Jumping:
        def __init__(self, real):
            self.real, self.extra_us = real, 0

        def __call__(self):
            return self.real() + self.extra_us

    clock = Jumping(EngineClock.start())
    async with composing(clock=clock) as d:
        await d.open()
        await trio.sleep(0.105)
        before = d.taken()[-1]
        clock.extra_us = 10 * 16_667
        await trio.sleep(0.02)
        after = d.taken()[0]
        assert after.frame - before.frame == after.mono_us // 16_666 - before.mono_us // 16_666
        assert 9 <= d.counter.missed <= 11
        assert after.perf.lateness_ms < 17


async def test_the_last_frame_carries_the_end_and_the_composer_ends_with_its_input(autojump_clock):
    clock = EngineClock.start()
    samples, samples_in = mailbox[MappedSignal]("samples", 256)
    frames, frames_in = mailbox[Frame]("frames", 100)
    composer = FrameComposer(
        samples_in, frames, clock, Telemetry(), FrameCounter(), ladder(), lambda: 0, wall_ms=lambda: 0
    )
    d = Driver(samples, frames_in, clock, None, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: composer.run(task_status=trio.TASK_STATUS_IGNORED))
        await d.open()
        await d.say()
        await d.end()
        samples.close()
    assert [kind for frame in d.taken() for kind in kinds(frame)] == [
        "experience.session_start",
        "experience.token",
        "energy.update",
        "experience.session_end",
    ]


async def test_telemetry_measures_lateness_only_while_frames_are_due(autojump_clock):
    async with composing() as d:
        await trio.sleep(10)
        assert len(d.telemetry.lateness_ms) == 0
        await d.open()
        await trio.sleep(1)
        assert len(d.telemetry.lateness_ms) >= 59
        assert max(d.telemetry.lateness_ms) < 0.1
        assert 59 <= d.telemetry.fps(d.clock()) <= 61
