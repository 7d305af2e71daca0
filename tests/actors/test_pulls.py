"""Downloads in virtual time: one per model, joined and left; who may start one; what is told of it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.catalog import Catalog
from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.pulls import PULLS_MAX, ModelPulls
from engine.domain.errors import Forbidden, InvalidRequest, ModelNotFound, Overloaded, RuntimeUnavailable
from engine.domain.events import SessionSignal
from engine.domain.models import ModelState
from tests.fakes.runtime import PullingRuntime, ScriptedRuntime


class Fixture:
    def __init__(self, pulls, catalog, runtime, told):
        self.pulls, self.catalog, self.runtime, self.told = pulls, catalog, runtime, told

    async def states(self):
        await wait_all_tasks_blocked()
        return [(news.model, news.state, news.reason) for news in self.told]


@asynccontextmanager
async def downloads(policy="explicit", make=PullingRuntime, **runtime):
    clock = EngineClock.start()
    source = make(clock, **runtime)
    catalog = Catalog({"scripted": source}, clock)
    await catalog.refresh()
    signals, inlet = mailbox[SessionSignal]("signals", 64)
    pulls = ModelPulls(catalog, signals, policy)
    told = []

    async def listen():
        async with inlet.open() as channel:
            async for news in channel:
                told.append(news)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await nursery.start(lambda task_status: pulls.run(task_status=task_status))
        yield Fixture(pulls, catalog, source, told)
        nursery.cancel_scope.cancel()


async def test_a_missing_model_is_downloaded_when_asked_for(autojump_clock):
    async with downloads() as d:
        model = await d.pulls.resolve("new", explicit=True)
        assert (model.name, d.runtime.pulls) == ("new:latest", ["new"])
        states = await d.states()
        assert states[0] == ("new", ModelState.PULLING, "asking for it")
        assert states[-1] == ("new", ModelState.ABSENT, "downloaded")
        shares = [news.progress for news in d.told if news.state is ModelState.PULLING]
        assert shares[0] is None
        assert shares[1:] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0]  # the last step is told too
        assert d.pulls.under_way() == {}


async def test_a_model_that_is_here_is_not_downloaded(autojump_clock):
    async with downloads() as d:
        await d.pulls.resolve("a", explicit=True)
        assert d.runtime.pulls == []


async def test_without_being_asked_the_command_is_named(autojump_clock):
    async with downloads() as d:
        with pytest.raises(ModelNotFound, match="if it is to be had, `wf pull new` downloads it"):
            await d.pulls.resolve("new", explicit=False)
        assert d.runtime.pulls == []


async def test_auto_downloads_for_an_answer_too(autojump_clock):
    async with downloads("auto") as d:
        assert (await d.pulls.resolve("new", explicit=False)).name == "new:latest"


async def test_never_downloads_for_nobody(autojump_clock):
    async with downloads("never") as d:
        with pytest.raises(ModelNotFound) as caught:
            await d.pulls.resolve("new", explicit=True)
        assert "wf pull" not in caught.value.message
        with pytest.raises(Forbidden, match="pull: never"):
            await d.pulls.bring("new")


async def test_two_who_ask_share_one_download_and_one_may_leave(autojump_clock):
    async with downloads() as d:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(d.pulls.bring, "new")
            with trio.move_on_after(3):
                await d.pulls.bring("new")
        assert d.runtime.pulls == ["new"]
        assert d.runtime.pulls_left == 0
        assert d.catalog.find("new").name == "new:latest"


async def test_the_last_to_leave_stops_it_and_the_next_begins_anew(autojump_clock):
    async with downloads() as d:
        with trio.move_on_after(3):
            await d.pulls.bring("new")
        await d.pulls.bring("new")  # while the first one is still being stopped
        assert (d.runtime.pulls, d.runtime.pulls_left) == (["new", "new"], 1)
        assert ("new", ModelState.ABSENT, "stopped") in await d.states()


async def test_leaving_twice_counts_once(autojump_clock):
    async with downloads() as d:
        one, other = await d.pulls.join("new"), await d.pulls.join("new")
        one.leave()
        one.leave()
        while await other.next() is not None:
            pass
        other.leave()
        assert d.runtime.pulls_left == 0


async def test_a_slow_follower_gets_the_newest_and_then_the_end(autojump_clock):
    async with downloads() as d:
        follower = await d.pulls.join("new")
        await trio.sleep(20)
        last = await follower.next()
        assert (last.status, last.share) == ("success", 1.0)
        assert await follower.next() is None


async def test_a_failed_download_is_told_with_its_reason(autojump_clock):
    async with downloads() as d:
        with pytest.raises(ModelNotFound, match="nobody has missing"):
            await d.pulls.bring("missing")
        assert (await d.states())[-1] == ("missing", ModelState.FAILED, "nobody has missing")


async def test_a_bug_in_a_runtime_is_told_without_its_text(autojump_clock, caplog):
    class Broken(PullingRuntime):
        async def pull(self, model):
            raise ZeroDivisionError("secret path")
            yield

    async with downloads(make=Broken) as d:
        with pytest.raises(Exception, match="new could not be downloaded"):
            await d.pulls.bring("new")
        assert "secret" not in "".join(record.getMessage() for record in caplog.records)


async def test_what_nobody_can_download_is_refused(autojump_clock):
    async with downloads() as d:
        with pytest.raises(RuntimeUnavailable, match="no runtime here can download"):
            await d.pulls.bring("elsewhere/x")
        with pytest.raises(InvalidRequest):
            await d.pulls.bring("../x")
    async with downloads(make=ScriptedRuntime) as d:
        with pytest.raises(ModelNotFound):
            await d.pulls.resolve("new", explicit=True)


async def test_only_so_many_at_once(autojump_clock):
    async with downloads() as d:
        followers = [await d.pulls.join(f"m{i}") for i in range(PULLS_MAX)]
        with pytest.raises(Overloaded) as caught:
            await d.pulls.join("one-more")
        assert caught.value.details["limit"] == PULLS_MAX
        for follower in followers:
            follower.leave()


async def test_a_runtime_of_ours_on_its_way_up_is_waited_for(autojump_clock):
    """`wf run` names a model of an Ollama that we are only starting."""
    clock = EngineClock.start()
    runtime = ScriptedRuntime(clock, up=False, models=("late",))
    catalog = Catalog({"scripted": runtime}, clock, starting=lambda: not runtime.up)

    async def keep():
        while not catalog.settled.is_set():
            await catalog.refresh()
            await trio.sleep(0.25)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)

        async def come_up():
            await trio.sleep(7)
            runtime.up = True

        nursery.start_soon(come_up)
        assert (await catalog.resolve("late")).name == "late"


async def test_an_engine_that_stops_does_not_call_a_download_done(autojump_clock):
    told = []
    async with downloads() as d, trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(Overloaded, match="stopping"):
                await d.pulls.bring("new")
            told.append(1)

        nursery.start_soon(wait)
        await trio.sleep(3)
        d.pulls._nursery.cancel_scope.cancel()
    assert told == [1]


async def test_the_runtime_that_is_configured_for_a_model_downloads_it_though_it_is_down(autojump_clock):
    clock = EngineClock.start()
    able = PullingRuntime(clock, name="able")
    named = PullingRuntime(clock, name="named", configured=("org/new",), up=False)
    catalog = Catalog({"able": able, "named": named}, clock)
    await catalog.refresh()
    pulls = ModelPulls(catalog, mailbox[SessionSignal]("signals", 64)[0], "explicit")
    assert pulls._puller("org/new") is named
    assert pulls._puller("org/other") is able


async def test_a_runtime_that_never_comes_up_is_not_waited_for_for_ever(autojump_clock):
    clock = EngineClock.start()
    catalog = Catalog({"scripted": ScriptedRuntime(clock, up=False)}, clock, starting=lambda: True)
    await catalog.refresh()
    began = trio.current_time()
    with pytest.raises(ModelNotFound, match="still being started"):
        await catalog.resolve("a")
    assert trio.current_time() - began == 10
