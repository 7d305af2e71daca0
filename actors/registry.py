"""AgentRegistry: which agents of this machine are there, and what they can do. An agent that says nothing for three
heartbeats is gone.

What is registered is written down before it is answered, so a restart knows it too; how old a restored entry is follows
from the wall clock, and from then on from the engine's. When the disk fails the registry goes on in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import attrs
import trio

from actors.kernel import Inlet, Outlet, Reply, drain
from engine.domain.agents import ENDPOINT_WORDS, AgentCard, AgentEntry, AgentStatus, loopback_port
from engine.domain.errors import EngineError, InternalError, InvalidRequest, NotFound, Overloaded, SessionConflict
from engine.domain.generation import Clock

MAILBOX_COMMANDS: Final = 256
BATCH_COMMANDS_MAX: Final = 64
AGENTS_MAX: Final = 256
HEARTBEAT_S: Final = 30.0
MISSED_MAX: Final = 3
EXPIRY_S: Final = HEARTBEAT_S * MISSED_MAX
RETRY_AFTER_S: Final = 1

T = TypeVar("T")
logger = logging.getLogger("wf.registry")


class AgentStore(Protocol):
    """Where registrations are kept. Raises OSError when it cannot."""

    @property
    def persistent(self) -> bool:
        """Whether it outlives the process."""

    async def load(self) -> tuple[AgentEntry, ...]:
        """All that were there when the last engine ended."""

    async def save(self, changed: Sequence[AgentEntry], gone: Sequence[str]) -> None:
        """Both or neither."""


@attrs.define(eq=False)
class RegistryCounters:
    """Since the start; `registered` counts new ones, `failures` are the store's."""

    registered: int = 0
    deregistered: int = 0
    expired: int = 0
    restored: int = 0
    failures: int = 0


@attrs.frozen
class _Register:
    card: AgentCard
    own: bool
    status: AgentStatus


@attrs.frozen
class _Beat:
    agent_id: str
    status: AgentStatus


@attrs.frozen
class _Deregister:
    agent_id: str
    own: bool


@attrs.frozen
class _Discover:
    capabilities: tuple[str, ...]


@attrs.define(eq=False)
class Command:
    what: _Register | _Beat | _Deregister | _Discover
    reply: Reply[Any] = attrs.field(factory=Reply)


