"""The degrade ladder at work in the composer, in virtual time: a flood, a hub that refuses, late frames, recovery."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import attrs
import msgspec
import trio

from actors import mapper
from actors.clock import EngineClock
from actors.composer import PENDING_SAMPLES_MAX, FrameComposer, FrameCounter
from actors.kernel import mailbox
from actors.mapper import EnergyMapper, MapperCounters
from engine.domain.council import ENSEMBLE, CouncilFormed, MemberStarted
from engine.domain.energy import MICRO, EnergyMeter
from engine.domain.events import (
    DEGRADE,
    ENERGY_UPDATE,
    TOKEN,
    MappedSignal,
    ModelChanged,
    SampleBatch,
    SessionClosed,
    SessionOpened,
    SessionSignal,
    TokenBatch,
)
from engine.domain.frames import Frame
from engine.domain.generation import EndReason, Origin, Parameters, StreamRef, Token, TokenKind, TopEntry
from engine.domain.models import ModelState
from engine.domain.telemetry import Telemetry
from policies.degrade import Ladder
from policies.load import load_policies
from tests.domain.strategies import PARAMS
from transport.wire.frames import encode_event

POLICIES = load_policies()
POLICY = POLICIES.degrade
REFS = (StreamRef("s", "s:0", "a"), StreamRef("s", "s:1", "b"))
WORDS = ("Grü", "ße ", "\U0001f642", "x", "\n")
TICK_US = 16_667


class BusyClock:
    """The engine clock of a machine on which `work` takes time."""

    def __init__(self):
        self.real, self.worked_us = EngineClock.start(), 0

    def __call__(self):
        return self.real() + self.worked_us

    def work(self, us):
        self.worked_us += us


@attrs.define(eq=False)
class World:
    """A composer whose queue, clock and hub the test holds."""

    clock: BusyClock
    signals: object  # into the mapper, or into the composer where there is no mapper
    frames_in: object
    ladder: Ladder
    counter: FrameCounter
    telemetry: Telemetry
    waiting: int = 0  # what the composer is told of the mapper's mailbox
    composing_us: int = 0  # what a frame takes
    frames: list = attrs.field(factory=list)
    said: dict = attrs.field(factory=dict)  # stream → its tokens

    def take(self):
        """Frames the hub would get, all that are there."""
        taken = []
        while True:
            try:
                taken.append(self.frames_in._channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                self.frames += taken
                return taken

    async def open(self):
        opened = SessionOpened("s", self.clock(), "single", REFS, (), Parameters(), PARAMS, Origin.API, False)
        await self.signals.put(opened)

    async def close(self):
        tokens = sum(map(len, self.said.values()))
        closed = SessionClosed("s", self.clock(), EndReason.FINISHED, None, tokens, 1.0, 2.0, None, False)
        await self.signals.put(closed)

    def tokens(self, ref, count):
        said = self.said.setdefault(ref.stream_id, [])
        first = len(said)
        for position in range(first, first + count):
            text, now = WORDS[position % len(WORDS)], self.clock()
            delta_us = now - said[-1].t_us if said else None
            offset = said[-1].offset + len(said[-1].text.encode()) if said else 0
            top = (TopEntry(text, -0.5), TopEntry("other", -1.5))
            said.append(Token(text, TokenKind.ANSWER, position, offset, now, delta_us, logprob=-0.5, top=top))
        return TokenBatch(ref, tuple(said[first:]))

    def events(self, type_):
        return [event for frame in self.frames for event in frame.events if event.type == type_]

    def levels(self):
        """Every level there was, in order, from the first one: 0."""
        return [level for level, _ in itertools.groupby([0, *(frame.perf.degrade for frame in self.frames)])]

    def assert_all_text_was_told(self):
        told = dict.fromkeys(self.said, b"")
        for event in self.events(TOKEN):
            for item in msgspec.json.decode(encode_event(event, with_top=True))["payload"]["tokens"]:
                stream_id = event.payload.stream_id
                assert item["offset"] == len(told[stream_id])
                told[stream_id] += item["text"].encode()
        assert told == {stream: "".join(t.text for t in said).encode() for stream, said in self.said.items()}

    def assert_every_change_was_told_once(self):
        changes = [event.payload for event in self.events(DEGRADE)]
        assert [(c.before, c.level) for c in changes] == list(itertools.pairwise(self.levels()))
        for frame in self.frames:
            assert [e.payload.level for e in frame.events if e.type == DEGRADE][-1:] in ([], [frame.perf.degrade])
        entries = [sum(change.level == level for change in changes) for level in range(5)]
        assert self.telemetry.degrade.entries == entries
        now_us = self.clock()
        assert sum(self.telemetry.degrade.spent_us(level, now_us) for level in range(5)) == now_us


@asynccontextmanager
async def composing(frames_capacity=10_000, with_mapper=False):
    clock = BusyClock()
    samples, samples_in = mailbox[MappedSignal]("samples", 256)
    signals, signals_in = mailbox[SessionSignal]("signals", mapper.MAILBOX_BATCHES)
    frames, frames_in = mailbox[Frame]("frames", frames_capacity)
    ladder = Ladder(POLICY, mapper.MAILBOX_BATCHES, 1000 / 60)
    world = World(clock, signals if with_mapper else samples, frames_in, ladder, FrameCounter(), Telemetry())
    composer = FrameComposer(
        samples_in,
        frames,
        clock,
        world.telemetry,
        world.counter,
        ladder,
        lambda: clock.work(world.composing_us) or signals_in.depth + world.waiting,
        wall_ms=lambda: 0,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: composer.run(task_status=task_status))
        if with_mapper:
            actor = EnergyMapper(signals_in, samples, MapperCounters())
            await nursery.start(lambda task_status: actor.run(task_status=task_status))
        yield world
        nursery.cancel_scope.cancel()


async def test_a_flood_is_told_in_full_with_fewer_visuals_and_then_all_is_as_before(autojump_clock):
    """Producers that always have more, on a machine where every pass of the loop takes 4 ms."""
    async with composing(with_mapper=True) as world:
        await world.open()
        for turn in range(200):
            while world.signals.flow().depth < mapper.MAILBOX_BATCHES:
                await world.signals.put(world.tokens(REFS[turn % 2], 3))
            world.clock.work(4_000)
            await trio.lowlevel.checkpoint()
        await trio.sleep(3)
        await world.close()
        await trio.sleep(1.5)
        world.take()
        assert max(world.levels()) == 4
        assert world.levels()[-5:] == [4, 3, 2, 1, 0]
        world.assert_every_change_was_told_once()
        world.assert_all_text_was_told()
        assert world.counter.text_only > 0
        # EU is that of every token, whatever was shown of it
        last = world.events(ENERGY_UPDATE)[-1].payload
        assert last.eu_total == round(sum(eu_micro(said) for said in world.said.values()) / MICRO, 3)
        shown = sum(event.payload.eu_frame for event in world.events(ENERGY_UPDATE))
        assert abs(shown - last.eu_total) <= 0.0005 * len(world.frames)
        assert sum(event.payload.tokens for event in world.events(ENERGY_UPDATE)) == sum(map(len, world.said.values()))


def eu_micro(tokens):
    """What these tokens earn, measured once more without any engine."""
    meter = EnergyMeter.started(PARAMS, 0)
    return sum(meter.token(token).eu_micro for token in tokens)


async def speak(world, count, ref=REFS[0]):
    """One batch straight into the composer."""
    batch = world.tokens(ref, count)
    meter = EnergyMeter.started(PARAMS, 0)
    await world.signals.put(SampleBatch(ref, tuple(meter.token(t) for t in batch.tokens), meter.state))


async def told_at(waiting, count=20):
    """Tokens as they go out, to somebody with top lists, when so many batches wait."""
    async with composing() as world:
        await world.open()
        await trio.sleep(0.1)
        world.waiting = waiting
        await speak(world, count)
        await trio.sleep(0.02)
        world.take()
        (event,) = world.events(TOKEN)
        return msgspec.json.decode(encode_event(event, with_top=True))["payload"]["tokens"], world


VISUAL = ("energy", "energy_base", "logprob")


async def test_up_to_d2_tokens_are_whole(autojump_clock):
    for waiting in (0, 52, 410):
        tokens, world = await told_at(waiting)
        assert all(len(token["top"]) == 2 and token["energy"] is not None for token in tokens)
        assert world.counter.dropped_visual == 0


async def test_from_d3_on_top_lists_are_left_out(autojump_clock):
    tokens, world = await told_at(461)
    assert not any("top" in token for token in tokens)
    assert all(token[name] is not None for token in tokens for name in VISUAL)
    assert world.counter.dropped_visual == 0


async def test_at_d4_only_the_newest_tokens_carry_more_than_text(autojump_clock):
    tokens, world = await told_at(487)
    assert "".join(token["text"] for token in tokens) == "".join(WORDS) * 4
    whole = [all(token[name] is not None for name in VISUAL) for token in tokens]
    assert whole == [False] * 12 + [True] * 8
    assert [token["delta_ms"] is None for token in tokens] == [True] * 12 + [False] * 8
    assert [token["position"] for token in tokens] == list(range(20))
    assert world.frames[-1].perf.dropped_visual == world.counter.text_only == 12


async def test_from_d1_on_a_council_is_not_measured_and_goes_on(autojump_clock):
    async with composing() as world:
        opened = SessionOpened("s", 0, "council", REFS, (), Parameters(), PARAMS, Origin.API, False)
        await world.signals.put(attrs.evolve(opened, ensemble_params=POLICIES.ensemble.params()))
        await world.signals.put(CouncilFormed("s", REFS, (), (("s:0", "s:1"),), "longest", False, None))
        for ref in REFS:
            await world.signals.put(MemberStarted(ref, False, None))
        windows = []
        for world.waiting in (0, 60):
            for _ in range(30):
                for ref in REFS:
                    await speak(world, 1, ref)
                await trio.sleep(1 / 60)
            world.take()
            windows.append(len(world.events(ENSEMBLE)))
        assert windows[0] > 10
        assert windows[1] - windows[0] <= 2  # what the frame before the change still told
        await trio.sleep(0.1)
        world.take()
        assert world.levels() == [0, 1]
        world.assert_all_text_was_told()
        assert world.events(ENERGY_UPDATE)[-1].payload.ensemble.energy is not None


async def test_frames_of_70_percent_of_a_tick_pause_the_patterns_without_a_change_of_level(autojump_clock):
    async with composing() as world:
        await world.open()
        await trio.sleep(0.5)
        world.composing_us = 11_000
        await trio.sleep(0.5)
        assert world.counter.without_patterns == 0
        world.composing_us, calm = 12_000, world.counter.last
        await trio.sleep(0.5)
        world.composing_us, paused = 0, world.counter.last
        assert paused - calm - 2 <= world.counter.without_patterns <= paused - calm
        await trio.sleep(3)
        assert paused - calm + 58 <= world.counter.without_patterns <= paused - calm + 62
        world.take()
        assert world.levels() == [0]
        assert world.events(DEGRADE) == []


async def test_from_d1_on_the_composer_takes_twice_as_many_batches(autojump_clock):
    """The first frame after 600 producers spoke at once; 256 of their batches fit into the mailbox, the others are held
    until there is room."""
    for waiting, left in ((0, 256), (60, 88)):
        async with composing() as world:
            await world.open()
            world.waiting = waiting
            await trio.sleep(0.105)  # between two ticks
            world.take()
            world.clock.work(TICK_US)
            async with trio.open_nursery() as producers:
                for _ in range(600):
                    producers.start_soon(world.signals.put, ModelChanged(None, "a", ModelState.LOADING))
            assert world.take()[0].perf.queue_depth == waiting + left


async def test_the_event_says_what_was_measured(autojump_clock):
    async with composing() as world:
        await world.open()
        await trio.sleep(0.1)
        world.waiting = 500
        await trio.sleep(0.05)
        world.take()
        (event,) = world.events(DEGRADE)
        assert (event.session_id, event.lossless) == (None, True)
        assert attrs.asdict(event.payload) == {
            "level": 4,
            "before": 0,
            "reason": "queue",
            "queue_depth": 500,
            "frame_ms": 0.0,
        }
        assert world.frames[-1].perf.queue_depth == 500


async def test_late_frames_raise_the_level_once_and_an_idle_engine_comes_back_to_rest(autojump_clock):
    async with composing() as world:
        await world.open()
        await trio.sleep(0.1)
        for _ in range(12):
            world.clock.work(3 * TICK_US)
            await trio.sleep(0.017)
        await world.close()
        await trio.sleep(1.5)
        world.take()
        changes = [attrs.astuple(event.payload)[:3] for event in world.events(DEGRADE)]
        assert changes == [(1, 0, "overruns"), (0, 1, "recovered")]
        world.assert_every_change_was_told_once()
        await trio.sleep(5)
        assert len(world.take()) == 5  # once a second


async def test_a_hub_that_refuses_raises_the_level_and_gets_joined_tokens(autojump_clock):
    async with composing(frames_capacity=1) as world:
        await world.open()
        for turn in range(40):
            world.waiting = 500 if turn > 20 else 0
            await speak(world, 3)
            await trio.sleep(1 / 60)
        first = world.take()
        await trio.sleep(1 / 60)
        (merged,) = world.take()
        assert [e.payload.level for e in merged.events if e.type == DEGRADE] == [1, 4]
        assert [e.type for e in merged.events].count(TOKEN) == 1
        world.assert_all_text_was_told()
        assert world.counter.text_only == len(world.events(TOKEN)[-1].payload.samples) - 8
        assert world.counter.energy_replaced > 0
        assert len(first) == 1


async def test_what_a_stuck_hub_leaves_behind_is_bounded(autojump_clock):
    """Tokens the hub refused count against the bound on which the composer stops reading."""
    async with composing(frames_capacity=1) as world:
        await world.open()
        sent = 0
        with trio.move_on_after(30):
            while sent < 4 * PENDING_SAMPLES_MAX:
                batch = world.tokens(REFS[0], 1)
                sample = EnergyMeter.started(PARAMS, 0).token(batch.tokens[0])
                await world.signals.put(SampleBatch(REFS[0], (sample,) * 4096, EnergyMeter.started(PARAMS, 0).state))
                sent += 4096
                await trio.sleep(1 / 60)
        await trio.sleep(1)
        world.take()
        await trio.sleep(1 / 60)
        (merged,) = world.take()
        held = sum(len(e.payload.samples) for e in merged.events if e.type == TOKEN)
        assert PENDING_SAMPLES_MAX < held <= PENDING_SAMPLES_MAX + 4096
        assert world.ladder.level > 0


async def test_a_calm_engine_says_nothing_of_it(autojump_clock):
    async with composing() as world:
        await world.open()
        for _ in range(60):
            await speak(world, 1)
            await trio.sleep(0.01)
        await world.signals.put(ModelChanged(None, "a", ModelState.LOADING))
        await world.close()
        await trio.sleep(2)
        world.take()
        assert world.levels() == [0]
        assert world.events(DEGRADE) == []
        assert (world.counter.dropped_visual, world.counter.without_patterns) == (0, 0)
