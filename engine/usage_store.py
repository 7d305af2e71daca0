"""Usage and the log of routes in the engine's database. Of answers only sums by day, agent and model are kept."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import msgspec

from engine.domain.usage import (
    By,
    Fallback,
    PriceTable,
    UsageGroup,
    UsageRecord,
    UsageReport,
    UsageSums,
    bucket_of,
    histogram,
)
from engine.store import Database
from policies.routing import Candidate, LoggedRoute, RouteFacts, RouteRequest

DAYS_MAX: Final = 400  # with figures; older ones go
ROWS_MAX: Final = 100_000  # of day, agent, model; beyond it the oldest days go, the last one never
ROUTES_MAX: Final = 10_000  # logged decisions
FACTS_BYTES_MAX: Final = 16 << 20  # of what was known at them; beyond it the oldest decisions go
PRUNE_EVERY: Final = 256  # writes

_SUMS: Final = """
    coalesce(sum(requests), 0), coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0),
    coalesce(sum((tokens_in + tokens_out) * (local AND NOT synthetic)), 0),
    coalesce(sum((tokens_in + tokens_out) * (NOT local AND NOT synthetic)), 0),
    coalesce(sum((tokens_in + tokens_out) * synthetic), 0),
    coalesce(sum(cost_nusd), 0), coalesce(sum(uncounted), 0), coalesce(sum(unpriced), 0)
"""
_COLUMNS: Final[Mapping[By, str]] = {"agent": "agent", "model": "model", "day": "day"}
_ADD_USAGE: Final = """
    INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET requests = requests + 1, tokens_in = tokens_in + excluded.tokens_in,
        tokens_out = tokens_out + excluded.tokens_out, uncounted = uncounted + excluded.uncounted,
        cost_nusd = cost_nusd + excluded.cost_nusd, unpriced = unpriced + excluded.unpriced
