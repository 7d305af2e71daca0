"""How long somebody in the queue will wait, by what was measured: how long leases last, and how long loads take. Pure.

An estimate and no promise: null as long as nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

NEWEST_SHARE: Final = 0.3  # of the newest value in a running mean
MODELS_MAX: Final = 256  # models whose load is remembered; the longest unused goes first


@attrs.define(eq=False)
class Paces:
    """Running means of what the pool saw, in ms: the life of a lease, and the cold load of each model."""

    lease_ms: float | None = None
    _load_ms: dict[str, float] = attrs.field(factory=dict)

    def saw_lease(self, lasted_ms: float) -> None:
        self.lease_ms = _mean(self.lease_ms, lasted_ms)

    def saw_load(self, model: str, lasted_ms: float) -> None:
        self._load_ms[model] = _mean(self._load_ms.pop(model, None), lasted_ms)
        if len(self._load_ms) > MODELS_MAX:
            del self._load_ms[next(iter(self._load_ms))]

    def load_ms(self, model: str) -> float | None:
        """Of this model; of all the others together when it never was loaded; null when none was."""
        if model in self._load_ms:
            return self._load_ms[model]
        return sum(self._load_ms.values()) / len(self._load_ms) if self._load_ms else None


def estimated_wait_ms(
    position: int, running_ms: Sequence[float], lease_ms: float | None, load_ms: float | None
) -> float | None:
    """Until the place at `position` (from 1) has its model: the leases that run (`running_ms`: for how long already)
    end after `lease_ms`, and each end lets one place move up; then its load, `load_ms` (0: none is needed).

    Null where one of them is not known. A lease that has outlived the mean may end at any moment.
    """
    if lease_ms is None or load_ms is None or not running_ms:
        return None
    left = sorted(max(0.0, lease_ms - ran_ms) for ran_ms in running_ms)
    rounds, place = divmod(position - 1, len(left))
    return left[place] + rounds * lease_ms + load_ms


def in_words(wait_ms: float) -> str:
    """`about 3 s`, `about 20 s`, `about 4 min`: no more exact than it is."""
    seconds = wait_ms / 1000
    if seconds < 10:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90:
        return f"about {round(seconds / 5) * 5} s"
    return f"about {round(seconds / 60)} min"


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + NEWEST_SHARE * (newest - before)
