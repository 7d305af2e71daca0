"""UsageLedger: what answers cost, kept across restarts. It owns the way into the store; nobody waits for it but those
who ask for a report.

The feed offers one record per ended answer and the router one per decision. What does not fit into the mailbox is lost
and counted, and a session never waits. What a failing disk does not take is kept up to a bound and tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import attrs
import trio

from actors.kernel import Inlet, Outlet, Reply, drain, mailbox
from engine.domain.errors import InternalError, Overloaded
from engine.domain.usage import OTHER, By, UsageRecord, UsageReport
from policies.routing import LoggedRoute

MAILBOX_RECORDS: Final = 1024
BATCH_RECORDS_MAX: Final = 512  # of one transaction
UNWRITTEN_MAX: Final = 4096  # kept while the disk fails; the oldest go first
GATHER_S: Final = 0.25  # records wait so long for others before they are written
RETRY_S: Final = 5.0
AGENTS_MAX: Final = 256  # different names kept; answers for more count as `other`
MODELS_MAX: Final = 512
REASONS_MAX: Final = 256  # of fallbacks, since the start
RETRY_AFTER_S: Final = 1

T = TypeVar("T")
logger = logging.getLogger("wf.ledger")


class UsageStore(Protocol):
    """Where the ledger keeps things. Raises OSError when it cannot."""

    @property
    def persistent(self) -> bool:
        """Whether it outlives the process."""

    async def add(self, records: Sequence[UsageRecord], routes: Sequence[LoggedRoute]) -> None:
        """All of them or none; old ones go when there are too many."""

    async def report(self, by: By, since: str | None) -> UsageReport:
        """Sums from the day `since` on (all there are)."""

    async def names(self) -> tuple[set[str], set[str]]:
        """The agents and the models there are figures for."""

    async def routes(self, limit: int) -> tuple[LoggedRoute, ...]:
        """The latest, oldest first."""


@attrs.define(eq=False)
class _Question:
    ask: Callable[[UsageStore], Awaitable[Any]]
    reply: Reply[Any] = attrs.field(factory=Reply)


LedgerMessage = UsageRecord | LoggedRoute | _Question


@attrs.define(eq=False)
class LedgerCounters:
    """Since the start. `lost`: not written, since the disk failed for too long; what the full mailbox refused is in its
    own figures."""

    written: int = 0
    lost: int = 0
    failures: int = 0


@attrs.define(eq=False)
class UsageLedger:
    inlet: Inlet[LedgerMessage]
    store: UsageStore
    counters: LedgerCounters = attrs.field(factory=LedgerCounters)
    problem: str | None = None  # of the last write; null when it went well
    _unwritten: list[UsageRecord | LoggedRoute] = attrs.field(factory=list)
    _names: tuple[set[str], set[str]] | None = None
    _reasons: set[str] = attrs.field(factory=set)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the last producer closed; what is left is then written, if the disk takes it."""
        async with self.inlet.open() as messages:
            task_status.started()
            while True:
                batch: list[LedgerMessage] = []
                with trio.move_on_after(RETRY_S if self._unwritten else float("inf")):
                    try:
                        batch = drain(messages, await messages.receive(), BATCH_RECORDS_MAX)
                        await _gather(messages, batch)
                    except trio.EndOfChannel:
                        await self._write()
                        self.counters.lost += len(self._unwritten)
                        return
                await self._take(batch)

    async def _take(self, batch: Sequence[LedgerMessage]) -> None:
        questions = []
        for message in batch:
            if isinstance(message, _Question):
                questions.append(message)
            else:
                self._unwritten.append(message)
        if (excess := len(self._unwritten) - UNWRITTEN_MAX) > 0:
            del self._unwritten[:excess]
            self.counters.lost += excess
        try:
            await self._write()
            for question in questions:
                await self._answer(question)
        except Exception:  # a bug: nobody is left waiting for it
            for question in questions:
                question.reply.fail(InternalError("the usage ledger failed; the log says why"))
            raise

    async def _write(self) -> None:
        if not self._unwritten:
            return
        try:
            if self._names is None:
                self._names = await self.store.names()
            records = [self._named(one) for one in self._unwritten if isinstance(one, UsageRecord)]
            routes = [one for one in self._unwritten if isinstance(one, LoggedRoute)]
            await self.store.add(records, routes)
        except OSError as error:
            self.counters.failures += 1
            if self.problem is None:
                logger.warning("usage cannot be written, it is tried again: %s", error)
            self.problem = str(error)
            return
        self.counters.written += len(self._unwritten)
        self._unwritten.clear()
        self.problem = None

    def _named(self, record: UsageRecord) -> UsageRecord:
        """Callers choose their names, so there could be any number of them."""
        assert self._names is not None
        agents, models = self._names
        agent = _bounded(record.agent, agents, AGENTS_MAX)
        model = _bounded(record.model, models, MODELS_MAX)
        fallback = None if record.fallback is None else _bounded(record.fallback, self._reasons, REASONS_MAX)
        return attrs.evolve(record, agent=agent, model=model, fallback=fallback)

    async def _answer(self, question: _Question) -> None:
        if question.reply.abandoned:
            return
        try:
            question.reply.set(await question.ask(self.store))
        except OSError as error:
            logger.warning("usage cannot be read: %s", error)
            question.reply.fail(InternalError("the usage figures cannot be read; the log says why"))


