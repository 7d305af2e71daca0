"""How often a crashed actor is started again, and how long to wait before each start."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import attrs

_DOUBLINGS_MAX: Final = 60  # keeps the exponent finite; every real pause is capped long before


class RestartMode(enum.StrEnum):
    NEVER = "never"
    RESTART = "restart"


@attrs.frozen
class RestartPolicy:
    """At most `max_restarts` starts in any `within_s` seconds. The pause starts at `backoff_s`, doubles with each crash
    in the window and never passes `backoff_max_s`."""

    mode: RestartMode = attrs.field(default=RestartMode.RESTART, converter=RestartMode)
    max_restarts: int = attrs.field(default=3, validator=attrs.validators.ge(0))
    within_s: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    backoff_s: float = attrs.field(default=0.05, validator=attrs.validators.ge(0))
    backoff_max_s: float = attrs.field(default=2.0, validator=attrs.validators.ge(0))


NEVER: Final = RestartPolicy(mode=RestartMode.NEVER)


def delay_s(policy: RestartPolicy, crash_times_s: Sequence[float], now_s: float) -> float | None:
    """Seconds to wait before the next start, or None: no further start.

    `crash_times_s` holds the times of the crashes so far, the one being answered included, on the clock of `now_s`.
    Only those less than `within_s` ago count, so an actor that ran well for a while starts with a clean record.
    """
    if policy.mode is RestartMode.NEVER:
        return None
    recent = sum(1 for crashed_s in crash_times_s if now_s - crashed_s < policy.within_s)
    if recent > policy.max_restarts:
        return None
    doublings = min(max(0, recent - 1), _DOUBLINGS_MAX)
    pause_s: float = min(policy.backoff_max_s, policy.backoff_s * 2.0**doublings)
    return pause_s
