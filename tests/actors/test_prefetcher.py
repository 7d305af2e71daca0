"""Models brought into free memory before anybody asks, in virtual time."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.prefetcher import PAUSE_S, Prefetcher
from engine.domain.errors import UpstreamTimeout
from engine.domain.models import ModelState
from tests.actors.pool_rig import GB, rig
from tests.fakes.runtime import Fail, Say, words

SIZES = {"a": 2 * GB, "b": 2 * GB, "c:latest": 2 * GB, "d": 2 * GB}
LIMITS = {"ram_budget_bytes": 6 * GB, "cooldown_us": 30_000_000}


@asynccontextmanager
async def prefetching(*, warm=(), councils=(), often=True, **more):
    async with rig(SIZES, **{**LIMITS, **more}) as p:
        prefetcher = Prefetcher(p.catalog, p.handle, warm, councils, often)
        await p.nursery.start(lambda task_status: prefetcher.run(task_status=task_status))
        yield p


async def test_warm_models_and_members_of_councils_come_in_while_there_is_room(autojump_clock):
    async with prefetching(warm=["missing", "c", "a"], councils=[("b", "d")], load_s=1.0) as p:
        await trio.sleep(10)
        assert p.runtime.loads == ["c:latest", "a", "b"]  # d would need somebody to go
        assert (p.pool.counters.prefetches, p.pool.counters.evictions) == (3, 0)


async def test_nothing_comes_in_while_a_model_is_in_use(autojump_clock):
    async with rig(SIZES, **LIMITS) as p:
        holder = await p.hold("d")
        prefetcher = Prefetcher(p.catalog, p.handle, ["a"])
        await p.nursery.start(lambda task_status: prefetcher.run(task_status=task_status))
        await trio.sleep(60)
        assert p.runtime.loads == ["d"]
        holder.cancel()
        await trio.sleep(PAUSE_S + 1)
        assert p.runtime.loads == ["d", "a"]


async def test_what_is_used_often_comes_back_when_there_is_room_again(autojump_clock):
    async with prefetching(ram_budget_bytes=4 * GB) as p:
        for _ in range(3):
            await p.use("a")
        await p.use("b")
        await trio.sleep(31)
        await p.use("d")  # a goes for it
        assert p.runtime.unloads == ["a"]
        await trio.sleep(60)
        assert p.runtime.loads == ["a", "b", "d"]  # no room
        await p.handle.unload(p.ref("d"))
        await trio.sleep(PAUSE_S + 1)
        assert p.runtime.loads == ["a", "b", "d", "a"]


async def test_a_model_evicted_a_moment_ago_is_not_brought_back(autojump_clock):
    async with prefetching(ram_budget_bytes=4 * GB) as p:
        for _ in range(3):
            await p.use("a")
        await p.use("b")
        await trio.sleep(31)
        await p.use("d")
        await p.handle.unload(p.ref("d"))
        await trio.sleep(29)
        assert p.runtime.loads == ["a", "b", "d"]
        await trio.sleep(PAUSE_S + 2)
        assert p.runtime.loads == ["a", "b", "d", "a"]


async def test_what_its_runtime_let_go_of_stays_out_until_it_is_used_again(autojump_clock):
    async with prefetching(warm=["a"]) as p:
        await trio.sleep(40)
        p.runtime.in_memory.clear()  # its keep-alive ran out
        await p.catalog.refresh()
        await trio.sleep(100)
        assert p.runtime.loads == ["a"]
        assert p.kinds("a") == ["prefetched", "lost"]
        await p.use("a")
        assert p.kinds("a")[-1] == "loaded"


async def test_what_a_person_unloaded_stays_out(autojump_clock):
    async with prefetching(warm=["a"]) as p:
        await trio.sleep(1)
        await p.handle.unload(p.ref("a"))
        await trio.sleep(100)
        assert p.runtime.loads == ["a"]


async def test_a_model_that_fails_is_not_tried_again_and_again(autojump_clock):
    async with rig(SIZES, **LIMITS) as p:
        p.runtime.broken.add("a")
        prefetcher = Prefetcher(p.catalog, p.handle, ["a", "b"])
        await p.nursery.start(lambda task_status: prefetcher.run(task_status=task_status))
        await trio.sleep(100)
        assert p.runtime.loads == ["a", "b"]


async def test_with_nothing_to_look_for_it_ends(autojump_clock):
    async with rig(SIZES) as p:
        with trio.fail_after(1):
            await Prefetcher(p.catalog, p.handle, often=False).run(task_status=trio.TASK_STATUS_IGNORED)


async def test_what_comes_in_before_it_is_asked_for_is_warmed_up(autojump_clock):
    async with rig(SIZES, load_s=1.0) as p:
        p.runtime.script = words(3, 0.5)
        await p.handle.prefetch(p.ref("a"))
        await trio.sleep(1)
        assert [(r.model, r.parameters.max_tokens) for r in p.runtime.requests] == [("a", 1)]
        assert (p.runtime.opened, p.runtime.closed) == (1, 1)
        await p.use("b")
        assert len(p.runtime.requests) == 1  # what is asked for is warmed up by its answer


async def test_nobody_waits_for_a_model_to_be_warmed_up(autojump_clock):
    async with rig(SIZES, load_s=1.0) as p:
        p.runtime.script = (Say("late", 5.0),)
        await p.handle.prefetch(p.ref("a"))
        await trio.sleep(0.5)
        assert (p.runtime.opened, p.runtime.closed) == (1, 0)
        assert (await p.use("a")).cold is False
        await wait_all_tasks_blocked()
        assert (trio.current_time(), p.runtime.closed) == (1.5, 1)
        await p.handle.prefetch(p.ref("b"))
        await trio.sleep(0.5)
        await p.handle.unload(p.ref("b"))
        assert p.runtime.opened == p.runtime.closed == 2


@pytest.mark.parametrize("script", [(Fail(UpstreamTimeout("gone")),), (Say("late", 60.0),)])
async def test_a_model_that_does_not_warm_up_is_in_memory_all_the_same(autojump_clock, script):
    async with rig(SIZES) as p:
        p.runtime.script = script
        assert (await p.handle.prefetch(p.ref("a"))).cold is True
        await trio.sleep(10.5)
        assert (p.state("a"), p.runtime.opened, p.runtime.closed) == (ModelState.READY, 1, 1)
