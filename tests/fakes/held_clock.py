"""Virtual time stands still while a thread works: a clock that jumps when no task can run does not know of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock
from weakref import WeakKeyDictionary

import attrs
import trio
from trio.testing import MockClock

_run_sync: Final[Callable[..., Any]] = trio.to_thread.run_sync


@attrs.define
class _Hold:
    """How many threads work under a clock, and after how long without work it jumps otherwise."""

    threads: int
    threshold_s: float


_holds: Final[WeakKeyDictionary[MockClock, _Hold]] = WeakKeyDictionary()


@contextmanager
def _held(clock: MockClock) -> Iterator[None]:
    hold = _holds.setdefault(clock, _Hold(0, clock.autojump_threshold))
    hold.threads += 1
    clock.autojump_threshold = math.inf
    try:
        yield
    finally:
        hold.threads -= 1
        if hold.threads == 0:
            del _holds[clock]
            clock.autojump_threshold = hold.threshold_s


async def run_sync_and_hold(*args: Any, **kwargs: Any) -> Any:
    """`trio.to_thread.run_sync`, during which a jumping clock does not jump. Without one it is the plain function."""
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock) or (clock not in _holds and math.isinf(clock.autojump_threshold)):
        return await _run_sync(*args, **kwargs)
    with _held(clock):
        return await _run_sync(*args, **kwargs)


@contextmanager
def threads_hold_the_clock() -> Iterator[None]:
    """Everybody who calls a thread meanwhile, libraries too, holds the clock with it."""
    with mock.patch.object(trio.to_thread, "run_sync", run_sync_and_hold):
        yield
