"""Whether and when a call that failed is made again. Pure: chance is handed in.

Pauses are "full jitter" (Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015): evenly spread
between nothing and a bound that doubles, so that callers who failed together do not come back together. After the first
token nothing is tried again: the caller has it already, and another answer would begin with other words.
"""

from __future__ import annotations

from typing import Final

import attrs

from engine.domain.errors import (
    EngineError,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)

_DOUBLINGS_MAX: Final = 60
# What may have passed by the next time. Anything else would fail the same way again.
PASSING: Final = (Overloaded, RuntimeUnavailable, UpstreamTimeout, UpstreamTruncated)
PASSING_STATUS: Final = (408, 500, 502, 504, 529)  # 529: Anthropic's word for having too much to do
_REFUSED: Final = (401, 402, 403)  # of a server that will not have us, whatever we wait


@attrs.frozen
class RetryRules:
    """At most `attempts_max` calls in all; the bound of the pause before the second is `base_s`, and never more than
    `cap_s`."""

    attempts_max: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    base_s: float = attrs.field(default=0.25, validator=attrs.validators.gt(0))
    cap_s: float = attrs.field(default=4.0, validator=attrs.validators.gt(0))


def is_passing(error: EngineError) -> bool:
    """Whether the same call may go well the next time."""
    status = error.details.get("status")
    if isinstance(error, UpstreamProtocolError):
        return status in PASSING_STATUS
    return isinstance(error, PASSING) and status not in _REFUSED


def pause_s(
    rules: RetryRules, error: EngineError, attempts: int, *, began: bool, left_s: float, draw: float
) -> float | None:
    """Seconds to wait before the next attempt, or None: no further one.

    `attempts` were made so far, the one that failed with `error` included; `began`: a token has come; `left_s` is what
    is left of the time for the whole call; `draw` is evenly distributed in [0, 1). A server that says how long to wait
    (`retry_after_s` of more than a second, our own guess where it says nothing) is waited for at least that long. A
    pause that leaves no time for another attempt is none."""
    if began or attempts >= rules.attempts_max or not is_passing(error):
        return None
    pause = draw * min(rules.cap_s, rules.base_s * 2.0 ** min(max(0, attempts - 1), _DOUBLINGS_MAX))
    told_s = error.details.get("retry_after_s", 0)
    if isinstance(told_s, int | float) and told_s > 1:
        pause = max(pause, float(told_s))
    return pause if pause < left_s else None
