"""The byte budget of the pool in virtual time: what fits, what waits, what is refused, and what is said about it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.pool import OVERTAKEN_MAX
from engine.domain.errors import InsufficientMemory, Overloaded, TierLimitExceeded
from engine.domain.models import ModelState
from tests.actors.pool_rig import GB, rig

SIZES = {"small": 2 * GB, "other": 2 * GB, "big": 4 * GB, "huge": 9 * GB}


async def test_the_bytes_decide_before_the_counts(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.use("small")
        await p.use("other")
        grant = await p.use("big")
        assert grant.evicted == ("small",)
        assert sorted(p.runtime.in_memory) == ["big", "other"]


async def test_what_goes_is_no_more_than_must(autojump_clock):
    async with rig({**SIZES, "tiny": GB}, ram_budget_bytes=9 * GB) as p:
        for model in ("tiny", "big", "small"):
            await p.use(model)
        grant = await p.use("other")  # 7 + 2: just fits
        assert grant.evicted == ()
        p.runtime.sizes["new"] = 4 * GB
        await p.catalog.refresh()
        assert (await p.use("new")).evicted == ("big",)  # tiny is older, but big alone is enough


async def test_the_size_the_runtime_reports_counts_once_it_is_known(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB, grows=0.5, size_overhead=2.0) as p:
        await p.use("small")  # 4 GB by the estimate, 1 GB in truth
        await p.use("other")  # 1 + 4 by the estimates: fits
        assert sorted(p.runtime.in_memory) == ["other", "small"]
        with pytest.raises(InsufficientMemory):
            await p.use("big")  # 8 GB by the estimate
        p.pool.memory.trace("big").reported = (4 * GB, 2 * GB)  # it was there before
        assert (await p.use("big")).evicted == ()


async def test_what_never_fits_is_refused_with_its_numbers(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.use("small")
        with pytest.raises(InsufficientMemory) as caught:
            await p.use("huge")
        assert caught.value.message == "huge would take 9.0 GB of memory, and the budget is 6.0 GB"
        assert caught.value.details == {
            "needed_bytes": 9 * GB, "budget_bytes": 6 * GB, "used_bytes": 2 * GB, "evictable_bytes": 2 * GB,
        }  # fmt: skip
        assert (caught.value.code, caught.value.status) == ("INSUFFICIENT_MEMORY", 507)
        assert p.runtime.loads == ["small"]
        (decision,) = p.pool.decisions.of("huge")
        assert (decision.kind, decision.numbers["needed_bytes"]) == ("refused", 9 * GB)


async def test_a_model_larger_than_the_tier_takes_is_refused_even_where_it_fits(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=60 * GB, model_bytes_max=8 * GB) as p:
        with pytest.raises(TierLimitExceeded) as caught:
            await p.use("huge")
        assert caught.value.details == {"model": "huge", "model_bytes": 9 * GB, "model_bytes_max": 8 * GB}
        assert (caught.value.status, p.pool.counters.refused) == (429, 1)


async def test_pinned_models_stay_and_what_they_leave_no_room_for_is_refused(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.handle.load(p.ref("big"), p.teller("big"), pin=True)
        await p.use("small")
        assert (await p.use("other")).evicted == ("small",)
        p.runtime.sizes["wide"] = 3 * GB
        await p.catalog.refresh()
        with pytest.raises(InsufficientMemory, match="of which pinned models keep 4"):
            await p.use("wide")
        await p.handle.unload(p.ref("big"))
        assert (await p.use("wide")).cold is True


async def test_pins_that_fill_every_place_are_a_limit_of_the_tier(autojump_clock):
    async with rig(SIZES, loaded=1) as p:
        await p.handle.load(p.ref("small"), p.teller("small"), pin=True)
        with pytest.raises(TierLimitExceeded, match="1 of them pinned"):
            await p.use("other")


async def test_what_is_only_in_use_is_waited_for(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        first, second = await p.hold("big"), await p.hold("small")
        waiting = p.start(p.use, "other")
        await wait_all_tasks_blocked()
        assert waiting == []
        assert p.told[-1][1:] == (
            ModelState.QUEUED, 1, "2.0 GB more do not fit into the budget of 6.0 GB, and none is idle"
        )  # fmt: skip
        second.cancel()
        await wait_all_tasks_blocked()
        assert waiting[0].evicted == ("small",)
        first.cancel()


async def test_a_model_that_somebody_else_loaded_takes_its_bytes_and_may_have_to_go(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        p.runtime.in_memory.add("big")
        await p.catalog.refresh()
        await trio.sleep(1)
        await p.use("small")
        grant = await p.use("other")
        assert grant.evicted == ("big",)
        assert p.runtime.unloads == ["big"]
        assert "evicted" in p.kinds("big")


async def test_a_server_that_neither_loads_nor_tells_takes_no_room(autojump_clock):
    async with rig({"a": None, "b": None, "c": None, "small": 2 * GB}, ram_budget_bytes=2 * GB, loaded=1) as p:
        for model in ("a", "b", "small", "c"):
            assert (await p.use(model)).evicted == ()
        assert p.pool.resident_bytes == 2 * GB


async def test_a_new_model_does_not_load_before_the_old_one_is_out(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB, load_s=1.0) as p:
        p.runtime.unload_s = 2.0
        for model in ("big", "small", "other"):
            await p.use(model)
        assert p.runtime.moves == ["load big", "load small", "out big", "load other"]


async def test_a_model_that_has_grown_counts_as_what_it_is_now(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.use("small")
        await trio.sleep(1)
        p.runtime.grows = 2.5  # a longer context
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert (p.pool.resident_bytes, p.pool.standing(p.ref("small")).expected_bytes) == (5 * GB, 5 * GB)
        assert (await p.use("other")).evicted == ("small",)


async def test_a_model_on_its_way_out_is_loaded_again_when_it_is_out(autojump_clock):
    async with rig(SIZES, load_s=1.0) as p:
        p.runtime.unload_s = 5.0
        await p.use("small")
        p.start(p.handle.unload, p.ref("small"))
        await wait_all_tasks_blocked()
        grant = await p.use("small")
        assert (trio.current_time(), grant.cold) == (7.0, True)
        assert (ModelState.QUEUED, 1, "the model is being unloaded") in [entry[1:] for entry in p.told]
        assert p.runtime.moves == ["load small", "out small", "load small"]


# ── cool-down ──


async def test_a_model_loaded_a_moment_ago_is_not_evicted(autojump_clock):
    async with rig(SIZES, loaded=1, cooldown_us=30_000_000) as p:
        await p.use("small")
        began = trio.current_time()
        await p.use("other")
        assert trio.current_time() - began == pytest.approx(30, abs=1e-3)
        (news,) = [reason for name, state, _, reason in p.told if state is ModelState.QUEUED]
        full = "1 models are loaded, the most this tier allows"
        assert news == f"{full}, and those that are idle were loaded a moment ago; about 30 s"


async def test_the_wait_for_a_cool_down_is_known_once_a_load_was_measured(autojump_clock):
    async with rig(SIZES, loaded=1, cooldown_us=30_000_000, load_s=2.0) as p:
        await p.use("small")
        p.start(p.use, "other")
        await wait_all_tasks_blocked()
        (news,) = p.pool.waiting("other")
        assert (news.position, news.wait_ms) == (1, pytest.approx(32_000, abs=1))
        assert news.words().endswith("; about 30 s")


async def test_two_callers_in_turn_do_not_thrash(autojump_clock):
    async with rig(SIZES, loaded=1, cooldown_us=30_000_000) as p:
        for _ in range(3):
            await p.use("small")
            await p.use("other")
        assert trio.current_time() >= 5 * 30
        assert p.pool.counters.thrashes == 0  # each stayed out for as long as the other one cooled
        assert (p.pool.counters.loads, p.pool.counters.evictions) == (6, 5)


async def test_where_only_thrashing_is_stopped_a_new_model_need_not_wait(autojump_clock):
    async with rig(SIZES, loaded=1, cooldown_us=30_000_000, spares_all=False) as p:
        await p.use("small")
        await wait_all_tasks_blocked()
        assert p.pool.standing(p.ref("other")).now.evict == ("small",)
        await p.use("other")
        assert trio.current_time() == 0
        await p.use("small")  # back too soon: the one that came for it may stay
        assert trio.current_time() == pytest.approx(30, abs=1e-3)
        await p.use("big")
        assert trio.current_time() == pytest.approx(30, abs=1e-3)


async def test_a_person_may_unload_what_is_cooling(autojump_clock):
    async with rig(SIZES, loaded=1, cooldown_us=30_000_000) as p:
        await p.use("small")
        assert await p.handle.unload(p.ref("small")) == 2 * GB
        assert (await p.use("other")).cold is True
        assert trio.current_time() < 1
        assert p.kinds("small") == ["loaded", "unloaded"]


# ── the queue ──


async def test_whoever_leaves_lets_others_move_up_at_once(autojump_clock):
    """Also while a model is loaded for them alone."""
    async with rig(SIZES, parallel=1, load_s=60.0) as p:
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(p.use, "small")
                await wait_all_tasks_blocked()
                p.start(p.use, "other")
                await wait_all_tasks_blocked()
                assert p.runtime.loads == ["small"]
        await wait_all_tasks_blocked()
        assert (trio.current_time(), p.runtime.loads) == (1.0, ["small", "other"])


async def test_nobody_is_overtaken_without_end(autojump_clock):
    """`big` needs what `small` holds; others come for `small` all the time."""
    async with rig(SIZES, ram_budget_bytes=5 * GB, streams=3) as p:
        served = []

        async def come(model, for_s):
            await p.use(model, for_s)
            served.append(model)

        p.nursery.start_soon(come, "small", 1.0)
        await wait_all_tasks_blocked()
        p.nursery.start_soon(come, "big", 0.0)
        await wait_all_tasks_blocked()
        for _ in range(40):
            p.nursery.start_soon(come, "small", 1.0)
            await trio.sleep(0.5)
        await trio.sleep(5)
        assert served.index("big") <= 20
        assert any(reason and reason.startswith("somebody who came before") for *_, reason in p.told)


async def test_one_who_waits_long_keeps_others_only_from_what_it_needs(autojump_clock):
    """`big` needs the room of `other`, which was granted longest ago; `small` is in nobody's way."""
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        holder = await p.hold("other")
        await trio.sleep(1)
        small = await p.hold("small")
        big = p.start(p.use, "big", 5.0)
        await wait_all_tasks_blocked()
        for _ in range(OVERTAKEN_MAX):
            await p.use("small")
        late = p.start(p.use, "other")
        await wait_all_tasks_blocked()
        assert (big, late) == ([], [])
        assert (await p.use("small")).cold is False
        holder.cancel()
        await trio.sleep(6)
        assert [len(big), len(late)] == [1, 1]
        assert p.runtime.loads == ["other", "small", "big", "other"]
        small.cancel()


