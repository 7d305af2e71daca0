"""What `/stats` and `/models` report: running figures folded from the same signals the frames are made of.

Percentiles come from the last 512 values (nearest rank). A figure nothing was measured for is null.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from engine.domain.council import CouncilFormed, MemberEnded, MemberStarted
from engine.domain.ensemble import EnsembleReading
from engine.domain.events import (
    AnswerResumed,
    EnergyUpdatePayload,
    Event,
    MappedSignal,
    SampleBatch,
    SessionClosed,
    SessionOpened,
)
from engine.domain.generation import StreamRef

RECENT_MAX: Final = 512
FPS_WINDOW_US: Final = 1_000_000
DEGRADE_LEVELS: Final = 5  # 0, normal, to 4
MODELS_MAX: Final = 256  # figures are kept for so many models; the longest unused one goes first


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Nearest-rank percentile; null for no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _recent() -> deque[float]:
    return deque(maxlen=RECENT_MAX)


@attrs.define(eq=False)
class ModelFigures:
    """`tps_average` and `eu_rate` are over whole answers, once they ended (tokens after the first, time after it)."""

    tps_current: float | None = None
    active_sessions: int = 0
    sessions: int = 0
    total_tokens: int = 0
    eu_micro: int = 0
    streamed_ms: float = 0.0
    streamed_tokens: int = 0
    ttft_cold_ms: float | None = None  # the last one that had to load the model
    ttft_warm_ms: float | None = None
    ttft_ms: deque[float] = attrs.field(factory=_recent)

    @property
    def tps_average(self) -> float | None:
        return self.streamed_tokens * 1000 / self.streamed_ms if self.streamed_ms > 0 else None

    @property
    def eu_rate(self) -> float | None:
        """EU per second of streaming."""
        return self.eu_micro / 1000 / self.streamed_ms if self.streamed_ms > 0 else None


@attrs.define(eq=False)
class _Run:
    """A stream that runs, as far as it has come."""

    asked_us: int
    cold: bool | None = None  # known of members of councils only
    tokens: int = 0
    eu_micro: int = 0
    first_us: int | None = None  # arrival of its first token


@attrs.frozen
class _Course:
    """How a stream went."""

    tokens: int
    ttft_ms: float | None
    duration_ms: float
    cold: bool | None


@attrs.define(eq=False)
class DegradeFigures:
    """The level of degradation, since when (engine clock), and per level how often it was entered and for how long."""

    level: int = 0
    since_us: int = 0
    entries: list[int] = attrs.field(factory=lambda: [0] * DEGRADE_LEVELS)
    _spent_us: list[int] = attrs.field(factory=lambda: [0] * DEGRADE_LEVELS)

    def enter(self, level: int, now_us: int) -> None:
        self._spent_us[self.level] += now_us - self.since_us
        self.entries[level] += 1
        self.level, self.since_us = level, now_us

    def spent_us(self, level: int, now_us: int) -> int:
        """With the time in it until now."""
        return self._spent_us[level] + (now_us - self.since_us if level == self.level else 0)


@attrs.define(eq=False)
class Telemetry:
    """Written by the composer alone; anybody may read it between two awaits."""

    models: dict[str, ModelFigures] = attrs.field(factory=dict)
    lateness_ms: deque[float] = attrs.field(factory=_recent)
    frame_ms: deque[float] = attrs.field(factory=_recent)
    degrade: DegradeFigures = attrs.field(factory=DegradeFigures)
    also: Callable[[MappedSignal], None] = lambda _: None  # hears every signal too; quick, and never raises
    sessions_total: int = 0
    ended: dict[str, int] = attrs.field(factory=dict)  # by reason
    _ticks_us: deque[int] = attrs.field(factory=lambda: deque(maxlen=RECENT_MAX))
    _running: dict[str, SessionOpened] = attrs.field(factory=dict)
    _runs: dict[str, _Run] = attrs.field(factory=dict)  # of running streams
    councils: dict[str, EnsembleReading | None] = attrs.field(factory=dict)  # of running councils, as last measured

    def observe(self, signal: MappedSignal) -> None:
        self.also(signal)
        match signal:
            case SessionOpened():
                self.sessions_total += 1
                self._running[signal.session_id] = signal
                for ref in signal.streams:
                    self._runs[ref.stream_id] = _Run(signal.at_us)
                    figures = self._figures(ref.model)
                    figures.active_sessions += 1
                    figures.sessions += 1
            case SampleBatch():
                figures, samples = self._figures(signal.stream.model), signal.samples
                figures.total_tokens += len(samples)
                figures.tps_current = signal.state.tps
                run = self._runs.get(signal.stream.stream_id)
                if run is not None and samples:
                    run.tokens += len(samples)
                    run.eu_micro += sum([sample.eu_micro for sample in samples])
                    run.first_us = samples[0].token.t_us if run.first_us is None else run.first_us
            case AnswerResumed(seam=seam) if seam.position == 0:
                self._stand_in(signal)
            case CouncilFormed():
                self._form(signal)
            case MemberStarted(stream=ref) if ref.stream_id in self._runs:
                run = self._runs[ref.stream_id]
                run.cold = signal.cold
                run.asked_us = run.asked_us if signal.asked_us is None else signal.asked_us
            case MemberEnded(stream=ref) if ref.stream_id in self._runs:
                cold = self._runs[ref.stream_id].cold
                self._measured(ref, _Course(signal.tokens, signal.ttft_ms, signal.duration_ms, cold))
            case SessionClosed():
                self._close(signal)

    def show(self, events: Iterable[Event]) -> None:
        """The events of a frame: what councils measure is made when frames are."""
        if self.councils:
            for event in events:
                if isinstance(event.payload, EnergyUpdatePayload) and event.session_id in self.councils:
                    self.councils[event.session_id] = event.payload.ensemble

    def tick(self, deadline_us: int, lateness_ms: float, frame_ms: float, busy: bool) -> None:
        """Lateness counts only while frames are due at full rate."""
        self._ticks_us.append(deadline_us)
        if busy:
            self.lateness_ms.append(lateness_ms)
            self.frame_ms.append(frame_ms)

    def fps(self, now_us: int) -> float:
        """Frames composed in the last second."""
        return float(sum(1 for at in self._ticks_us if now_us - FPS_WINDOW_US < at <= now_us))

    def _figures(self, model: str) -> ModelFigures:
        figures = self.models.pop(model, None) or ModelFigures()
        self.models[model] = figures  # last used last
        if len(self.models) > MODELS_MAX:
            idle = next(
                (name for name, kept in self.models.items() if not kept.active_sessions and name != model), None
            )
            if idle is not None:
                del self.models[idle]
        return figures

    def _stand_in(self, resumed: AnswerResumed) -> None:
        """Another model answers in place of the one that was asked: the stream is its own."""
        opened, seam = self._running.get(resumed.session_id), resumed.seam
        streams = []
        for ref in () if opened is None else opened.streams:
            if ref.stream_id == seam.stream_id:
                self._figures(ref.model).active_sessions -= 1
                ref = attrs.evolve(ref, model=seam.model)
                figures = self._figures(ref.model)
                figures.active_sessions += 1
                figures.sessions += 1
            streams.append(ref)
        if opened is not None:
            self._running[resumed.session_id] = attrs.evolve(opened, streams=tuple(streams))

    def _form(self, formed: CouncilFormed) -> None:
        self.councils[formed.session_id] = None
        opened, members = self._running.get(formed.session_id), {ref.stream_id for ref in formed.members}
        for ref in () if opened is None else opened.streams:
            if ref.stream_id not in members:  # a judge's time is that of no answer
                self._runs.pop(ref.stream_id, None)

    def _close(self, closed: SessionClosed) -> None:
        if closed.session_id not in self._running:
            return  # told again after a crash, and counted already
        self.ended[closed.reason] = self.ended.get(closed.reason, 0) + 1
        council = closed.session_id in self.councils
        self.councils.pop(closed.session_id, None)
        opened = self._running.pop(closed.session_id)
        for ref in opened.streams:
            run = self._runs.get(ref.stream_id)
            if not council:
                self._measured(ref, _Course(closed.tokens, closed.ttft_ms, closed.duration_ms, closed.cold))
            elif run is not None:  # the others were measured when they ended
                self._measured(ref, _stopped(run, closed.at_us))
            figures = self._figures(ref.model)
            figures.active_sessions -= 1
            figures.tps_current = None

    def _measured(self, ref: StreamRef, course: _Course) -> None:
        """A stream that has ended, or gave something before it was stopped."""
        run = self._runs.pop(ref.stream_id, None)
        earned = 0 if run is None else run.eu_micro
        if course.ttft_ms is None:
            return
        figures = self._figures(ref.model)
        figures.ttft_ms.append(course.ttft_ms)
        if course.cold:
            figures.ttft_cold_ms = course.ttft_ms
        elif course.cold is False:  # null: nobody can tell
            figures.ttft_warm_ms = course.ttft_ms
        if course.tokens >= 2:
            figures.eu_micro += earned
            figures.streamed_tokens += course.tokens - 1
            figures.streamed_ms += course.duration_ms - course.ttft_ms


def _stopped(run: _Run, closed_us: int) -> _Course:
    """Of a member whose council was over before it had ended."""
    ttft_ms = None if run.first_us is None else (run.first_us - run.asked_us) / 1000
    return _Course(run.tokens, ttft_ms, (closed_us - run.asked_us) / 1000, run.cold)
