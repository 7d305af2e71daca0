"""Interference: the band that a council's disagreement is in, told when it changes.

    constructive  DI ≤ 0.3          neutral  between          destructive  DI ≥ 0.7      (policies/ensemble.yaml)

A band is left only when DI is past its edge by more than the hysteresis, and only after so many aligned windows in a
row have all pointed to the same other band.
"""

from __future__ import annotations

import enum

import attrs

from engine.domain.ensemble_params import DiMethod, EnsembleParams


class Pattern(enum.StrEnum):
    CONSTRUCTIVE = "constructive"
    DESTRUCTIVE = "destructive"
    NEUTRAL = "neutral"


@attrs.frozen
class InterferenceChange:
    """`council.interference`: the band that holds from now on. `coherence` = 1 − DI, `intensity` = |1 − 2·DI|, both of
    the window that settled it; `correlation` of the members' cadence beside them, null when it could not be taken."""

    pattern: Pattern
    intensity: float
    coherence: float
    correlation: float | None
    streams: tuple[str, ...]


def band_of(di: float, params: EnsembleParams) -> Pattern:
    """The band without any memory."""
    if di <= params.constructive:
        return Pattern.CONSTRUCTIVE
    return Pattern.DESTRUCTIVE if di >= params.destructive else Pattern.NEUTRAL


def band_after(band: Pattern | None, di: float, params: EnsembleParams) -> Pattern:
    """The band that `di` points to when `band` holds (None: none yet)."""
    slack = params.hysteresis
    match band:
        case Pattern.CONSTRUCTIVE:
            stays = di <= params.constructive + slack
        case Pattern.DESTRUCTIVE:
            stays = di >= params.destructive - slack
        case Pattern.NEUTRAL:
            stays = params.constructive - slack <= di <= params.destructive + slack
        case _:
            stays = False
    return band if stays and band is not None else band_of(di, params)


@attrs.define(eq=False)
class Interference:
    """The band in force. The first one, too, is told only after its dwell."""

    params: EnsembleParams
    band: Pattern | None = None
    _next: tuple[Pattern, DiMethod] | None = None
    _windows: int = 0  # in a row that pointed to `_next`

    def window(self, di: float, method: DiMethod) -> Pattern | None:
        """One aligned window; the band when it changed to it. Windows of different methods do not add up."""
        pointed = band_after(self.band, di, self.params)
        if pointed is self.band:
            self.interrupt()
            return None
        self._windows = self._windows + 1 if self._next == (pointed, method) else 1
        self._next = (pointed, method)
        if self._windows < self.params.dwell_windows:
            return None
        self.band = pointed
        return pointed

    def interrupt(self) -> None:
        """What was counted so far does not lead anywhere: there was no disagreement to measure."""
        self._next, self._windows = None, 0


def interference_change(
    band: Pattern, di: float, correlation: float | None, streams: tuple[str, ...]
) -> InterferenceChange:
    return InterferenceChange(band, abs(1.0 - 2.0 * di), 1.0 - di, correlation, streams)
