"""The two memories of the pool in virtual time: what runtimes say of GPUs decides, what is elsewhere takes nothing."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.domain.errors import InsufficientMemory
from engine.domain.models import ModelState
from tests.actors.pool_rig import GB, rig

SIZES = {"a": 8 * GB, "b": 8 * GB, "c": 8 * GB, "d": 8 * GB, "small": 2 * GB, "wide": 20 * GB}
BOTH = {"ram_budget_bytes": 16 * GB, "vram_budget_bytes": 12 * GB}


def used(p):
    return (p.pool.resident_bytes - p.pool.vram_bytes) // GB, p.pool.vram_bytes // GB


async def test_a_model_is_on_the_gpu_as_far_as_there_is_room_and_both_budgets_hold(autojump_clock):
    async with rig(SIZES, gpu_bytes=12 * GB, **BOTH) as p:
        await p.use("a")
        assert used(p) == (0, 8)
        await p.use("b")
        await p.use("c")
        assert used(p) == (12, 12)  # b is in both, c in main memory
        assert p.runtime.unloads == []
        assert (await p.use("d")).evicted == ("a",)  # main memory has no room for it, but the place of a has
        assert used(p) == (12, 12)


async def test_models_of_a_runtime_without_a_gpu_are_held_against_main_memory_alone(autojump_clock):
    async with rig(SIZES, **BOTH) as p:
        await p.use("a")
        await p.use("b")
        assert (used(p), p.runtime.unloads) == ((16, 0), [])
        assert (await p.use("c")).evicted == ("a",)  # 12 GB of GPU memory are free
        with pytest.raises(InsufficientMemory, match=r"20\.0 GB of main memory and 0\.0 GB of GPU memory"):
            await p.use("wide")


async def test_a_model_larger_than_each_memory_is_split_and_one_larger_than_both_is_refused(autojump_clock):
    async with rig({**SIZES, "huge": 29 * GB}, gpu_bytes=12 * GB, **BOTH) as p:
        await p.use("wide")
        assert used(p) == (8, 12)
        with pytest.raises(InsufficientMemory) as caught:
            await p.use("huge")
        assert caught.value.message == (
            "huge would take 17.0 GB of main memory and 12.0 GB of GPU memory, and the budgets are 16.0 GB and 12.0 GB"
        )
        assert caught.value.details["used_vram_bytes"] == 12 * GB
        assert p.pool.decisions.of("huge")[-1].numbers["needed_ram_bytes"] == 17 * GB


async def test_a_runtime_that_leaves_models_in_main_memory_is_not_trusted_to_use_the_gpu(autojump_clock):
    """An Ollama built without GPUs, on a machine that has one. Trusted, it would fill 24 GB of 16."""
    async with rig(SIZES, gpu_bytes=0, **BOTH) as p:
        for model in ("a", "b"):
            await p.use(model)
        assert used(p) == (16, 0)
        assert (await p.use("c")).evicted == ("a",)
        with pytest.raises(InsufficientMemory):
            await p.use("wide")
        p.runtime.gpu_bytes = 12 * GB
        await p.use("small")  # a model that is on the GPU again
        assert p.runtime.on_gpu["small"] == 2 * GB
        assert (await p.use("wide")).model == "wide"


async def test_the_next_process_of_a_runtime_is_trusted_again(autojump_clock):
    async with rig(SIZES, gpu_bytes=0, **BOTH) as p:
        await p.use("a")
        assert p.pool.standing(p.ref("wide")).now.__class__.__name__ == "Refuse"
        p.runtime.dies()
        await trio.sleep(1)
        await p.catalog.refresh()
        p.runtime.comes_back()
        await p.catalog.refresh()
        assert p.pool.standing(p.ref("wide")).now.evict == ()


async def test_a_gpu_that_other_programs_use_is_found_out_about(autojump_clock):
    """The budget says 12 GB, and the runtime finds 6."""
    async with rig(SIZES, gpu_bytes=6 * GB, **BOTH) as p:
        await p.use("a")
        assert used(p) == (2, 6)
        await p.use("b")
        assert (used(p), p.runtime.unloads) == ((10, 6), [])
        assert (await p.use("c")).evicted == ("a",)  # 18 GB of main memory otherwise


async def test_what_somebody_else_put_on_a_gpu_counts_there_and_what_grew_too(autojump_clock):
    async with rig(SIZES, gpu_bytes=12 * GB, **BOTH) as p:
        p.runtime.place("a")
        p.runtime.in_memory.add("a")
        await trio.sleep(1)
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert (used(p), p.state("a")) == ((0, 8), ModelState.READY)
        await p.use("small")
        p.runtime.on_gpu["small"] = 0  # it was moved
        await trio.sleep(1)
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert used(p) == (2, 8)
        assert p.pool.status("small").vram_bytes == 0


async def test_without_a_gpu_that_tells_all_is_main_memory_whatever_a_runtime_says(autojump_clock):
    async with rig(SIZES, gpu_bytes=12 * GB, ram_budget_bytes=16 * GB) as p:
        await p.use("a")
        await p.use("b")
        assert used(p) == (16, 0)
        assert (await p.use("c")).evicted == ("a",)
        with pytest.raises(InsufficientMemory) as caught:
            await p.use("wide")
        assert caught.value.message == "wide would take 20.0 GB of memory, and the budget is 16.0 GB"
        assert "vram_budget_bytes" not in caught.value.details


async def test_a_set_is_planned_by_both_memories(autojump_clock):
    async with rig(SIZES, gpu_bytes=12 * GB, **BOTH) as p:
        assert p.handle.plan(p.refs(["a", "b", "c"])).together
        assert not p.handle.plan(p.refs(["a", "b", "c", "d"])).together
    async with rig(SIZES, **BOTH) as p:
        waves = p.handle.plan(p.refs(["a", "b", "c"])).waves
        assert [[model.name for model in wave] for wave in waves] == [["a", "b"], ["c"]]


# ── another machine ──


async def far_away(p):
    """The second runtime is on another machine."""
    p.other.local = False
    await p.catalog.refresh()


async def test_models_of_another_machine_take_nothing_here(autojump_clock):
    others = {"far": 100 * GB, "farther": 100 * GB}
    async with rig(SIZES, others=others, ram_budget_bytes=16 * GB, model_bytes_max=10 * GB, loaded=2) as p:
        await far_away(p)
        await p.use("a")
        await p.use("b")
        for model in ("far", "farther"):
            grant = await p.use(model)
            assert (grant.evicted, grant.resident_bytes) == ((), None)
        await trio.sleep(1)
        await p.catalog.refresh()
        assert (p.pool.resident_bytes, p.runtime.unloads, p.other.unloads) == (16 * GB, [], [])
        assert p.pool.status("far") == attrs.evolve(p.pool.status("far"), resident_bytes=None, vram_bytes=None)
        standing = p.pool.standing(p.ref("far"))
        assert (standing.expected_bytes, standing.reason) == (
            None, "it is on another machine, and takes no memory of this one"
        )  # fmt: skip
        (decision,) = p.pool.decisions.of("far")
        assert (decision.reason, decision.numbers["resident_bytes"]) == (standing.reason, None)
        assert (await p.use("c")).evicted == ("a",)  # as if they were not there
        assert await p.handle.unload(p.ref("far")) == 0  # freed here


async def test_what_others_loaded_on_another_machine_takes_nothing_here(autojump_clock):
    async with rig(SIZES, others={"far": 100 * GB}, ram_budget_bytes=16 * GB, loaded=2) as p:
        p.other.in_memory.add("far")
        await far_away(p)
        assert (p.state("far"), p.pool.resident_bytes) == (ModelState.READY, 0)
        await p.use("a")
        await p.use("b")
        assert (p.runtime.unloads, p.other.unloads) == ([], [])


# ── what can never be had ──


async def test_what_can_never_be_had_is_known_before_anything_begins_and_what_is_in_use_is_not_refused(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=16 * GB) as p:
        held = [await p.hold("a"), await p.hold("b")]
        p.handle.refuse_impossible(p.refs(["c", "d"]))  # each alone could be
        with pytest.raises(InsufficientMemory) as caught:
            p.handle.refuse_impossible(p.refs(["c", "wide"]))
        assert caught.value.details["needed_bytes"] == 20 * GB
        assert (p.kinds("wide"), p.kinds("c"), p.pool.counters.refused) == (["refused"], [], 1)
        for scope in held:
            scope.cancel()


async def test_a_load_that_began_while_gpu_memory_was_taken_says_nothing_of_its_runtime(autojump_clock):
    """b comes while a is on the GPU, and a is gone before b is there."""
    async with rig(SIZES, gpu_bytes=8 * GB, load_s=5.0, ram_budget_bytes=16 * GB, vram_budget_bytes=8 * GB) as p:
        await p.use("a")
        done = p.start(p.use, "b")
        await trio.sleep(1)
        await p.handle.unload(p.ref("a"))
        await trio.sleep(10)
        assert (done[0].model, used(p)) == ("b", (8, 0))
        assert p.pool.standing(p.ref("wide")).now.__class__.__name__ == "Admit"