async def test_what_can_never_be_had_is_refused_at_once_whoever_waits_before(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB, streams=2) as p:
        holder = await p.hold("other")
        small = await p.hold("small")
        p.start(p.use, "big")
        await wait_all_tasks_blocked()
        with pytest.raises(InsufficientMemory):  # no stream is free either
            await p.use("huge")
        small.cancel()
        for _ in range(OVERTAKEN_MAX):
            await p.use("other")
        with pytest.raises(InsufficientMemory):
            await p.use("huge")
        holder.cancel()


async def test_the_wait_is_estimated_from_what_was_measured(autojump_clock):
    async with rig(SIZES, streams=1) as p:
        p.start(p.use, "small", 10.0)
        await wait_all_tasks_blocked()
        first, second = p.start(p.use, "small", 10.0), p.start(p.use, "small", 10.0)
        await wait_all_tasks_blocked()
        assert [news.wait_ms for news in p.pool.waiting("small")] == [None, None]  # nothing was measured yet
        await trio.sleep(10.5)
        assert len(first) == 0
        (news,) = p.pool.waiting("small")
        assert (news.position, news.wait_ms) == (1, pytest.approx(10_000, abs=10))
        assert p.told[-1][3] == "1 streams are running, the most allowed at once; about 10 s"
        await trio.sleep(30)
        assert (len(first), len(second)) == (1, 1)


