"""The model pool in virtual time: turns, loads, caps, and callers who leave."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.catalog import Catalog, Residency
from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.lease import PoolHandle
from actors.pool import Command, ModelPool, mailbox_capacity
from engine.domain.errors import ModelLoadFailed, ModelLoadTimeout, Overloaded, RuntimeUnavailable, SessionConflict
from engine.domain.events import SessionSignal
from engine.domain.models import ModelState
from policies.admission import PoolCaps
from tests.fakes.runtime import ScriptedRuntime


@asynccontextmanager
async def pool(
    load_s=0.0, load_error=None, *, streams=8, queued=8, parallel=8, loaded=8, load_timeout_s=60.0, make=ScriptedRuntime
):
    clock = EngineClock.start()
    runtime = make(clock, load_s=load_s, load_error=load_error, models=("a", "b", "c", "d"))
    catalog = Catalog({"scripted": runtime}, clock)
    await catalog.refresh()
    caps = PoolCaps(streams, queued, parallel, loaded)
    commands, inlet = mailbox[Command]("pool", mailbox_capacity(caps, 16))
    news, news_in = mailbox[SessionSignal]("news", 64)
    handle = PoolHandle(ModelPool(inlet, commands, caps, clock, load_timeout_s, news), commands)
    catalog.seen = handle.see
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: handle.pool.run(task_status=task_status))
        yield Fixture(handle, catalog, runtime, news_in)
        nursery.cancel_scope.cancel()


class Fixture:
    def __init__(self, handle, catalog, runtime, told):
        self.handle, self.catalog, self.runtime = handle, catalog, runtime
        self.news = []
        self._told = told

    async def told(self):
        """What the pool itself told of models, so far."""
        with self._told.open() as channel:
            await wait_all_tasks_blocked()
            count = channel.statistics().current_buffer_used
            return [
                (change.model, change.state, change.reason)
                for _ in range(count)
                if (change := channel.receive_nowait())
            ]

    async def tell(self, state, position, reason):
        self.news.append((state, position, reason))

    async def use(self, model, for_s=1.0, order=None):
        async with self.handle.lease(self.catalog.find(model), self.tell) as grant:
            if order is not None:
                order.append(model)
            await trio.sleep(for_s)
            return grant

    def state(self, model):
        return self.handle.pool.status(model).state


async def test_the_first_lease_loads_and_the_next_is_warm(autojump_clock):
    async with pool(load_s=2.0) as p:
        first, second = await p.use("a"), await p.use("a")
        assert (first.cold, first.load_ms, second.cold, second.load_ms) == (True, 2000.0, False, 0.0)
        assert p.runtime.loads == ["a"]
        assert [state for state, _, _ in p.news] == [ModelState.LOADING, ModelState.READY]


async def test_ten_callers_share_one_load(autojump_clock):
    async with pool(load_s=2.0, streams=10, queued=10) as p:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(p.use, "a")
        assert p.runtime.loads == ["a"]


async def test_a_caller_who_leaves_does_not_cancel_the_load_of_others(autojump_clock):
    async with pool(load_s=5.0) as p:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(p.use, "a")
            with trio.move_on_after(1):
                await p.use("a")
        await wait_all_tasks_blocked()
        assert p.runtime.loads == ["a"]
        assert p.handle.pool.streams == 0
        assert p.state("a") is ModelState.READY


async def test_the_stream_cap_queues_in_order_and_tells_the_position(autojump_clock):
    order = []
    async with pool(streams=1) as p:
        async with trio.open_nursery() as nursery:
            for model in ("a", "b", "c"):
                nursery.start_soon(p.use, model, 1.0, order)
                await wait_all_tasks_blocked()
        assert order == ["a", "b", "c"]
        assert (ModelState.QUEUED, 2, "1 streams are running, the most allowed at once") in p.news


async def test_a_full_queue_refuses_with_its_limit(autojump_clock):
    async with pool(streams=1, queued=2) as p, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(p.use, "a")
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await p.use("a")
        assert caught.value.details == {"limit": 2, "retry_after_s": 1}


async def test_a_place_in_the_queue_is_given_up_by_leaving(autojump_clock):
    async with pool(streams=1, queued=1) as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.use, "a", 10.0)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await p.use("b")
        with trio.move_on_after(1) as second:
            await p.use("b")  # would raise Overloaded if the first one still stood in the queue
        assert second.cancelled_caught
        assert p.runtime.loads == ["a"]


async def test_distinct_models_in_use_are_capped_streams_are_not(autojump_clock):
    async with pool(parallel=1) as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.use, "a", 5.0)
        await wait_all_tasks_blocked()
        await p.use("a", 1.0)  # the same model: no waiting
        with trio.move_on_after(1) as other:
            await p.use("b")
        assert other.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_the_least_recently_used_idle_model_makes_room(autojump_clock):
    async with pool(loaded=2) as p:
        await p.use("a")
        await p.use("b")
        await p.use("a")
        grant = await p.use("c")
        assert grant.evicted == ("b",)
        assert p.runtime.unloads == ["b"]
        assert [p.state(m) for m in "abc"] == [ModelState.READY, ModelState.ABSENT, ModelState.READY]


async def test_a_model_in_use_is_never_evicted(autojump_clock):
    async with pool(loaded=1) as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.use, "a", 3.0)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await p.use("b", 0.0)
        assert trio.current_time() - began == 3.0
        assert p.runtime.unloads == ["a"]


async def test_a_failed_load_is_told_to_all_who_wait_and_can_be_tried_again(autojump_clock):
    async with pool(load_s=1.0, load_error=ModelLoadFailed("weights are damaged")) as p:
        failures = []

        async def try_it():
            with pytest.raises(ModelLoadFailed) as caught:
                await p.use("a")
            failures.append(caught.value.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_it)
            nursery.start_soon(try_it)
        assert failures == ["weights are damaged"] * 2
        assert p.state("a") is ModelState.FAILED
        p.runtime.load_error = None
        assert (await p.use("a")).cold


async def test_a_load_that_never_ends_times_out(autojump_clock):
    async with pool(load_s=1000, load_timeout_s=60) as p:
        with pytest.raises(ModelLoadTimeout):
            await p.use("a")


async def test_a_bug_in_a_load_is_a_failed_load_without_its_text(autojump_clock, caplog):
    async with pool(load_error=ZeroDivisionError("secret path")) as p:
        with pytest.raises(ModelLoadFailed) as caught:
            await p.use("a")
        assert "secret" not in caught.value.message + "".join(record.getMessage() for record in caplog.records)


async def test_loading_without_using(autojump_clock):
    async with pool(load_s=1.0) as p:
        grant = await p.handle.load(p.catalog.find("a"), p.tell)
        assert (grant.cold, grant.resident_bytes) == (True, 1000)
        assert (p.handle.pool.streams, p.handle.pool.resident_bytes) == (0, 1000)


async def test_unload_frees_an_idle_model_and_refuses_one_in_use(autojump_clock):
    async with pool() as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.use, "a", 5.0)
        await wait_all_tasks_blocked()
        with pytest.raises(SessionConflict):
            await p.handle.unload(p.catalog.find("a"))
        await trio.sleep(6)
        assert await p.handle.unload(p.catalog.find("a")) == 1000
        assert await p.handle.unload(p.catalog.find("a")) == 0
        assert p.state("a") is ModelState.ABSENT


async def test_a_cancel_at_any_moment_leaves_no_lease_behind(autojump_clock):
    """The grant is counted the instant it is settled; whatever happens then, it is returned."""
    for leave_s in (0.0, 0.5, 1.0, 1.25, 2.0, 2.5):
        async with pool(load_s=1.0) as p:
            with trio.move_on_after(leave_s):
                await p.use("a", 1.0)
            await wait_all_tasks_blocked()
            await trio.sleep(2)
            assert p.handle.pool.streams == 0


async def test_a_model_that_cannot_be_unloaded_keeps_its_place_and_the_new_one_fails(autojump_clock):
    class Stuck(ScriptedRuntime):
        async def unload(self, model):
            raise RuntimeUnavailable("it went away")

    async with pool(loaded=1, make=Stuck) as p:
        await p.use("a")
        with pytest.raises(ModelLoadFailed, match="to make room for b"):
            await p.use("b")
        assert p.runtime.loads == ["a"]
        assert p.state("a") is ModelState.READY
        with pytest.raises(RuntimeUnavailable):
            await p.handle.unload(p.catalog.find("a"))


async def test_whoever_waits_when_the_pool_stops_is_told(autojump_clock):
    told = []
    async with pool(load_s=100) as p, trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(Overloaded, match="stopping"):
                await p.use("a")
            told.append(1)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        p.handle.pool._nursery.cancel_scope.cancel()
    assert told == [1]


async def test_a_model_that_its_runtime_dropped_is_forgotten_and_told(autojump_clock):
    async with pool(load_s=1.0) as p:
        await p.use("a")
        await trio.sleep(1)
        p.runtime.in_memory.clear()  # its keep-alive ran out
        await p.catalog.refresh()
        assert await p.told() == [("a", ModelState.ABSENT, "its runtime let go of it")]
        assert (p.state("a"), p.handle.pool.counters.lost) == (ModelState.ABSENT, 1)
        assert (await p.use("a")).cold is True


async def test_a_model_in_use_is_kept_whatever_its_runtime_says(autojump_clock):
    async with pool() as p, trio.open_nursery() as nursery:
        nursery.start_soon(p.use, "a", 5.0)
        await trio.sleep(1)
        p.runtime.in_memory.clear()
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        assert (p.state("a"), p.handle.pool.streams) == (ModelState.READY, 1)


async def test_a_model_that_somebody_else_loaded_is_shown_and_is_warm(autojump_clock):
    async with pool(load_s=1.0) as p:
        p.runtime.in_memory.add("b")
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        status = p.handle.pool.status("b")
        assert (status.state, status.resident_bytes, p.handle.pool.resident_bytes) == (ModelState.READY, 1000, 1000)
        assert (await p.use("b")).cold is False
        assert p.handle.pool.counters.loads == 0


async def test_what_a_runtime_said_before_we_moved_a_model_does_not_count(autojump_clock):
    """Asked while the load was on its way: the answer knows nothing of it."""
    async with pool(load_s=1.0) as p:
        early = Residency("scripted", p.catalog.clock(), {})
        await trio.sleep(1)
        await p.use("a")
        p.handle.see(early)
        await wait_all_tasks_blocked()
        assert p.state("a") is ModelState.READY


async def test_an_unloaded_model_is_not_shown_from_an_older_answer(autojump_clock):
    async with pool() as p:
        await p.use("a")
        await trio.sleep(1)
        await p.catalog.refresh()
        await wait_all_tasks_blocked()
        await p.handle.unload(p.catalog.find("a"))
        assert (p.state("a"), p.handle.pool.resident_bytes) == (ModelState.ABSENT, 0)


async def test_nobody_knows_whether_a_silent_runtime_had_to_load(autojump_clock):
    async with pool() as p:
        p.runtime.silent = True
        assert (await p.use("a")).cold is None
        assert (await p.use("a")).cold is False


async def test_an_eviction_is_told_with_its_cause(autojump_clock):
    async with pool(loaded=1) as p:
        await p.use("a")
        await p.use("b")
        assert await p.told() == [("a", ModelState.EVICTED, "to make room for b")]
        assert p.handle.pool.counters.evictions == 1
