"""Stores in memory that fail when told to."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from engine.domain.agents import AgentEntry
from engine.domain.usage import By, UsageRecord, UsageReport, UsageSums
from policies.routing import LoggedRoute


@attrs.define(eq=False)
class ListedUsage:
    """Keeps everything; its reports hold the number of records."""

    records: list[UsageRecord] = attrs.field(factory=list)
    logged: list[LoggedRoute] = attrs.field(factory=list)
    writes: list[int] = attrs.field(factory=list)
    broken: bool = False
    crashes: int = 0  # of the next so many writes
    stands_still: trio.Event | None = None  # writes wait for it
    persistent: bool = False

    async def add(self, records: Sequence[UsageRecord], routes: Sequence[LoggedRoute]) -> None:
        self._fail()
        if self.stands_still is not None:
            await self.stands_still.wait()
        if self.crashes:
            self.crashes -= 1
            raise ZeroDivisionError
        self.records += records
        self.logged += routes
        self.writes.append(len(records) + len(routes))

    async def report(self, by: By, since: str | None) -> UsageReport:
        self._fail()
        return UsageReport(by, since, UsageSums(requests=len(self.records)), (), (), (), {}, (), 0, 0)

    async def names(self) -> tuple[set[str], set[str]]:
        self._fail()
        return {one.agent for one in self.records}, {one.model for one in self.records}

    async def routes(self, limit: int) -> tuple[LoggedRoute, ...]:
        self._fail()
        return tuple(self.logged[-limit:])

    def _fail(self) -> None:
        if self.broken:
            raise OSError("the disk is full")


@attrs.define(eq=False)
class ListedAgents:
    entries: dict[str, AgentEntry] = attrs.field(factory=dict)
    saves: int = 0
    broken: bool = False
    persistent: bool = False

    async def load(self) -> tuple[AgentEntry, ...]:
        self._fail()
        return tuple(self.entries.values())

    async def save(self, changed: Sequence[AgentEntry], gone: Sequence[str]) -> None:
        self._fail()
        for agent_id in gone:
            self.entries.pop(agent_id, None)
        self.entries |= {entry.card.agent_id: entry for entry in changed}
        self.saves += 1

    def _fail(self) -> None:
        if self.broken:
            raise OSError("the disk is full")
