"""FrameComposer: the 60 Hz tick. Folds samples between ticks, composes one frame per tick, offers it to the hub. When
the engine cannot keep up it leaves out what policies/degrade.py says, and tells so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import attrs
import trio

from actors.kernel import Inlet, Outlet, drain
from engine.domain.events import DEGRADE, DegradePayload, Event, MappedSignal, TokensPayload
from engine.domain.frames import Frame, FrameState, Perf
from engine.domain.generation import Clock
from engine.domain.telemetry import Telemetry
from policies.degrade import JOIN, Ladder, joined, lightened

MAILBOX_BATCHES = 256
DRAIN_BATCHES_MAX = 128  # per wake; twice as many from D1 on, which is all of the mailbox
REST_S = 0.004  # between two looks at the mailbox while frames are due: a wake costs as much as several batches
PENDING_SAMPLES_MAX = 65_536  # with those the hub refused; beyond it nothing is read and producers are really held
PENDING_EVENTS_MAX = 4_096  # lossless events kept while the hub takes no frame


@attrs.define(eq=False)
class FrameCounter:
    """Frame numbers over the life of the engine; outlives the composer's incarnations."""

    last: int = 0
    missed: int = 0
    merged: int = 0  # frames the hub refused, folded into a later one
    energy_replaced: int = 0  # energy snapshots replaced by a newer one
    text_only: int = 0  # tokens told without their energy and log-probability
    without_patterns: int = 0  # frames in which no patterns were to be computed

    @property
    def dropped_visual(self) -> int:
        return self.energy_replaced + self.text_only


