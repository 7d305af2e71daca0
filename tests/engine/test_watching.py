"""How often the runtimes are asked: often while somebody watches, seldom while nobody does. Virtual time."""

from __future__ import annotations

import attrs
import trio

from engine.core import CATALOG_REFRESH_S, IDLE_REFRESH_S, WATCHED_US
from engine.domain.models import ModelState
from tests.fakes.runtime import ScriptedRuntime
from tests.fakes.slice import running_slice

START_S = WATCHED_US / 1e6 + IDLE_REFRESH_S


@attrs.define(eq=False)
class CountingRuntime(ScriptedRuntime):
    probes: int = 0

    async def probe(self):
        self.probes += 1
        return await super().probe()


async def probes_within(s, seconds):
    before = s.runtime.probes
    await trio.sleep(seconds)
    return s.runtime.probes - before


async def test_an_engine_nobody_looks_at_asks_seldom(autojump_clock):
    async with running_slice(CountingRuntime) as s:
        assert 11 <= await probes_within(s, 60) <= 13  # it has just been started
        await trio.sleep(START_S - 60)
        assert 9 <= await probes_within(s, 300) <= 11


async def test_a_page_that_is_connected_makes_it_ask_often(autojump_clock):
    async with running_slice(CountingRuntime) as s:
        await trio.sleep(START_S)
        s.client()
        await trio.sleep(CATALOG_REFRESH_S)
        assert 11 <= await probes_within(s, 60) <= 13


async def test_a_session_makes_it_ask_often_for_a_minute_after_its_end(autojump_clock):
    async with running_slice(CountingRuntime) as s:
        await trio.sleep(START_S)
        await s.start().closed.wait()
        await trio.sleep(CATALOG_REFRESH_S)
        s.runtime.in_memory.clear()  # and what its runtime lets go of is seen soon
        assert 9 <= await probes_within(s, 50) <= 11
        assert s.core.pool.pool.status("a").state is ModelState.ABSENT
        await trio.sleep(60)
        assert 3 <= await probes_within(s, 120) <= 5


async def test_whoever_asks_how_it_is_makes_it_look_again(autojump_clock):
    async with running_slice(CountingRuntime) as s:
        await trio.sleep(START_S + 2)
        before = s.runtime.probes
        s.core.catalog.looked.set()
        await trio.sleep(CATALOG_REFRESH_S + 0.1)
        assert s.runtime.probes == before + 1
