"""What the pool decided about each model, and with which numbers: the last few of each, for people who ask why."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

import attrs

from policies.admission import Numbers

DECISIONS_MAX: Final = 16  # of one model
MODELS_MAX: Final = 256  # the one that was decided about longest ago goes first


class Kind(enum.StrEnum):
    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    FOUND = "found"  # somebody else loaded it
    WAITING = "waiting"
    REFUSED = "refused"
    EVICTED = "evicted"
    UNLOADED = "unloaded"  # on purpose
    LOST = "lost"  # its runtime let go of it
    PREFETCHED = "prefetched"
    NOT_WARMED_UP = "not_warmed_up"  # it is in memory, and gave no first token


@attrs.define
class PoolCounters:
    """Since the start. `lost`: models that a runtime dropped by itself; `reloads`: loaded again for a request although
    they were in memory. `thrashes`: loads of a model that was evicted less than a cool-down ago; `prefetches`: loads
    that nobody had asked for."""

    loads: int = 0
    evictions: int = 0
    lost: int = 0
    reloads: int = 0
    refused: int = 0
    thrashes: int = 0
    prefetches: int = 0


@attrs.frozen
class Decision:
    """`times`: so often in a row, `at_us` the last of them (engine clock)."""

    at_us: int
    kind: Kind
    reason: str | None = None
    numbers: Numbers = attrs.field(factory=dict)
    times: int = 1


@attrs.define(eq=False)
class DecisionLog:
    """Written by the pool alone; anybody may read it between two awaits."""

    _of: dict[str, deque[Decision]] = attrs.field(factory=dict)

    def note(
        self, at_us: int, model: str, kind: Kind, reason: str | None = None, numbers: Numbers | None = None
    ) -> None:
        """The same again is counted, not kept twice."""
        ring = self._of.pop(model, None) or deque(maxlen=DECISIONS_MAX)
        self._of[model] = ring  # the last decided about is last
        decision = Decision(at_us, kind, reason, numbers or {})
        if ring and (ring[-1].kind, ring[-1].reason) == (kind, reason):
            decision = attrs.evolve(decision, times=ring.pop().times + 1)
        ring.append(decision)
        if len(self._of) > MODELS_MAX:
            del self._of[next(iter(self._of))]

    def of(self, model: str) -> tuple[Decision, ...]:
        """The oldest first."""
        return tuple(self._of.get(model, ()))