@attrs.define(eq=False)
class FrameComposer:
    """The tick grid is t0 + n/60 s, never "now plus a bit": lateness cannot accumulate. Ticks that are already over
    when the composer wakes are skipped and counted.

    `waiting_upstream` is how many batches wait before the mapper; with those in the composer's own mailbox they are
    what the ladder goes by. The ladder outlives the composer, as the counter does."""

    inlet: Inlet[MappedSignal]
    frames: Outlet[Frame]
    clock: Clock
    telemetry: Telemetry
    counter: FrameCounter
    ladder: Ladder
    waiting_upstream: Callable[[], int]
    tick_hz: int = 60
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    _state: FrameState = attrs.field(factory=FrameState)
    _kept: tuple[Event, ...] = ()  # what the hub has not taken yet
    _kept_samples: int = 0  # of their tokens
    _frame_ms: float = 0.0  # what the frame before took
    _t0_us: int = 0
    _last_us: int = 0  # deadline of the last frame
    _ended: bool = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the mapper closed; then one last frame, which is not refused."""
        self._t0_us = self._last_us = self.clock()
        tick, paced = 0, False
        async with self.inlet.open() as signals:
            task_status.started()
            while not self._ended:
                goal = await self._collect(signals, tick, paced)
                due = max(goal, self._tick_now())
                self._offer(self._compose(due, missed=due - goal if self._busy else 0))
                tick, paced = due, self._busy  # busy now, after the frame: else the next tick may be any
        if self._untold:
            await self.frames.put(self._compose(tick + 1, missed=0))

    async def _collect(self, signals: trio.MemoryReceiveChannel[MappedSignal], tick: int, paced: bool) -> int:
        """Fold what arrives until the next tick is due; that tick's number. The goal never moves away: a flood of
        messages cannot postpone a frame."""
        goal = self._goal(tick, paced)
        while True:
            wait_us = self._deadline_us(goal) - self.clock()
            if wait_us <= 0:
                self._fold_waiting(signals)
                await trio.lowlevel.checkpoint()
                return goal
            with trio.move_on_after(wait_us / 1e6):
                if self._full:
                    await trio.sleep_forever()
                try:
                    self._fold(drain(signals, await signals.receive(), self._drain_max))
                except trio.EndOfChannel:
                    self._ended = True
                    return goal
                if paced:  # the goal is the very next tick, and nothing can bring it nearer
                    await trio.sleep(REST_S)
            goal = min(goal, self._goal(tick, paced))

    def _fold_waiting(self, signals: trio.MemoryReceiveChannel[MappedSignal]) -> None:
        if not self._full:
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                self._fold(drain(signals, signals.receive_nowait(), self._drain_max))

    def _fold(self, batch: list[MappedSignal]) -> None:
        for signal in batch:
            self._state.fold(signal)
            self.telemetry.observe(signal)

    def _compose(self, tick: int, missed: int) -> Frame:
        began_us, deadline_us = self.clock(), self._deadline_us(tick)
        lateness_ms = max(0, began_us - deadline_us) / 1000
        queue_depth = self.inlet.depth + self.waiting_upstream()
        news = self._degrade(queue_depth, missed > 0 or bool(self._kept))
        level = self.ladder.level
        tick_us = max(1, deadline_us - self._last_us)
        fresh = self._state.compose(deadline_us, tick_us, queue_depth, degrade=self.ladder.frame_level)
        events, text_only = lightened(self._merge(news + fresh), level, self.ladder.policy.shed_keep_tokens)
        self.counter.text_only += text_only
        self._last_us = deadline_us
        self.counter.missed += missed
        self.counter.last += 1 + missed
        perf = Perf(
            lateness_ms=lateness_ms,
            frame_ms=(self.clock() - began_us) / 1000,
            queue_depth=queue_depth,
            degrade=level,
            merged=self.counter.merged,
            dropped_visual=self.counter.dropped_visual,
        )
        self._frame_ms = perf.frame_ms
        self.telemetry.show(events)
        self.telemetry.tick(deadline_us, lateness_ms, perf.frame_ms, self._busy)
        return Frame(self.counter.last, self.wall_ms(), deadline_us, perf, events)

    def _offer(self, frame: Frame) -> None:
        """A refused frame is not lost: its events go into the next one."""
        if self.frames.offer(frame):
            self._kept, self._kept_samples = (), 0
        else:
            self._kept, self._kept_samples = frame.events, _samples(frame.events)
            self.counter.merged += 1

    def _merge(self, fresh: tuple[Event, ...]) -> tuple[Event, ...]:
        if not self._kept:
            return fresh
        newer = {event.session_id for event in fresh if not event.lossless}
        kept = tuple(event for event in self._kept if event.lossless or event.session_id not in newer)
        self.counter.energy_replaced += len(self._kept) - len(kept)
        return joined(kept + fresh) if self.ladder.level >= JOIN else kept + fresh

    def _degrade(self, queue_depth: int, late: bool) -> tuple[Event, ...]:
        """One step of the ladder; the event that tells of it, if the level changed."""
        change = self.ladder.step(queue_depth, self._frame_ms, late)
        self.counter.without_patterns += self.ladder.frame_level > 0
        if change is None:
            return ()
        self.telemetry.degrade.enter(change.level, self.clock())
        payload = DegradePayload(change.level, change.before, change.reason, queue_depth, self._frame_ms)
        return (Event(DEGRADE, None, payload),)

    def _goal(self, tick: int, paced: bool) -> int:
        """The next tick to compose: the very next one after a busy tick, the next one from now when something came up,
        the next whole second when nothing is going on."""
        if self._busy:
            return tick + 1 if paced else max(tick, self._tick_now()) + 1
        from_tick = max(tick, self._tick_now())
        return from_tick + self.tick_hz - from_tick % self.tick_hz

    def _tick_now(self) -> int:
        return (self.clock() - self._t0_us) * self.tick_hz // 1_000_000

    def _deadline_us(self, tick: int) -> int:
        return self._t0_us + tick * 1_000_000 // self.tick_hz

    @property
    def _untold(self) -> bool:
        return self._state.busy or bool(self._kept)

    @property
    def _busy(self) -> bool:
        """Frames are due at full rate, also until the level is 0 again: it goes down by frames."""
        return self._untold or self.ladder.level > 0

    @property
    def _full(self) -> bool:
        waiting_samples = self._state.pending_samples + self._kept_samples
        return waiting_samples > PENDING_SAMPLES_MAX or len(self._kept) > PENDING_EVENTS_MAX

    @property
    def _drain_max(self) -> int:
        return DRAIN_BATCHES_MAX * self.ladder.drain_factor


def _samples(events: tuple[Event, ...]) -> int:
    return sum(len(event.payload.samples) for event in events if isinstance(event.payload, TokensPayload))