"""
_ADD_TALLY: Final = "INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"


logger = logging.getLogger("wf.store")


@attrs.define(eq=False)
class SqliteUsage:
    """The store of the ledger."""

    database: Database
    prices: PriceTable
    days_max: int = DAYS_MAX
    rows_max: int = ROWS_MAX
    routes_max: int = ROUTES_MAX
    facts_bytes_max: int = FACTS_BYTES_MAX
    _writes: int = 0
    _facts_bytes: int = 0  # written since the last look

    @property
    def persistent(self) -> bool:
        return self.database.persistent

    async def add(self, records: Sequence[UsageRecord], routes: Sequence[LoggedRoute]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            self.add_blocking(connection, records, routes)

        await self.database.call(write)

    def add_blocking(
        self, connection: sqlite3.Connection, records: Sequence[UsageRecord], routes: Sequence[LoggedRoute]
    ) -> None:
        """Inside a transaction."""
        connection.executemany(_ADD_USAGE, [self._row(record) for record in records])
        tally: Counter[tuple[str, str, str]] = Counter()
        for record in records:
            tally.update((record.day, kind, key) for kind, key in _marks(record))
        for route in routes:
            self._facts_bytes += _add_route(connection, route)
            if route.fallback is not None:
                tally[_day(connection, route.at_s), "route", route.fallback] += 1
        connection.executemany(_ADD_TALLY, [(*key, n) for key, n in tally.items()])
        if self._writes % PRUNE_EVERY == 0 or self._facts_bytes > self.facts_bytes_max:
            self._prune(connection)
            self._facts_bytes = 0
        self._writes += 1

    async def names(self) -> tuple[set[str], set[str]]:
        def read(connection: sqlite3.Connection) -> tuple[set[str], set[str]]:
            agents = {row[0] for row in connection.execute("SELECT DISTINCT agent FROM usage")}
            return agents, {row[0] for row in connection.execute("SELECT DISTINCT model FROM usage")}

        return await self.database.call(read)

    async def report(self, by: By, since: str | None) -> UsageReport:
        return await self.database.call(lambda connection: _report(connection, by, since or ""))

    async def routes(self, limit: int) -> tuple[LoggedRoute, ...]:
        def read(connection: sqlite3.Connection) -> tuple[LoggedRoute, ...]:
            found = connection.execute(
                "SELECT at_s, request, facts, chosen, fallback FROM routes ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
            known = _facts(connection, {row[2] for row in found})
            routes = (_route(row, known) for row in reversed(found))
            return tuple(route for route in routes if route is not None)

        return await self.database.call(read)

    def _row(self, record: UsageRecord) -> tuple[Any, ...]:
        cost = self.prices.cost_nusd(record)
        return (
            record.day, record.agent, record.model, record.runtime, record.local, record.synthetic,
            record.tokens_in or 0, record.tokens_out, record.tokens_in is None, cost or 0, cost is None,
        )  # fmt: skip

    def _prune(self, connection: sqlite3.Connection) -> None:
        days = [row[0] for row in connection.execute("SELECT DISTINCT day FROM usage ORDER BY day DESC")]
        kept = days[: self.days_max]
        counts = dict(connection.execute("SELECT day, count(*) FROM usage GROUP BY day"))
        while sum(counts[day] for day in kept) > self.rows_max and len(kept) > 1:
            kept.pop()
        if len(kept) < len(days):
            for table in ("usage", "tally"):
                connection.execute(f"DELETE FROM {table} WHERE day < ?", (kept[-1],))
        _prune_routes(connection, self.routes_max, self.facts_bytes_max)


def _prune_routes(connection: sqlite3.Connection, most: int, facts_bytes_max: int) -> None:
    """Keep the latest `most`, or half as many again and again until what was known at them is small enough."""
    newest, oldest = connection.execute("SELECT coalesce(max(id), 0), coalesce(min(id), 1) FROM routes").fetchone()
    kept = min(most, newest - oldest + 1)
    while True:
        if connection.execute("DELETE FROM routes WHERE id <= ?", (newest - kept,)).rowcount:
            connection.execute("DELETE FROM facts WHERE hash NOT IN (SELECT facts FROM routes)")
        size = connection.execute("SELECT coalesce(sum(length(body)), 0) FROM facts").fetchone()[0]
        if size <= facts_bytes_max or kept <= 1:
            return
        kept //= 2


def _marks(record: UsageRecord) -> list[tuple[str, str]]:
    """What one record adds one to."""
    marks = [("end", record.reason)]
    if record.ttft_ms is not None:
        marks.append(("ttft_ms", bucket_of(record.ttft_ms)))
    if record.duration_ms is not None:
        marks.append(("duration_ms", bucket_of(record.duration_ms)))
    if record.fallback is not None:
        marks.append(("session", record.fallback))
    return marks


def _report(connection: sqlite3.Connection, by: By, since: str) -> UsageReport:
    column = _COLUMNS[by]
    order = "1" if by == "day" else "sum(tokens_in + tokens_out) DESC, 1"
    groups = connection.execute(
        f"SELECT {column}, {_SUMS} FROM usage WHERE day >= ? GROUP BY {column} ORDER BY {order}", (since,)
    ).fetchall()
    totals = connection.execute(f"SELECT {_SUMS} FROM usage WHERE day >= ?", (since,)).fetchone()
    local = connection.execute(
        "SELECT coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0) FROM usage"
        " WHERE day >= ? AND local AND NOT synthetic",
        (since,),
    ).fetchone()
    first = connection.execute("SELECT min(day) FROM usage WHERE day >= ?", (since,)).fetchone()[0]
    tallies: dict[str, dict[str, int]] = {}
    for kind, key, n in connection.execute(
        "SELECT kind, key, sum(n) FROM tally WHERE day >= ? GROUP BY kind, key ORDER BY kind, key", (since,)
    ):
        tallies.setdefault(kind, {})[key] = n
    return UsageReport(
        by=by,
        since=first,
        totals=UsageSums(*totals),
        groups=tuple(UsageGroup(row[0], UsageSums(*row[1:])) for row in groups),
        ttft_ms=histogram(tallies.get("ttft_ms", {})),
        duration_ms=histogram(tallies.get("duration_ms", {})),
        ended=tallies.get("end", {}),
        fallbacks=tuple(
            Fallback(place, reason, n) for place in ("session", "route") for reason, n in tallies.get(place, {}).items()
        ),
        local_in=local[0],
        local_out=local[1],
    )


def _add_route(connection: sqlite3.Connection, route: LoggedRoute) -> int:
    """The bytes that it took for facts that were not there yet."""
    facts = msgspec.json.encode(route.facts)
    name = hashlib.sha256(facts).hexdigest()
    fresh = connection.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, facts)).rowcount > 0
    chosen = None if route.chosen is None else msgspec.json.encode(route.chosen)
    connection.execute(
        "INSERT INTO routes (at_s, request, facts, chosen, fallback) VALUES (?, ?, ?, ?, ?)",
        (route.at_s, msgspec.json.encode(route.request), name, chosen, route.fallback),
    )
    return len(facts) if fresh else 0


def _facts(connection: sqlite3.Connection, names: set[str]) -> dict[str, RouteFacts]:
    """Each of them once: thousands of decisions may share one."""
    found = {}
    for name in names:
        row = connection.execute("SELECT body FROM facts WHERE hash = ?", (name,)).fetchone()
        with suppress(TypeError, msgspec.MsgspecError, RecursionError):  # none, or damaged
            found[name] = msgspec.json.decode(row[0], type=RouteFacts)
    return found


def _route(
    row: tuple[int, bytes, str, bytes | None, str | None], known: Mapping[str, RouteFacts]
) -> LoggedRoute | None:
    """None for a row that makes no sense: one of them must not hide the others."""
    at_s, request, facts, chosen, fallback = row
    try:
        return LoggedRoute(
            at_s=msgspec.convert(at_s, int),
            request=msgspec.json.decode(request, type=RouteRequest),
            facts=known[facts],
            chosen=None if chosen is None else msgspec.json.decode(chosen, type=Candidate),
            fallback=msgspec.convert(fallback, str | None),
        )
    except (KeyError, TypeError, msgspec.MsgspecError, RecursionError):
        logger.warning("an entry of the log of routes cannot be read and is left out")
        return None


def _day(connection: sqlite3.Connection, at_s: int) -> str:
    day: str = connection.execute("SELECT date(?, 'unixepoch')", (at_s,)).fetchone()[0]
    return day
