"""Whether somebody who keeps failing is asked again: a circuit breaker of three states, pure.

    closed     he is asked; failures in a row are counted
    open       he is not asked for a while, so that nobody waits for what will fail
    half_open  the while is over: a few are let through to see whether he is well again

A success closes it, from any state. A failure of one that was let through opens it again, for longer each time.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

_DOUBLINGS_MAX: Final = 60  # keeps the exponent finite; every real pause is capped long before


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@attrs.frozen
class BreakerRules:
    """`failures` in a row open it for `open_s` seconds. Each time a trial fails that doubles, up to `open_max_s`. At
    most `trials` are under way at once while it is half open."""

    failures: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    open_s: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    open_max_s: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))
    trials: int = attrs.field(default=1, validator=attrs.validators.ge(1))


@attrs.frozen
class Breaker:
    """What is known of one. Times are seconds on any monotonic clock. `opened` counts how often it opened in a row."""

    rules: BreakerRules = attrs.field(factory=BreakerRules)
    failed: int = 0  # in a row, while closed
    opened: int = 0
    until_s: float | None = None  # it stays open until then; None: closed
    trying: int = 0  # let through and not yet over

    def state(self, now_s: float) -> BreakerState:
        if self.until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self.until_s else BreakerState.HALF_OPEN

    def wait_s(self, now_s: float) -> float:
        """Seconds until somebody may be let through; 0 when that is now, or depends on a trial under way."""
        return 0.0 if self.until_s is None else max(0.0, self.until_s - now_s)

    def allows(self, now_s: float) -> bool:
        """Whether one more may be asked. Whoever is asked then must be told with `began`."""
        match self.state(now_s):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return self.trying < self.rules.trials

    def began(self, now_s: float) -> Breaker:
        """One was let through. Only trials are counted: while it is closed there may be any number of them."""
        if self.state(now_s) is BreakerState.HALF_OPEN:
            return attrs.evolve(self, trying=self.trying + 1)
        return self

    def succeeded(self) -> Breaker:
        return Breaker(self.rules)

    def failed_at(self, now_s: float) -> Breaker:
        """After a failure. What fails while it is open was asked before it opened, and says nothing new."""
        match self.state(now_s):
            case BreakerState.CLOSED:
                failed = self.failed + 1
                if failed < self.rules.failures:
                    return attrs.evolve(self, failed=failed)
                return self._open(now_s)
            case BreakerState.HALF_OPEN:
                return self._open(now_s)
            case BreakerState.OPEN:
                return self

    def left(self) -> Breaker:
        """One that was let through is over and says nothing about him: it was cancelled, or the request was at
        fault."""
        return attrs.evolve(self, trying=max(0, self.trying - 1))

    def _open(self, now_s: float) -> Breaker:
        pause_s = min(self.rules.open_max_s, self.rules.open_s * 2.0 ** min(self.opened, _DOUBLINGS_MAX))
        return Breaker(self.rules, opened=self.opened + 1, until_s=now_s + pause_s)