@attrs.define(eq=False)
class AgentRegistry:
    """Times of entries are wall clock seconds; what counts for expiry is `clock`."""

    inlet: Inlet[Command]
    store: AgentStore
    clock: Clock
    wall_s: Callable[[], float]
    counters: RegistryCounters = attrs.field(factory=RegistryCounters)
    problem: str | None = None  # of the last write; null when it went well
    agents: dict[str, AgentEntry] = attrs.field(factory=dict)  # in the order of their registration
    _seen_us: dict[str, int] = attrs.field(factory=dict)
    _restored: bool = False
    _changed: set[str] = attrs.field(factory=set)
    _gone: set[str] = attrs.field(factory=set)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the last handle closed."""
        await self._restore()
        async with self.inlet.open() as commands:
            task_status.started()
            while True:
                batch: list[Command] = []
                with trio.move_on_after(self._until_expiry_s()):
                    try:
                        batch = drain(commands, await commands.receive(), BATCH_COMMANDS_MAX)
                    except trio.EndOfChannel:
                        return
                try:
                    await self._take(batch)
                except Exception:  # a bug: nobody is left waiting for it
                    for command in batch:
                        command.reply.fail(InternalError("the registry failed; its log says why"))
                    raise

    async def _take(self, batch: Sequence[Command]) -> None:
        self._expire()
        answers = [(command, self._done(command)) for command in batch]
        await self._save()
        for command, answer in answers:
            if isinstance(answer, EngineError):
                command.reply.fail(answer)
            else:
                command.reply.set(answer)

    def _done(self, command: Command) -> Any:
        """The answer, or the error."""
        try:
            match command.what:
                case _Register():
                    return self._register(command.what)
                case _Beat(agent_id, status):
                    return self._beat(agent_id, status)
                case _Deregister(agent_id, own):
                    return self._deregister(agent_id, own)
                case _Discover(capabilities):
                    return tuple(self._having(capabilities))
        except EngineError as error:
            return error

    def _register(self, asked: _Register) -> AgentEntry:
        card = asked.card
        if loopback_port(card.endpoint) is None:
            raise InvalidRequest(f"endpoint: only agents of this machine are registered: {ENDPOINT_WORDS}")
        before = self.agents.get(card.agent_id)
        self._refuse_others(card.agent_id, asked.own)
        if before is None and not asked.own and len(self.agents) >= AGENTS_MAX:  # for its own there is always room
            raise Overloaded(f"{AGENTS_MAX} agents are registered, the most allowed", retry_after_s=RETRY_AFTER_S)
        now_s = self.wall_s()
        registered_s = now_s if before is None else before.registered_s
        entry = AgentEntry(card, asked.status, registered_s, now_s, asked.own)
        self._keep(entry)
        self.counters.registered += before is None
        return entry

    def _beat(self, agent_id: str, status: AgentStatus) -> AgentEntry:
        entry = self._find(agent_id)
        if entry.own:
            return entry  # how it is the engine knows itself; nobody talks one of its services down
        entry = attrs.evolve(entry, status=status, seen_s=self.wall_s())
        self._keep(entry)
        return entry

    def _deregister(self, agent_id: str, own: bool) -> AgentEntry:
        entry = self._find(agent_id)
        self._refuse_others(agent_id, own)
        self._drop(agent_id)
        self.counters.deregistered += 1
        return entry

    def _having(self, capabilities: Iterable[str]) -> list[AgentEntry]:
        """Agents with all of `capabilities`, or all agents when none is named."""
        wanted = set(capabilities)
        return [entry for entry in self.agents.values() if wanted <= set(entry.card.capabilities)]

    def _find(self, agent_id: str) -> AgentEntry:
        if agent_id not in self.agents:
            raise NotFound("no such agent is registered; it may have missed its heartbeats, then it registers anew")
        return self.agents[agent_id]

    def _refuse_others(self, agent_id: str, own: bool) -> None:
        entry = self.agents.get(agent_id)
        if entry is not None and entry.own and not own:
            raise SessionConflict("this is a service of the engine itself; only the engine changes it")

    def _keep(self, entry: AgentEntry) -> None:
        agent_id = entry.card.agent_id
        self.agents[agent_id] = entry
        self._seen_us[agent_id] = self.clock()
        self._changed.add(agent_id)
        self._gone.discard(agent_id)

    def _drop(self, agent_id: str) -> None:
        del self.agents[agent_id], self._seen_us[agent_id]
        self._changed.discard(agent_id)
        self._gone.add(agent_id)

    def _expire(self) -> None:
        horizon_us = self.clock() - round(EXPIRY_S * 1e6)
        for agent_id in [agent_id for agent_id, seen_us in self._seen_us.items() if seen_us <= horizon_us]:
            self._drop(agent_id)
            self.counters.expired += 1
            logger.info("agent %s missed %d heartbeats and is gone", agent_id, MISSED_MAX)

    def _until_expiry_s(self) -> float:
        if not self._seen_us:
            return float("inf")
        return max(0.0, EXPIRY_S - (self.clock() - min(self._seen_us.values())) / 1e6)

    async def _restore(self) -> None:
        """Once: later incarnations have it all in memory. Services of the engine itself register anew."""
        if self._restored:
            return
        try:
            found = await self.store.load()
        except OSError as error:
            self._failed(error)
            found = ()
        for entry in found[:AGENTS_MAX]:
            age_s = max(0.0, self.wall_s() - entry.seen_s)
            self.agents[entry.card.agent_id] = entry
            self._seen_us[entry.card.agent_id] = self.clock() - round(age_s * 1e6)
        self.counters.restored = len(self.agents)
        self._restored = True

    async def _save(self) -> None:
        """What failed is tried again with the next change."""
        if not self._changed and not self._gone:
            return
        try:
            await self.store.save([self.agents[name] for name in self._changed], sorted(self._gone))
        except OSError as error:
            self._failed(error)
            return
        self._changed.clear()
        self._gone.clear()
        self.problem = None

    def _failed(self, error: OSError) -> None:
        self.counters.failures += 1
        if self.problem is None:
            logger.warning("registered agents cannot be written down: %s", error)
        self.problem = str(error)


@attrs.define(eq=False)
class RegistryHandle:
    """What others hold of the registry. Every call raises Overloaded when its mailbox is full. Cancelled: the command
    still counts."""

    registry: AgentRegistry
    commands: Outlet[Command]
    _over: bool = False

    def close(self) -> None:
        """No command comes any more: the registry ends."""
        self._over = True
        self.commands.close()

    def give_up(self) -> None:
        """Nobody will read again."""
        self._over = True
        self.registry.problem = "the registry crashed too often and was given up; the log says why"
        self.registry.inlet.close()

    async def register(self, card: AgentCard, *, own: bool = False, status: AgentStatus = "healthy") -> AgentEntry:
        """There from now on, in place of what had this id. Raises InvalidRequest for an endpoint that is not on this
        machine, SessionConflict when the id is one of the engine's services."""
        return await self._ask(_Register(card, own, status), AgentEntry)

    async def heartbeat(self, agent_id: str, status: AgentStatus = "healthy") -> AgentEntry:
        """Still there. Changes nothing for a service of the engine. Raises NotFound."""
        return await self._ask(_Beat(agent_id, status), AgentEntry)

    async def deregister(self, agent_id: str, *, own: bool = False) -> AgentEntry:
        """Gone; what it was. Raises NotFound, SessionConflict."""
        return await self._ask(_Deregister(agent_id, own), AgentEntry)

    async def discover(self, capabilities: Iterable[str] = ()) -> tuple[AgentEntry, ...]:
        """The living agents with all of `capabilities`, in the order of their registration."""
        return await self._ask(_Discover(tuple(capabilities)), tuple)

    async def _ask(self, what: _Register | _Beat | _Deregister | _Discover, kind: type[T]) -> T:
        command = Command(what)
        if self._over or not self.commands.offer(command):
            raise Overloaded("the registry is busy", retry_after_s=RETRY_AFTER_S)
        answer = await command.reply.wait()
        assert isinstance(answer, kind)
        return answer
