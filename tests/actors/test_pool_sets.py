"""Sets of models in the pool, in virtual time: all of them or none yet, in waves where they do not fit together."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.lease import Grant
from engine.domain.errors import InsufficientMemory, ModelLoadFailed, Overloaded, TierLimitExceeded
from engine.domain.models import ModelState
from tests.actors.pool_rig import GB, rig

SIZES = {"a": 2 * GB, "b": 2 * GB, "c": 2 * GB, "d": 2 * GB, "huge": 9 * GB}


def names(waves):
    return [[model.name for model in wave] for wave in waves]


async def test_a_set_is_had_together_and_given_back_together(autojump_clock):
    async with rig(SIZES, load_s=2.0) as p:
        async with p.handle.lease_set(p.refs("abc"), p.tell_of) as got:
            assert [(grant.model, grant.cold, grant.load_ms) for grant in got] == [
                ("a", True, 2000.0), ("b", True, 2000.0), ("c", True, 2000.0),
            ]  # fmt: skip
            assert (trio.current_time(), p.pool.streams) == (2.0, 3)  # they loaded side by side
        await wait_all_tasks_blocked()
        assert p.pool.streams == 0
        assert [(name, state) for name, state, *_ in p.told if name == "a"] == [
            ("a", ModelState.LOADING), ("a", ModelState.READY),
        ]  # fmt: skip


async def test_a_waiting_set_holds_nothing(autojump_clock):
    async with rig(SIZES, parallel=2) as p:
        holder = await p.hold("a")
        waiting = p.start(p.use_set, "bc")
        await wait_all_tasks_blocked()
        assert (waiting, p.pool.streams, p.runtime.loads) == ([], 1, ["a"])
        assert (await p.use("d")).cold is True  # what the set waits for is not kept from others
        told = [entry for entry in p.told if entry[1] is ModelState.QUEUED][:2]
        reason = "1 of 2 models are in use, and 2 more are wanted at once"
        assert told == [("b", ModelState.QUEUED, 1, reason), ("c", ModelState.QUEUED, 1, reason)]
        holder.cancel()
        await wait_all_tasks_blocked()
        assert [grant.model for grant in waiting[0]] == ["b", "c"]


async def test_two_sets_that_share_models_do_not_lock_each_other(autojump_clock):
    async with rig(SIZES, parallel=2, load_s=1.0) as p:
        sets = [p.start(p.use_set, pair, 5.0) for pair in ("ab", "ba", "bc", "cd", "da")]
        await trio.sleep(60)
        assert [len(done) for done in sets] == [1] * 5
        assert all(isinstance(grant, Grant) for (got,) in sets for grant in got)
        assert p.pool.streams == 0


async def test_a_member_that_goes_out_of_memory_while_others_load_is_loaded_again(autojump_clock):
    async with rig(SIZES, load_s=2.0) as p:
        await p.use("a")
        done = p.start(p.use_set, "ab")
        await trio.sleep(1)
        p.runtime.in_memory.discard("a")
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert (p.state("a"), p.pool.memory.entries["a"].lost) == (ModelState.READY, True)  # it is held
        await trio.sleep(10)
        assert [(grant.model, grant.cold) for grant in done[0]] == [("a", True), ("b", False)]
        assert (p.runtime.loads, p.pool.streams) == (["a", "b", "a"], 0)
        assert "lost" in p.kinds("a")


async def test_a_member_that_does_not_stay_fails_alone(autojump_clock):
    async with rig(SIZES, load_s=2.0) as p:
        await p.use("a")
        done = p.start(p.use_set, "ab", 1.0)
        for lost in "aba":  # each while the other is loaded
            await trio.sleep(1)
            p.runtime.in_memory.discard(lost)
            await p.catalog.refresh()
            await trio.sleep(1)
        await trio.sleep(10)
        failed, held = done[0]
        assert isinstance(failed, ModelLoadFailed)
        assert "out of memory" in failed.message
        assert (held.model, p.pool.streams) == ("b", 0)


async def test_a_model_that_was_lost_in_use_is_loaded_again_for_the_next(autojump_clock):
    async with rig(SIZES) as p:
        holder = await p.hold("a")
        p.runtime.in_memory.discard("a")
        await trio.sleep(1)
        await p.catalog.refresh()
        holder.cancel()
        await wait_all_tasks_blocked()
        assert (await p.use("a")).cold is True
        assert p.runtime.loads == ["a", "a"]


async def test_who_comes_to_a_lost_model_that_others_hold_is_not_kept_waiting(autojump_clock):
    async with rig(SIZES) as p:
        holder = await p.hold("a")
        p.runtime.in_memory.discard("a")
        await trio.sleep(1)
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert [grant.model for grant in await p.use_set("ab")] == ["a", "b"]
        assert (await p.use("a")).model == "a"
        holder.cancel()


async def test_a_model_that_is_back_is_not_lost(autojump_clock):
    async with rig(SIZES) as p:
        holder = await p.hold("a")
        for there in (False, True):  # a runtime loads by itself what it is asked
            (p.runtime.in_memory.add if there else p.runtime.in_memory.discard)("a")
            await trio.sleep(1)
            await p.catalog.refresh()
            await wait_all_tasks_blocked()
            assert p.pool.memory.entries["a"].lost is not there
        holder.cancel()
        await wait_all_tasks_blocked()
        assert p.state("a") is ModelState.READY


async def test_a_member_that_does_not_load_takes_nothing_from_the_others(autojump_clock):
    async with rig(SIZES, load_s=1.0) as p:
        p.runtime.broken.add("b")
        async with p.handle.lease_set(p.refs("abc"), p.tell_of) as (a, b, c):
            assert (a.model, c.model) == ("a", "c")
            assert isinstance(b, ModelLoadFailed)
            assert p.pool.streams == 2
        await wait_all_tasks_blocked()
        assert p.pool.streams == 0
        assert ("b", ModelState.FAILED, None, "b is broken") in p.told


async def test_a_member_that_can_never_be_had_is_an_error_among_the_grants(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        a, huge = await p.use_set(["a", "huge"])
        assert a.model == "a"
        assert isinstance(huge, InsufficientMemory)


async def test_a_set_that_never_fits_together_is_refused_as_a_whole(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        with pytest.raises(InsufficientMemory) as caught:
            await p.use_set("abcd")
        assert caught.value.details["needed_bytes"] == 8 * GB
        assert caught.value.message.startswith("a, b, c and d would take 8.0 GB")
        assert p.runtime.loads == []
    async with rig(SIZES, parallel=2) as p:
        with pytest.raises(TierLimitExceeded, match="3 models in use at once, and 2 are allowed"):
            await p.use_set("abc")


async def test_a_cancelled_set_gives_up_its_place_and_what_it_had(autojump_clock):
    for leave_s in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        async with rig(SIZES, streams=2, load_s=1.0) as p:
            p.start(p.use, "d", 0.75)
            await wait_all_tasks_blocked()
            with trio.move_on_after(leave_s):
                await p.use_set("ab", 1.0)
            await trio.sleep(5)
            assert (p.pool.streams, p.pool.queued) == (0, 0)
            assert len(await p.use_set("ab")) == 2


async def test_a_set_in_a_full_queue_is_refused(autojump_clock):
    async with rig(SIZES, streams=1, queued=1) as p:
        holder = await p.hold("a")
        p.start(p.use, "b")
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="1 requests are waiting already"):
            await p.use_set("b")
        holder.cancel()


async def test_the_same_model_twice_is_two_streams_of_one_model(autojump_clock):
    async with rig(SIZES, parallel=1) as p:
        async with p.handle.lease_set(p.refs("aa"), p.tell_of) as got:
            assert [grant.model for grant in got] == ["a", "a"]
            assert (p.pool.streams, p.runtime.loads) == (2, ["a"])
        await wait_all_tasks_blocked()
        assert p.pool.streams == 0


async def test_an_empty_set_is_had_at_once(autojump_clock):
    async with rig(SIZES) as p:
        assert await p.use_set("") == ()


async def test_whoever_waits_for_a_set_when_the_pool_stops_is_told(autojump_clock):
    async with rig(SIZES, streams=2) as p, trio.open_nursery() as nursery:
        told = []

        async def wait():
            with pytest.raises(Overloaded, match="stopping"):
                await p.use_set("bc")
            told.append(1)

        await p.hold("a")
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        p.pool._nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert told == [1]


# ── waves ──


async def test_what_fits_is_one_wave(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        plan = p.handle.plan(p.refs("abc"))
        assert (names(plan.waves), plan.together) == ([["a", "b", "c"]], True)


async def test_what_does_not_fit_comes_in_waves_and_what_is_there_goes_first(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=5 * GB) as p:
        await p.use("c")
        assert names(p.handle.plan(p.refs("abcd")).waves) == [["a", "c"], ["b", "d"]]
    async with rig(SIZES, parallel=3) as p:
        assert names(p.handle.plan(p.refs("abcd")).waves) == [["a", "b", "c"], ["d"]]


async def test_pinned_models_narrow_the_waves(autojump_clock):
    async with rig(SIZES, loaded=2) as p:
        await p.handle.load(p.ref("d"), p.teller("d"), pin=True)
        assert names(p.handle.plan(p.refs("abd")).waves) == [["a", "d"], ["b"]]


async def test_a_plan_names_the_one_that_can_never_be_there(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=5 * GB) as p:
        with pytest.raises(InsufficientMemory, match="huge would take"):
            p.handle.plan(p.refs(["a", "huge"]))


async def test_a_model_may_stand_twice_in_a_plan(autojump_clock):
    async with rig(SIZES, parallel=1) as p:
        assert names(p.handle.plan(p.refs("aba")).waves) == [["a", "a"], ["b"]]


async def test_every_wave_of_a_plan_can_be_had(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=5 * GB, load_s=1.0) as p:
        for wave in p.handle.plan(p.refs("abcd")).waves:
            got = await p.use_set([model.name for model in wave])
            assert all(isinstance(grant, Grant) for grant in got)


async def test_the_next_wave_need_not_wait_until_the_last_one_has_cooled_down(autojump_clock):
    async with rig(SIZES, loaded=2, cooldown_us=30_000_000) as p:
        await p.use_set("ab")
        await p.use_set("cd", hot="ab")
        assert trio.current_time() == 0
        assert p.runtime.in_memory == {"c", "d"}
        await p.use_set("ab")  # somebody else
        assert trio.current_time() == pytest.approx(30, abs=1e-3)
