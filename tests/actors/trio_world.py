"""A trio run in a thread of its own, for state machines: its clock moves only when a step says so."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked


class World:
    """What `open_` gives, as `it`; `do` runs a function there and comes back when everything rests."""

    def __init__(self, open_: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self.open = open_
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(60)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self.clock = MockClock()
            trio.run(self._main, clock=self.clock)
        except BaseException as error:
            self.error = error
        self.ready.set()

    async def _main(self) -> None:
        self.token, self.stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with self.open() as self.it:
            await wait_all_tasks_blocked()
            self.tasks = trio.lowlevel.current_statistics().tasks_living
            self.ready.set()
            await self.stop.wait()

    def do(self, call: Callable[..., Awaitable[Any]] | None, *args: Any) -> Any:
        async def step() -> Any:
            result = await call(*args) if call is not None else None
            await wait_all_tasks_blocked()
            return result

        assert self.error is None, self.error
        return trio.from_thread.run(step, trio_token=self.token)

    def pass_time(self, seconds: float, step_s: float, watch: Callable[[], None]) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.jump(step_s)
            self.do(None)
            watch()

    def count_tasks(self) -> int:
        async def count() -> int:
            return trio.lowlevel.current_statistics().tasks_living - 1  # without the one that counts

        return self.do(count)

    def close(self) -> None:
        if self.error is None:
            trio.from_thread.run_sync(self.stop.set, trio_token=self.token)
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
