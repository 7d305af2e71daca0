"""Resonance: members that agree, run high and keep the same rhythm for a while.

Starts when coherence (1 − DI, from top lists only), ensemble energy and cadence correlation have all been at their
`on` lines for the dwell, without a break; at most once per interval. Ends when coherence or energy falls below its
`off` line, or when coherence can no longer be measured. The rhythm is needed to start, not to go on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import attrs

from engine.domain.ensemble_params import EnsembleParams


class ResonancePhase(enum.StrEnum):
    START = "start"
    END = "end"


@attrs.frozen
class ResonanceChange:
    """`council.resonance`, and the numbers that caused it. `strength` in [0, 1] is the smallest of coherence, energy
    and correlation: now at the start, the best it was at the end. Coherence, energy and correlation are null at an end
    that came because they were not measured any more; `duration_ms` is null at the start."""

    phase: ResonancePhase
    strength: float
    coherence: float | None
    duration_ms: float | None
    energy: float | None
    correlation: float | None
    streams: tuple[str, ...]


@attrs.frozen
class Harmony:
    """A council at one moment. `coherence` is None unless measured from the top lists of enough members; `fresh` when
    that was in a window that is still whole; `correlation` is asked only when it matters."""

    coherence: float | None
    energy: float | None
    fresh: bool
    correlation: Callable[[], float | None]
    streams: tuple[str, ...]


@attrs.define(eq=False)
class Resonance:
    """The state between steps: on since when, or how long everything has been high enough."""

    params: EnsembleParams
    _on_us: int | None = None  # when the one in force started
    _last_start_us: int | None = None
    _high_us: int | None = None  # all conditions hold since
    _best: float = 0.0
    _streams: tuple[str, ...] = ()

    def step(self, now_us: int, now: Harmony) -> ResonanceChange | None:
        return self._waiting(now_us, now) if self._on_us is None else self._going_on(now_us, self._on_us, now)

    def _waiting(self, now_us: int, now: Harmony) -> ResonanceChange | None:
        params = self.params
        coherence, energy = now.coherence, now.energy
        if (
            coherence is None
            or energy is None
            or coherence < params.resonance_coherence_on
            or energy < params.resonance_energy_on
            or (correlation := now.correlation()) is None
            or correlation < params.resonance_correlation
        ):
            self._high_us = None
            return None
        if self._high_us is None:
            self._high_us = now_us
        if not now.fresh or now_us - self._high_us < params.resonance_dwell_ms * 1000 or self._too_soon(now_us):
            return None
        self._on_us = self._last_start_us = now_us
        self._best, self._streams = min(coherence, energy, correlation), now.streams
        return ResonanceChange(ResonancePhase.START, self._best, coherence, None, energy, correlation, now.streams)

    def _too_soon(self, now_us: int) -> bool:
        last_us = self._last_start_us
        return last_us is not None and now_us - last_us < self.params.resonance_interval_ms * 1000

    def _going_on(self, now_us: int, on_us: int, now: Harmony) -> ResonanceChange | None:
        coherence, energy, correlation = now.coherence, now.energy, now.correlation()
        if (
            coherence is None
            or energy is None
            or coherence < self.params.resonance_coherence_off
            or energy < self.params.resonance_energy_off
        ):
            self._on_us = self._high_us = None
            duration_ms = (now_us - on_us) / 1000
            return ResonanceChange(
                ResonancePhase.END, self._best, coherence, duration_ms, energy, correlation, self._streams
            )
        if correlation is not None:
            self._best = max(self._best, min(coherence, energy, correlation))
        return None
