"""Cadence of the members of a council: the recent pace of each, and how far the rhythms of two go together.

Sums slide over their span as integers (µs, and nano for certainty), so that they stay exact however long a stream runs.
A token that our own queue held up (`throttled`) says nothing about its model's pace and carries none here.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from typing import Final, NamedTuple

import attrs

from engine.domain.energy import EnergySample

NANO: Final = 1_000_000_000
TOKENS_MAX: Final = 4096  # of one span; the oldest go first
PAIR_SAMPLES_MAX: Final = 256  # the same, for two members
TYPICAL_ARRIVALS: Final = 5  # last ones that tell the typical time between arrivals; two pauses in them do not show


class _Past(NamedTuple):
    """What one token adds to the sums. A token of a shared chunk took no time of its own: `arrived` is 0."""

    t_us: int
    timed: int  # 1 with a Δt that counts
    arrived: int
    delta_us: int
    rated: int  # 1 with a certainty
    certainty_nano: int


@attrs.define(eq=False)
class Pace:
    """One member's tokens over the last span: mean Δt and mean certainty; and its last arrivals.

    `gap_us` is the Δt of its last arrival (tokens of one chunk arrive once), None when that was the first or throttled;
    `gap_at_us` and `gap_position` say which it was.
    """

    gap_us: int | None = None
    gap_at_us: int = 0
    gap_position: int = -1
    _past: deque[_Past] = attrs.field(factory=deque)
    _timed: int = 0
    _arrived: int = 0
    _delta_us: int = 0
    _rated: int = 0
    _certainty_nano: int = 0
    _gaps_us: deque[int] = attrs.field(factory=lambda: deque(maxlen=TYPICAL_ARRIVALS))
    _typical_ms: float | None = None  # median of them, once somebody asked

    def take(self, sample: EnergySample) -> None:
        token, certainty = sample.token, sample.uncertainty.certainty
        delta_us = 0 if token.delta_us is None else token.delta_us
        timed = token.delta_us is not None and not token.throttled
        if delta_us > 0 or token.delta_us is None:
            self.gap_us = delta_us if timed else None
            self.gap_at_us, self.gap_position = token.t_us, token.position
        past = _Past(
            token.t_us,
            timed=int(timed),
            arrived=int(timed and delta_us > 0),
            delta_us=delta_us if timed else 0,
            rated=int(certainty is not None),
            certainty_nano=0 if certainty is None else round(certainty * NANO),
        )
        self._add(past, 1)
        self._past.append(past)
        if past.arrived:
            self._gaps_us.append(delta_us)
            self._typical_ms = None
        if len(self._past) > TOKENS_MAX:
            self._add(self._past.popleft(), -1)

    def forget(self, before_us: int) -> None:
        """Drop what is older than `before_us`."""
        past = self._past
        while past and past[0].t_us < before_us:
            self._add(past.popleft(), -1)

    def mean_delta_ms(self) -> float | None:
        """Mean Δt per token, those of shared chunks included; None when no arrival of the span was timed."""
        return self._delta_us / self._timed / 1000 if self._arrived else None

    def typical_arrival_ms(self) -> float | None:
        """Median of the last times between arrivals, however long ago; with several tokens per chunk it is longer than
        the mean Δt. None when there never was one."""
        if self._typical_ms is None and self._gaps_us:
            self._typical_ms = statistics.median(self._gaps_us) / 1000
        return self._typical_ms

    def mean_certainty(self) -> float | None:
        return self._certainty_nano / self._rated / NANO if self._rated else None

    def _add(self, past: _Past, sign: int) -> None:
        self._timed += sign * past.timed
        self._arrived += sign * past.arrived
        self._delta_us += sign * past.delta_us
        self._rated += sign * past.rated
        self._certainty_nano += sign * past.certainty_nano


@attrs.define(eq=False)
class PairCadence:
    """Pearson's r of the Δt of two members.

    The two series: at every new aligned window, the time `gap_us` that each member's last arrival took. A window gives
    a sample only when both members arrived anew since the sample before (else the slower one would be counted twice)
    and neither arrival was throttled or first. Counted are the samples of the last span, by the later of the two
    arrivals. They are added up when r is asked for, which is seldom: most windows only leave a sample.
    """

    _samples: deque[tuple[int, int, int]] = attrs.field(factory=deque)  # at_us, x, y
    _added: int = 0  # of them, from the left, are in the sums
    _x: int = 0
    _y: int = 0
    _xx: int = 0
    _yy: int = 0
    _xy: int = 0
    _first_position: int = -1
    _second_position: int = -1

    def take(self, first: Pace, second: Pace) -> None:
        if first.gap_position <= self._first_position or second.gap_position <= self._second_position:
            return
        self._first_position, self._second_position = first.gap_position, second.gap_position
        if first.gap_us is None or second.gap_us is None:
            return
        self._samples.append((max(first.gap_at_us, second.gap_at_us), first.gap_us, second.gap_us))
        if len(self._samples) > PAIR_SAMPLES_MAX:
            self._drop()

    def correlation(self, before_us: int, samples_min: int) -> float | None:
        """r in [−1, 1] of the samples since `before_us`. None with fewer than `samples_min` of them, or when one of the
        members kept an exactly constant pace, which has no r."""
        samples = self._samples
        while samples and samples[0][0] < before_us:
            self._drop()
        for sample in itertools.islice(samples, self._added, None):
            self._add(sample, 1)
        self._added = count = len(samples)
        if count < samples_min:
            return None
        x_variance = count * self._xx - self._x * self._x
        y_variance = count * self._yy - self._y * self._y
        if x_variance == 0 or y_variance == 0:
            return None
        r = (count * self._xy - self._x * self._y) / (math.sqrt(x_variance) * math.sqrt(y_variance))
        return max(-1.0, min(1.0, r))

    def _drop(self) -> None:
        """The oldest."""
        sample = self._samples.popleft()
        if self._added:
            self._added -= 1
            self._add(sample, -1)

    def _add(self, sample: tuple[int, int, int], sign: int) -> None:
        _, x, y = sample
        self._x += sign * x
        self._y += sign * y
        self._xx += sign * x * x
        self._yy += sign * y * y
        self._xy += sign * x * y
