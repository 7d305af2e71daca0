"""The clock of the tests themselves: a thread's real time is no virtual time."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

SLOW_S = 20  # real; only something stuck runs into it


async def test_no_time_passes_while_a_thread_works(autojump_clock):
    done = trio.Event()

    async def work() -> None:
        await trio.to_thread.run_sync(threading.Event().wait, 0.02)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        with trio.fail_after(0.001):
            await done.wait()
    assert trio.current_time() == 0
    await trio.sleep(1000)  # and then it jumps again


async def test_of_two_threads_the_last_one_lets_go(autojump_clock):
    first, go_on = trio.Event(), threading.Event()

    async def short() -> None:
        await trio.to_thread.run_sync(int)
        first.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(short)
        nursery.start_soon(trio.to_thread.run_sync, go_on.wait, SLOW_S)
        await first.wait()
        nursery.start_soon(trio.sleep, 1000)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == 0
        go_on.set()
    assert trio.current_time() == 1000


async def test_an_abandoned_thread_lets_go(autojump_clock):
    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(go_on.wait, SLOW_S, abandon_on_cancel=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    go_on.set()


async def test_what_a_thread_raises_comes_through(autojump_clock):
    with pytest.raises(ValueError, match="invalid literal"):
        await trio.to_thread.run_sync(int, "x")
    await trio.sleep(1)
