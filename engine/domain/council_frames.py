"""A council as frames see it: the meter of its members, and the events that follow from each tick."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from engine.domain.council import (
    ENSEMBLE,
    FORMED,
    INTERFERENCE,
    MEMBER_END,
    MEMBER_ERROR,
    MEMBER_START,
    RESONANCE,
    SYNTHESIS,
    CouncilChosen,
    CouncilFormed,
    FormedPayload,
    InterferencePayload,
    MemberEnded,
    MemberEndPayload,
    MemberName,
    MemberStarted,
    MemberStartPayload,
    PairAgreement,
    ResonancePayload,
    SynthesisPayload,
    WindowPayload,
)
from engine.domain.energy import EnergySample, Phase
from engine.domain.ensemble import EnsembleMeter, EnsembleParams, EnsembleReading, EnsembleStep
from engine.domain.events import Event, StreamReading
from engine.domain.generation import Origin


@attrs.define(eq=False)
class CouncilState:
    """Of one session. `last` holds its synthesis, told after everything else of it."""

    signal: CouncilFormed
    models: dict[str, str]  # public names of the members, by stream
    meter: EnsembleMeter
    last: tuple[Event, ...] = ()
    started: dict[str, MemberStarted] = attrs.field(factory=dict)  # by stream
    ended: dict[str, MemberEnded] = attrs.field(factory=dict)
    _ends: list[Event] = attrs.field(factory=list)  # of members, told after their last tokens

    @classmethod
    def of(cls, formed: CouncilFormed, params: EnsembleParams) -> CouncilState:
        return cls(formed, {ref.stream_id: ref.model for ref in formed.members}, EnsembleMeter(params))

    @property
    def id(self) -> str:
        return self.signal.session_id

    def formed(self) -> Event:
        signal = self.signal
        payload = FormedPayload(
            council_id=self.id,
            models=tuple(self.models.values()),
            members=tuple(MemberName(stream_id, model) for stream_id, model in self.models.items()),
            dropped_models=signal.dropped_models,
            plan="together" if len(signal.waves) == 1 else "waves",
            waves=signal.waves,
            weights=dict.fromkeys(self.models, 1 / len(self.models)),  # nothing is known of any yet
            method=signal.method,
            reason=signal.reason,
        )
        return Event(FORMED, self.id, payload)

    def start(self, started: MemberStarted) -> Event:
        ref = started.stream
        if started.origin is not Origin.SATELLITE:
            self.meter.join(ref.stream_id)
        self.started[ref.stream_id] = started
        payload = MemberStartPayload(
            council_id=self.id,
            stream_id=ref.stream_id,
            model=ref.model,
            cold=started.cold,
            load_ms=started.load_ms,
            asked_us=started.asked_us,
            origin=started.origin,
        )
        return Event(MEMBER_START, self.id, payload)

    def take(self, stream_id: str, samples: Sequence[EnergySample]) -> None:
        started = self.started.get(stream_id)
        outside = started is not None and started.origin is Origin.SATELLITE
        if stream_id in self.models and not outside:  # a judge is no member
            self.meter.take(stream_id, samples)

    def end(self, ended: MemberEnded) -> None:
        self.meter.leave(ended.stream.stream_id)
        self.ended[ended.stream.stream_id] = ended
        payload = MemberEndPayload(
            council_id=self.id,
            stream_id=ended.stream.stream_id,
            model=ended.stream.model,
            end_us=ended.at_us,
            reason=ended.reason,
            tokens=ended.tokens,
            ttft_ms=ended.ttft_ms,
            duration_ms=ended.duration_ms,
            cut=ended.cut,
            error=ended.error,
        )
        self._ends.append(Event(MEMBER_END if ended.error is None else MEMBER_ERROR, self.id, payload))

    def asked_us(self, stream_id: str, session_us: int) -> int:
        """Since when a member was waited for; `session_us` is the start of the session."""
        started = self.started.get(stream_id)
        return session_us if started is None or started.asked_us is None else started.asked_us

    def choose(self, chosen: CouncilChosen) -> None:
        payload = SynthesisPayload(
            council_id=self.id,
            method=chosen.method,
            stream_id=None if chosen.stream is None else chosen.stream.stream_id,
            model=None if chosen.stream is None else chosen.stream.model,
            confidence=chosen.confidence,
            reason=chosen.reason,
            report=chosen.report,
        )
        self.last = (Event(SYNTHESIS, self.id, payload),)

    def step(
        self, now_us: int, readings: Sequence[StreamReading], patterns: bool
    ) -> tuple[EnsembleReading | None, list[Event]]:
        """The ensemble at `now_us`, and what is to be told of it."""
        energies = {
            r.stream_id: None if r.state in (Phase.IDLE, Phase.CHARGING, Phase.DRAINED) else r.energy
            for r in readings
            if r.stream_id in self.models
        }
        step = self.meter.step(now_us, energies, patterns=patterns)
        events = self._told(step)
        events += self._ends
        self._ends = []
        return step.reading, events

    def _told(self, step: EnsembleStep) -> list[Event]:
        events = [
            Event(
                ENSEMBLE,
                self.id,
                WindowPayload(
                    council_id=self.id,
                    positions=window.positions,
                    energy=window.energy,
                    di=window.di,
                    di_method=window.di_method,
                    sync_latency_ms=window.sync_latency_ms,
                    agreement=tuple(PairAgreement(*pair) for pair in window.agreement),
                ),
            )
            for window in step.windows
        ]
        if (band := step.interference) is not None:
            payload = InterferencePayload(
                council_id=self.id,
                pattern=band.pattern,
                intensity=band.intensity,
                coherence=band.coherence,
                correlation=band.correlation,
                models=self._names(band.streams),
            )
            events.append(Event(INTERFERENCE, self.id, payload))
        if (change := step.resonance) is not None:
            resonance = ResonancePayload(
                council_id=self.id,
                phase=change.phase,
                strength=change.strength,
                coherence=change.coherence,
                energy=change.energy,
                correlation=change.correlation,
                duration_ms=change.duration_ms,
                models=self._names(change.streams),
                celebrate=self.signal.celebrates,
            )
            events.append(Event(RESONANCE, self.id, resonance))
        return events

    def _names(self, streams: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.models[stream_id] for stream_id in streams)
