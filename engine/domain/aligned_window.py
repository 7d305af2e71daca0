"""Aligned windows of a council: which tokens of its members belong together, and how far they disagree there.

A window holds the latest token of each member, as far as it is no older than max(100 ms, 1.5 × the median of the
members' typical times between arrivals, each the median of its last five). It needs two members with such a token, and
is new when one of the tokens was in no window before. Between windows the last one is held, stale once it is no longer
whole, for 1 s; then there is none, and a reason. Constants stand in policies/ensemble.yaml.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from engine.domain.cadence import Pace, PairCadence
from engine.domain.disagreement import compare, tabulate, timing_disagreement
from engine.domain.energy import EnergySample
from engine.domain.ensemble_params import DiMethod, EnsembleParams
from engine.domain.generation import Token

# Why a disagreement is null.
ONE_MEMBER: Final = "one_member"  # fewer than two are left
NOT_ALIGNED_YET: Final = "not_aligned_yet"  # no window so far: some have not begun
NOT_ALIGNED: Final = "not_aligned"  # no window now, and the last one is too old
SYNC_LOST: Final = "sync_lost"  # no window for sync_lost_ms
NO_LOGPROBS: Final = "no_logprobs"  # a window without top lists, and no pace to go by yet
DEGRADED: Final = "degraded"  # not looked at, to keep frames in time


@attrs.define(eq=False)
class Member:
    """One stream of the council: its latest token, and its last second."""

    pace: Pace = attrs.field(factory=Pace)
    latest: Token | None = None
    compared: int = -1  # position of its token in the last window that it was in

    def take(self, sample: EnergySample) -> None:
        self.latest = sample.token
        self.pace.take(sample)


@attrs.frozen
class AlignedWindow:
    """What a window said. `positions` are the tokens in it, by stream. `sync_latency_ms` is the time between the
    earliest and the latest of them, throttled ones left out. `agreement` is 1 − JSD of every pair of members that both
    reported a top list, whatever the method of `di`. `reason` is set exactly when `di` is None."""

    positions: dict[str, int]
    sync_latency_ms: float | None
    di: float | None = None
    method: DiMethod = DiMethod.NONE
    mixture_uncertainty: float | None = None
    agreement: tuple[tuple[str, str, float], ...] = ()
    reason: str | None = None


@attrs.define(eq=False)
class WindowAligner:
    """The members of a council and their last window, None when there is none to speak of; `reason` says why."""

    params: EnsembleParams
    members: dict[str, Member] = attrs.field(factory=dict)
    window: AlignedWindow | None = None
    stale: bool = False  # the window is held, but no longer whole
    reason: str | None = None
    _pairs: dict[tuple[str, str], PairCadence] = attrs.field(factory=dict)
    _whole_us: int = 0  # when the window was last whole
    _ever: bool = False
    _apart_us: int | None = None  # since when there could have been a window, and was none

    def join(self, stream_id: str) -> None:
        self.leave(stream_id)
        self._pairs.update({(other, stream_id): PairCadence() for other in self.members})
        self.members[stream_id] = Member()

    def leave(self, stream_id: str) -> None:
        if self.members.pop(stream_id, None) is not None:
            for pair in [pair for pair in self._pairs if stream_id in pair]:
                del self._pairs[pair]

    def step(self, now_us: int) -> bool:
        """Bring `window`, `stale` and `reason` to `now_us`. True when the window is a new one."""
        self.reason = None
        if len(self.members) < 2:
            self._drop(ONE_MEMBER)
            return False
        positions, new = self._within(now_us)
        if len(positions) >= 2:
            self._ever, self._apart_us = True, None
            if new:
                self.window, self._whole_us, self.stale = self._look(positions), now_us, False
                return True
        elif self._apart_us is None and sum(m.latest is not None for m in self.members.values()) >= 2:
            self._apart_us = now_us
        self._hold(now_us, positions)
        return False

    def set_aside(self) -> None:
        """A step at which nothing is looked at. No time apart is counted meanwhile."""
        self._drop(DEGRADED if len(self.members) >= 2 else ONE_MEMBER)

    def correlation(self, now_us: int, streams: Sequence[str]) -> float | None:
        """The mean of r over all pairs of `streams` (in the order they joined) for the last second; None unless every
        pair has one. See PairCadence for what is correlated."""
        since_us = now_us - round(self.params.average_ms * 1000)
        found = [
            self._pairs[pair].correlation(since_us, self.params.correlation_samples)
            for pair in itertools.combinations(streams, 2)
        ]
        known = [r for r in found if r is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(found) else None

    def _drop(self, reason: str) -> None:
        self.window, self.stale, self._apart_us, self.reason = None, False, None, reason

    def _hold(self, now_us: int, positions: dict[str, int]) -> None:
        """No new window: is the last one whole, held, or too old?"""
        if self.window is not None and positions == self.window.positions:
            self._whole_us, self.stale = now_us, False
        elif self.window is not None and now_us - self._whole_us <= self.params.hold_ms * 1000:
            self.stale = True
        else:
            self.window, self.stale, self.reason = None, False, self._why_not(now_us)

    def _why_not(self, now_us: int) -> str:
        if self._apart_us is not None and now_us - self._apart_us >= self.params.sync_lost_ms * 1000:
            return SYNC_LOST
        return NOT_ALIGNED if self._ever else NOT_ALIGNED_YET

    def _within(self, now_us: int) -> tuple[dict[str, int], bool]:
        """Positions of the latest tokens that are recent enough, and whether any of them is new."""
        oldest_us = now_us - self._width_us()
        positions, new = {}, False
        for stream_id, member in self.members.items():
            token = member.latest
            if token is not None and token.t_us >= oldest_us:
                positions[stream_id] = token.position
                new = new or token.position > member.compared
        return positions, new

    def _width_us(self) -> float:
        paces = [ms for m in self.members.values() if (ms := m.pace.typical_arrival_ms()) is not None]
        widest_ms = self.params.window_deltas * statistics.median(paces) if paces else 0.0
        return max(self.params.window_ms, widest_ms) * 1000

    def _look(self, positions: dict[str, int]) -> AlignedWindow:
        """Evaluate a new window."""
        tokens: dict[str, Token] = {}
        for stream_id, position in positions.items():
            member = self.members[stream_id]
            member.compared = position
            if member.latest is not None:
                tokens[stream_id] = member.latest
        for first, second in itertools.combinations(positions, 2):
            self._pairs[first, second].take(self.members[first].pace, self.members[second].pace)
        sync_ms = _span_ms(token.t_us for token in tokens.values() if not token.throttled)
        listed = [stream_id for stream_id, token in tokens.items() if token.top]
        agreement: tuple[tuple[str, str, float], ...] = ()
        if len(listed) >= 2:
            table = tabulate([tokens[stream_id].top for stream_id in listed], self.params.top_k)
            if len(table.lists) >= 2:
                compared = compare(table)
                pairs = itertools.combinations([listed[place] for place in table.lists], 2)
                agreement = tuple([(a, b, value) for (a, b), value in zip(pairs, compared.agreement, strict=True)])
                if len(table.lists) == len(tokens):
                    unsure = compared.mixture_uncertainty
                    return AlignedWindow(positions, sync_ms, compared.di, DiMethod.JSD_TOPK, unsure, agreement)
        di = self._timing(positions)
        method, reason = (DiMethod.NONE, NO_LOGPROBS) if di is None else (DiMethod.TIMING, None)
        return AlignedWindow(positions, sync_ms, di, method, agreement=agreement, reason=reason)

    def _timing(self, streams: Iterable[str]) -> float | None:
        """The disagreement of their pace; None when one of them has none."""
        paces = [self.members[stream_id].pace.mean_delta_ms() for stream_id in streams]
        known = [ms for ms in paces if ms is not None]
        return timing_disagreement(known) if len(known) == len(paces) else None


def _span_ms(stamps_us: Iterable[int]) -> float | None:
    stamps = sorted(stamps_us)
    return (stamps[-1] - stamps[0]) / 1000 if len(stamps) >= 2 else None
