"""Registered agents in the engine's database."""

from __future__ import annotations

import logging
import sqlite3
import typing
from collections.abc import Sequence
from typing import Annotated

import attrs
import msgspec

from engine.domain.agents import AgentCard, AgentEntry, AgentStatus
from engine.store import Database

Moment = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]  # wall clock seconds, up to the year 9999

logger = logging.getLogger("wf.store")


@attrs.define(eq=False)
class SqliteAgents:
    """The store of the registry. The engine's own services are not kept: they register anew at every start."""

    database: Database

    @property
    def persistent(self) -> bool:
        return self.database.persistent

    async def load(self) -> tuple[AgentEntry, ...]:
        def read(connection: sqlite3.Connection) -> tuple[AgentEntry, ...]:
            rows = connection.execute("SELECT card, status, registered_s, seen_s FROM agents ORDER BY registered_s")
            return tuple(entry for row in rows if (entry := _entry(*row)) is not None)

        return await self.database.call(read)

    async def save(self, changed: Sequence[AgentEntry], gone: Sequence[str]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            out = [*gone, *(entry.card.agent_id for entry in changed if entry.own)]
            connection.executemany("DELETE FROM agents WHERE agent_id = ?", [(agent_id,) for agent_id in out])
            connection.executemany(
                "INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?, ?)",
                [
                    (e.card.agent_id, msgspec.json.encode(e.card), e.status, e.registered_s, e.seen_s)
                    for e in changed
                    if not e.own
                ],
            )

        await self.database.call(write)


def _entry(card: bytes, status: str, registered_s: float, seen_s: float) -> AgentEntry | None:
    """None for a row that makes no sense: one of them must not keep the engine from starting."""
    try:
        decoded = msgspec.json.decode(card, type=AgentCard)
        known = msgspec.convert(status, AgentStatus)
        registered_s, seen_s = msgspec.convert((registered_s, seen_s), tuple[Moment, Moment])
    except (TypeError, msgspec.MsgspecError, RecursionError):
        logger.warning("an entry of the registered agents cannot be read and is left out")
        return None
    return AgentEntry(decoded, typing.cast("AgentStatus", known), registered_s, seen_s)