async def test_why_counts_the_same_decision_once(autojump_clock):
    async with rig(SIZES, streams=1) as p:
        holder = await p.hold("small")
        for _ in range(3):
            p.start(p.use, "other")
            await wait_all_tasks_blocked()
        (waited,) = p.pool.decisions.of("other")
        assert (waited.kind, waited.times, waited.numbers["streams_max"]) == ("waiting", 3, 1)
        holder.cancel()


async def test_what_would_be_decided_now_is_told_without_doing_it(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.use("big")
        await p.use("small")
        standing = p.pool.standing(p.ref("other"))
        assert (standing.now.evict, standing.expected_bytes, standing.pinned) == (("big",), 2 * GB, False)
        assert sorted(p.runtime.in_memory) == ["big", "small"]


async def test_prefetch_takes_only_free_room_and_only_while_nobody_uses_a_model(autojump_clock):
    async with rig(SIZES, ram_budget_bytes=6 * GB) as p:
        await p.handle.prefetch(p.ref("big"))
        assert (p.kinds("big"), p.pool.counters.prefetches) == (["prefetched"], 1)
        await p.handle.prefetch(p.ref("small"))
        with pytest.raises(Overloaded, match="no free room"):
            await p.handle.prefetch(p.ref("other"))
        holder = await p.hold("small")
        await p.handle.unload(p.ref("big"))
        with pytest.raises(Overloaded):
            await p.handle.prefetch(p.ref("other"))
        holder.cancel()
        await wait_all_tasks_blocked()
        assert (await p.handle.prefetch(p.ref("other"))).cold is True
