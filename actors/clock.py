"""The engine clock: monotonic integer microseconds, zero when the engine started."""

from __future__ import annotations

import attrs
import trio


@attrs.frozen
class EngineClock:
    """Calls from any thread give the same time line; under a mock clock it follows virtual time."""

    _clock: trio.abc.Clock
    _origin_s: float

    @classmethod
    def start(cls) -> EngineClock:
        """Inside a trio run; now is zero."""
        clock = trio.lowlevel.current_clock()
        return cls(clock, clock.current_time())

    def __call__(self) -> int:
        return round((self._clock.current_time() - self._origin_s) * 1_000_000)
