"""Usage in the database: sums that agree whichever way they are made, bounds, and what is never written down."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain.usage import Fallback, Price, PriceTable, UsageRecord, UsageSums, UserPrice, avoided_nusd
from engine.store import Database
from engine.usage_store import PRUNE_EVERY, SqliteUsage
from policies.routing import Candidate, LiveAgent, LoggedRoute, RouteFacts, RouteRequest
from tests.domain.test_usage import record

PRICES = PriceTable("2026-11-01", {"far": Price(3_000, 15_000)})
COUNT = st.integers(0, 10**9)
TIME = st.none() | st.floats(0, 1e7)
RECORDS = st.lists(
    st.builds(
        UsageRecord,
        day=st.sampled_from(["2026-11-18", "2026-11-19", "2026-11-20"]),
        agent=st.sampled_from(["x", "y"]),
        model=st.sampled_from(["a", "b", "far"]),
        runtime=st.sampled_from(["ollama", "openai"]),
        local=st.booleans(),
        synthetic=st.booleans(),
        tokens_in=st.none() | COUNT,
        tokens_out=COUNT,
        ttft_ms=TIME,
        duration_ms=TIME,
        reason=st.sampled_from(["finished", "error"]),
        fallback=st.none() | st.just("breaker"),
    ),
    max_size=30,
)


def summed(parts) -> UsageSums:
    return (
        UsageSums(*(sum(column) for column in zip(*map(attrs.astuple, parts), strict=True))) if parts else UsageSums()
    )


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.integers(1, 30))
def test_the_sums_agree_by_agent_by_model_and_by_day_and_with_the_records(records, batch):
    async def check() -> None:
        store = SqliteUsage(Database(), PRICES)
        for at in range(0, len(records), batch):
            await store.add(records[at : at + batch], [])
        reports = [await store.report(by, None) for by in ("agent", "model", "day")]
        for report in reports:
            assert summed([group.sums for group in report.groups]) == report.totals == reports[0].totals
        totals = reports[0].totals
        assert totals.requests == len(records)
        assert totals.tokens_in == sum(one.tokens_in or 0 for one in records)
        assert totals.tokens_out == sum(one.tokens_out for one in records)
        assert totals.local_tokens + totals.remote_tokens + totals.synthetic_tokens == (
            totals.tokens_in + totals.tokens_out
        )
        costs = [PRICES.cost_nusd(one) for one in records]
        assert (totals.cost_nusd, totals.unpriced) == (sum(cost or 0 for cost in costs), costs.count(None))
        assert totals.uncounted == sum(one.tokens_in is None for one in records)
        assert sum(reports[0].ttft_ms) == sum(one.ttft_ms is not None for one in records)
        assert sum(reports[0].duration_ms) == sum(one.duration_ms is not None for one in records)
        assert sum(reports[0].ended.values()) == len(records)
        local = [one for one in records if one.local and not one.synthetic]
        assert reports[0].local_out == sum(one.tokens_out for one in local)
        assert math.isclose(reports[0].local_in + reports[0].local_out, totals.local_tokens)

    trio.run(check)


async def test_a_report_begins_where_it_is_asked_to():
    store = SqliteUsage(Database(), PRICES)
    await store.add([record(day="2026-11-18"), record(day="2026-11-20", tokens_out=100)], [])
    report = await store.report("day", "2026-11-19")
    assert [group.key for group in report.groups] == ["2026-11-20"]
    assert (report.since, report.totals.tokens_out, sum(report.ttft_ms)) == ("2026-11-20", 100, 1)
    assert (await store.report("day", "2027-01-01")).since is None


async def test_what_was_avoided_is_estimated_with_prices_of_the_user_only():
    store = SqliteUsage(Database(), PRICES)
    await store.add([record(local=True), record(), record(local=True, synthetic=True)], [])
    report = await store.report("model", None)
    assert avoided_nusd(report, PRICES) is None
    own = attrs.evolve(PRICES, instead_of=UserPrice("before", "2026-11-01", Price(1_000, 2_000)))
    assert avoided_nusd(report, own) == 10 * 1_000 + 4 * 2_000


async def test_a_restart_loses_nothing(tmp_path: Path):
    first = SqliteUsage(Database(tmp_path / "usage.db"), PRICES)
    await first.add([record(), record(model="a", local=True)], [ROUTE])
    before = await first.report("model", None)
    await first.database.close()
    again = SqliteUsage(Database(tmp_path / "usage.db"), PRICES)
    assert await again.report("model", None) == before
    assert await again.routes(10) == (ROUTE,)
    assert await again.names() == ({"x"}, {"far", "a"})


FACTS = RouteFacts((LiveAgent("one", "http://localhost:8050", ("reasoning",), "m", "healthy"),))
ROUTE = LoggedRoute(
    1_795_169_209, RouteRequest("reasoning"), FACTS, Candidate("local", "m", "http://localhost:8050"), "broker_off"
)
FAILED = LoggedRoute(1_795_169_210, RouteRequest("x", False), RouteFacts(None, True), None, None)


async def test_routes_come_back_as_they_went_in_and_their_fallbacks_are_counted():
    store = SqliteUsage(Database(), PRICES)
    await store.add([record(fallback="breaker")], [ROUTE, FAILED, ROUTE])
    assert await store.routes(10) == (ROUTE, FAILED, ROUTE)
    assert await store.routes(2) == (FAILED, ROUTE)
    report = await store.report("agent", None)
    assert report.fallbacks == (Fallback("session", "breaker", 1), Fallback("route", "broker_off", 2))


async def test_what_is_kept_is_bounded():
    store = SqliteUsage(Database(), PRICES, days_max=3, rows_max=4, routes_max=2)
    days = [f"2026-11-{number:02}" for number in range(1, 6)]
    await store.add([record(day=day, agent=agent) for day in days for agent in ("x", "y")], [ROUTE, FAILED, ROUTE])
    report = await store.report("day", None)
    assert [group.key for group in report.groups] == days[-2:]
    assert sum(report.ended.values()) == 4
    assert await store.routes(10) == (FAILED, ROUTE)
    for _ in range(PRUNE_EVERY):
        await store.add([], [FAILED])
    assert len(await store.routes(1000)) <= 2 + PRUNE_EVERY
    await store.add([record(day="2026-11-06", agent=f"{n}") for n in range(9)], [])
    for _ in range(PRUNE_EVERY):
        await store.add([record(day="2026-11-06")], [])
    assert [group.key for group in (await store.report("day", None)).groups] == ["2026-11-06"]
    facts = await store.database.call(lambda c: c.execute("SELECT count(*) FROM facts").fetchone()[0])
    assert facts == 1  # what no logged route needs any more is gone


async def stored(store: SqliteUsage, question: str) -> int:
    found: int = await store.database.call(lambda c: c.execute(question).fetchone()[0])
    return found


def told_at(at_s: int, agents: int) -> LoggedRoute:
    """A decision among so many agents, none of whom was there at another time."""
    there = (LiveAgent(f"a{at_s}-{n}", "http://localhost:8050", ("x",) * 20, "m", "healthy") for n in range(agents))
    return LoggedRoute(at_s, RouteRequest("x"), RouteFacts(tuple(there)), None, None)


async def test_what_was_known_at_decisions_has_a_bound_of_its_own():
    store = SqliteUsage(Database(), PRICES, facts_bytes_max=100_000)
    for at_s in range(60):
        await store.add([], [told_at(at_s, 40)])
        assert await stored(store, "SELECT sum(length(body)) FROM facts") <= 200_000
    found = await store.routes(1000)
    assert [one.at_s for one in found] == list(range(60 - len(found), 60))
    assert 5 < len(found) < 60
    await store.add([], [told_at(60, 800)])  # larger than all that is allowed: the latest stays, alone
    assert [one.at_s for one in await store.routes(10)] == [60]


async def test_decisions_share_what_was_known_at_them():
    store = SqliteUsage(Database(), PRICES)
    await store.add([], [ROUTE, FAILED, ROUTE])
    first, _, third = await store.routes(10)
    assert first.facts is third.facts


async def test_a_damaged_entry_of_the_log_hides_no_other_one():
    store = SqliteUsage(Database(), PRICES)
    await store.add([], [ROUTE, FAILED, ROUTE, FAILED])

    def damage(connection) -> None:
        connection.execute("UPDATE routes SET request = x'00' WHERE id = 1")
        connection.execute("UPDATE routes SET facts = 'nowhere' WHERE id = 2")
        connection.execute("UPDATE routes SET at_s = 'noon' WHERE id = 4")

    await store.database.call(damage)
    assert await store.routes(10) == (ROUTE,)
