"""The pool when a runtime dies, and when one only hangs: what is gone with it, and what may still be in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.domain.models import ModelState
from tests.actors.pool_rig import GB, rig

OURS, OTHERS = {"a": 3 * GB, "b": 3 * GB, "c": 3 * GB}, {"x": 3 * GB, "y": 3 * GB}


async def asked_again(p):
    """After a moment, so that the answers are newer than the last move."""
    await trio.sleep(0.5)
    await p.catalog.refresh()
    await wait_all_tasks_blocked()


async def test_a_runtime_that_is_gone_holds_nothing(autojump_clock):
    async with rig(OURS, others=OTHERS, ram_budget_bytes=6 * GB) as p:
        for model in ("a", "x"):
            await p.use(model)
        assert p.pool.resident_bytes == 6 * GB
        p.runtime.dies()
        await asked_again(p)
        assert (p.pool.resident_bytes, p.state("a"), p.state("x")) == (3 * GB, ModelState.ABSENT, ModelState.READY)
        assert p.pool.decisions.of("a")[-1].reason == "its runtime is gone, and what it had in memory with it"
        assert (await p.use("y")).model == "y"
        assert p.runtime.unloads + p.other.unloads == []  # there was room


async def test_what_others_had_loaded_goes_with_its_runtime_too(autojump_clock):
    async with rig(OURS, others=OTHERS, ram_budget_bytes=6 * GB) as p:
        p.runtime.in_memory.update("ab")
        await asked_again(p)
        assert p.pool.resident_bytes == 6 * GB
        p.runtime.dies()
        await asked_again(p)
        assert p.pool.resident_bytes == 0


async def test_a_stream_keeps_its_model_until_it_ends_also_when_its_runtime_is_gone(autojump_clock):
    async with rig(OURS, others=OTHERS, ram_budget_bytes=6 * GB) as p:
        holder = await p.hold("a")
        p.runtime.dies()
        await asked_again(p)
        assert p.pool.streams == 1
        holder.cancel()
        await asked_again(p)
        assert (p.pool.streams, p.state("a")) == (0, ModelState.ABSENT)


@pytest.mark.parametrize("ours", [True, False])
async def test_a_runtime_that_hangs_may_still_hold_what_it_held(autojump_clock, ours):
    async with rig(OURS, others=OTHERS, ram_budget_bytes=6 * GB) as p:
        if ours:
            await p.use("a")
        else:
            p.runtime.in_memory.add("a")
            await asked_again(p)
        await p.use("x")  # later: of the two it is not the one that would go first
        p.runtime.hangs()
        await asked_again(p)
        assert p.pool.resident_bytes == 6 * GB
        assert (await p.use("y")).model == "y"
        assert (p.runtime.unloads, p.other.unloads) == ([], ["x"])  # what hangs cannot be made to go


async def test_what_waits_for_the_room_of_a_runtime_that_hangs_is_told_and_served_when_it_can(autojump_clock):
    for after in ("comes_back", "dies"):
        async with rig(OURS, others=OTHERS, ram_budget_bytes=6 * GB) as p:
            for model in ("a", "b"):
                await p.use(model)
            p.runtime.hangs()
            await asked_again(p)
            waiting = p.start(p.use, "x")
            await wait_all_tasks_blocked()
            (told,) = [each for each in p.told if each[0] == "x"]
            assert told[3].endswith("a and b may still be in memory, where no runtime answers")
            assert p.pool.decisions.of("x")[-1].numbers["stuck_bytes"] == 6 * GB
            getattr(p.runtime, after)()
            await asked_again(p)
            await wait_all_tasks_blocked()
            assert [grant.model for grant in waiting] == ["x"]
            assert p.runtime.unloads == (["a"] if after == "comes_back" else [])


async def test_what_a_dead_runtime_had_may_be_prefetched_when_it_is_back(autojump_clock):
    async with rig(OURS) as p:
        for _ in range(3):
            await p.use("a")
        p.runtime.dies()
        await asked_again(p)
        assert p.pool.memory.uses_since(0) == {"a": 3}
        p.runtime.comes_back()
        await asked_again(p)
        await p.use("b")
        p.runtime.in_memory.clear()  # but one that lives and lets go of a model had a reason
        await asked_again(p)
        assert p.pool.memory.uses_since(0) == {"a": 3}
