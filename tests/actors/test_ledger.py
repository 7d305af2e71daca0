"""The ledger: nobody waits for it, what it cannot take is counted, and a failing disk is tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from actors import ledger
from actors.kernel import mailbox
from actors.ledger import MAILBOX_RECORDS, RETRY_S, UNWRITTEN_MAX, LedgerHandle, LedgerMessage, UsageLedger
from actors.supervise import supervise
from engine.domain.errors import InternalError, Overloaded
from engine.domain.usage import OTHER
from policies.restart import RestartPolicy
from tests.domain.test_usage import record
from tests.engine.test_usage_store import ROUTE
from tests.fakes.stores import ListedUsage


@asynccontextmanager
async def running(store: ListedUsage) -> AsyncIterator[LedgerHandle]:
    outlet, inlet = mailbox[LedgerMessage]("ledger", MAILBOX_RECORDS)
    handle = LedgerHandle(UsageLedger(inlet, store), outlet)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "ledger", lambda: handle.ledger, RestartPolicy())
        yield handle
        outlet.close()


async def test_a_report_holds_all_that_was_told_before_it(autojump_clock):
    store = ListedUsage()
    async with running(store) as handle:
        for _ in range(10):
            assert handle.log(record())
        handle.log(ROUTE)
        assert (await handle.report("agent")).totals.requests == 10
        assert await handle.routes(5) == (ROUTE,)
        assert store.writes == [11]
        assert handle.ledger.counters.written == 11


async def test_everybody_who_asks_at_once_is_answered(autojump_clock):
    answered = []

    async def ask(handle: LedgerHandle) -> None:
        answered.append((await handle.report("agent")).totals.requests)

    async with running(ListedUsage([record()])) as handle, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask, handle)
    assert answered == [1] * 5


async def test_what_is_left_at_the_end_is_written(autojump_clock):
    store = ListedUsage()
    async with running(store) as handle:
        handle.log(record())
    assert len(store.records) == 1


async def test_a_full_mailbox_loses_and_counts_and_does_not_wait(autojump_clock):
    outlet, inlet = mailbox[LedgerMessage]("ledger", 2)
    handle = LedgerHandle(UsageLedger(inlet, ListedUsage()), outlet)  # nobody reads
    assert [handle.log(record()) for _ in range(4)] == [True, True, False, False]
    assert outlet.flow().refused == 2
    with pytest.raises(Overloaded):
        await handle.report("agent")


async def test_a_disk_that_comes_back_gets_everything(autojump_clock, caplog):
    store = ListedUsage(broken=True)
    async with running(store) as handle:
        for _ in range(3):
            handle.log(record())
        await trio.sleep(3 * RETRY_S)
        assert handle.ledger.problem == "the disk is full"
        assert handle.ledger.counters.failures >= 3
        with pytest.raises(InternalError):
            await handle.report("agent")
        store.broken = False
        await trio.sleep(RETRY_S + 1)
        assert (len(store.records), handle.ledger.problem) == (3, None)
        assert handle.ledger.counters.lost == 0
    assert caplog.text.count("cannot be written") == 1


async def test_what_waits_for_the_disk_is_bounded(autojump_clock):
    store = ListedUsage(broken=True)
    async with running(store) as handle:
        for _ in range(UNWRITTEN_MAX // 512 + 2):
            for _ in range(512):
                handle.log(record())
            await trio.sleep(0.01)
        assert handle.ledger.counters.lost == 2 * 512
        store.broken = False
    assert len(store.records) == UNWRITTEN_MAX


async def test_names_beyond_the_limits_are_counted_together(autojump_clock, monkeypatch):
    monkeypatch.setattr(ledger, "AGENTS_MAX", 2)
    store = ListedUsage([record(agent="old")])
    async with running(store) as handle:
        for agent in ("new", "old", "third", "new"):
            handle.log(record(agent=agent))
    assert [one.agent for one in store.records[1:]] == ["new", "old", OTHER, "new"]


async def test_a_crash_of_the_store_loses_no_record(autojump_clock):
    store = ListedUsage(crashes=1)
    async with running(store) as handle:
        handle.log(record())
        with pytest.raises(InternalError):  # nobody is left waiting
            await handle.report("agent")
        await trio.sleep(10)
        assert (await handle.report("agent")).totals.requests == 1
        handle.log(record())
    assert len(store.records) == 2