async def _gather(messages: trio.MemoryReceiveChannel[LedgerMessage], batch: list[LedgerMessage]) -> None:
    """More records for the same write: each write costs as much as a hundred records do. A question ends the wait."""
    with trio.move_on_after(GATHER_S):
        while len(batch) < BATCH_RECORDS_MAX and not isinstance(batch[-1], _Question):
            try:
                batch.append(await messages.receive())
            except trio.EndOfChannel:
                return


def _bounded(name: str, known: set[str], most: int) -> str:
    if name in known:
        return name
    if len(known) >= most:
        return OTHER
    known.add(name)
    return name


@attrs.define(eq=False)
class LedgerHandle:
    """What others hold of the ledger. `refused` is what came when it was over."""

    ledger: UsageLedger
    outlet: Outlet[LedgerMessage]
    refused: int = 0
    _over: bool = False

    @classmethod
    def of(cls, store: UsageStore) -> LedgerHandle:
        """A ledger over `store`, with its mailbox. Not running yet."""
        outlet, inlet = mailbox[LedgerMessage]("ledger", MAILBOX_RECORDS)
        return cls(UsageLedger(inlet, store), outlet)

    def log(self, entry: UsageRecord | LoggedRoute) -> bool:
        """False, and counted, when there is no room for it."""
        if self._over:
            self.refused += 1
            return False
        return self.outlet.offer(entry)

    def close(self) -> None:
        """Nothing more comes: the ledger writes what it has and ends."""
        self._over = True
        self.outlet.close()

    def give_up(self) -> None:
        """Nobody will read again."""
        self._over = True
        self.ledger.problem = "the ledger crashed too often and was given up; the log says why"
        self.ledger.inlet.close()

    async def report(self, by: By, since: str | None = None) -> UsageReport:
        """All that was told before this call is in it. Raises Overloaded."""
        return await self._ask(lambda store: store.report(by, since))

    async def routes(self, limit: int) -> tuple[LoggedRoute, ...]:
        """The latest decisions, oldest first. Raises Overloaded."""
        return await self._ask(lambda store: store.routes(limit))

    async def _ask(self, ask: Callable[[UsageStore], Awaitable[T]]) -> T:
        question = _Question(ask)
        if self._over or not self.outlet.offer(question):
            raise Overloaded("the usage ledger is busy", retry_after_s=RETRY_AFTER_S)
        answer: T = await question.reply.wait()
        return answer
