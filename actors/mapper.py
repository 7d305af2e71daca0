"""EnergyMapper: tokens in, tokens with their energy out, in the same order. Keeps one meter per running stream."""

from __future__ import annotations

import logging

import attrs
import trio

from actors.kernel import Inlet, Outlet, drain
from engine.domain.energy import EnergyMeter, EnergySample
from engine.domain.events import (
    MappedSignal,
    SampleBatch,
    SessionClosed,
    SessionOpened,
    SessionSignal,
    TokenBatch,
)
from engine.domain.generation import Token

MAILBOX_BATCHES = 512  # several hundred streams may all have a token in the same pass of the event loop
DRAIN_BATCHES_MAX = 64  # per wake, so that a flood cannot keep the loop from the frame clock

logger = logging.getLogger("wf.mapper")


@attrs.define(eq=False)
class MapperCounters:
    """Outlives the mapper's incarnations. `orphans`: tokens of streams it does not know (after a crash of its own);
    `unmeasured`: tokens the maths failed on, shown with energy null."""

    orphans: int = 0
    unmeasured: int = 0


@attrs.define(eq=False)
class EnergyMapper:
    inlet: Inlet[SessionSignal]
    samples: Outlet[MappedSignal]
    counters: MapperCounters
    _meters: dict[str, EnergyMeter] = attrs.field(factory=dict)
    _streams: dict[str, tuple[str, ...]] = attrs.field(factory=dict)  # session → its streams

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the last producer closed. Lossless: waits when the composer is full."""
        async with self.inlet.open() as signals:
            task_status.started()
            async for first in signals:
                for signal in drain(signals, first, DRAIN_BATCHES_MAX):
                    mapped = self._map(signal)
                    if mapped is not None and not self.samples.try_put(mapped):
                        await self.samples.put(mapped)

    def _map(self, signal: SessionSignal) -> MappedSignal | None:
        match signal:
            case TokenBatch():  # nearly all of them
                return self._measure(signal)
            case SessionOpened(session_id=session_id, streams=streams):
                self._streams[session_id] = tuple(ref.stream_id for ref in streams)
                for ref in streams:
                    self._meters[ref.stream_id] = EnergyMeter.started(signal.energy_params, signal.at_us)
                return signal
            case SessionClosed(session_id=session_id):
                for stream_id in self._streams.pop(session_id, ()):
                    self._meters.pop(stream_id, None)
                return signal
            case _:
                return signal

    def _measure(self, batch: TokenBatch) -> SampleBatch | None:
        meter = self._meters.get(batch.stream.stream_id)
        if meter is None:
            self.counters.orphans += len(batch.tokens)
            return None
        samples = [self._sample(meter, token) for token in batch.tokens]
        return SampleBatch(batch.stream, tuple(samples), meter.state)

    def _sample(self, meter: EnergyMeter, token: Token) -> EnergySample:
        try:
            return meter.token(token)
        except (ArithmeticError, ValueError) as error:
            # A maths error on one token is data, not a crash: its text passes and its energy is unknown.
            self.counters.unmeasured += 1
            logger.warning("energy of one token could not be computed: %s", type(error).__name__)
            return meter.unmeasured(token)
