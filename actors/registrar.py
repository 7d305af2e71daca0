"""Registrar: keeps our own services registered, with the registry of this engine or with another one. A registry that
does not answer is a warning, never a failed start: it is asked again, less and less often."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import attrs
import trio

from actors.registry import HEARTBEAT_S, RegistryHandle
from engine.domain.agents import AgentCard, AgentStatus
from engine.domain.errors import EngineError, NotFound

BACKOFF_S: Final = 1.0  # after the first failure; it doubles
BACKOFF_MAX_S: Final = 60.0
LOOK_S: Final = 1.0  # how often a service is looked at; when its status has changed, that is told at once
GOODBYE_S: Final = 2.0  # for all of them, when the engine stops

logger = logging.getLogger("wf.registrar")


@attrs.frozen
class OwnAgent:
    """A service of ours. What it says of itself, and how it is, may change while it runs."""

    agent_id: str
    card: Callable[[], AgentCard]
    status: Callable[[], AgentStatus]


class Registry(Protocol):
    """A registry somewhere. Raises EngineError; NotFound from a heartbeat means: register anew."""

    async def register(self, agent: OwnAgent) -> None: ...
    async def heartbeat(self, agent: OwnAgent) -> None: ...
    async def deregister(self, agent: OwnAgent) -> None: ...


@attrs.frozen
class OwnRegistry:
    """The registry of this engine. A heartbeat brings what changed."""

    handle: RegistryHandle

    async def register(self, agent: OwnAgent) -> None:
        await self.handle.register(agent.card(), own=True, status=agent.status())

    async def heartbeat(self, agent: OwnAgent) -> None:
        await self.register(agent)

    async def deregister(self, agent: OwnAgent) -> None:
        await self.handle.deregister(agent.agent_id, own=True)


@attrs.define(eq=False)
class Registrar:
    """`registered` holds those that the registry knows, by id; `failures` counts calls that went wrong."""

    registry: Registry
    agents: Sequence[OwnAgent]
    registered: dict[str, OwnAgent] = attrs.field(factory=dict)
    failures: int = 0
    _asked: dict[str, OwnAgent] = attrs.field(factory=dict)  # those that the registry may know

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; then all are deregistered, within GOODBYE_S."""
        try:
            async with trio.open_nursery() as nursery:
                for agent in self.agents:
                    nursery.start_soon(self._keep, agent)
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(GOODBYE_S, shield=True):
                async with trio.open_nursery() as nursery:
                    for agent in self._asked.values():
                        nursery.start_soon(self._leave, agent)

    async def _keep(self, agent: OwnAgent) -> None:
        failed = 0
        while True:
            told = agent.status()
            try:
                if agent.agent_id in self.registered:
                    await self.registry.heartbeat(agent)
                else:
                    self._asked[agent.agent_id] = agent
                    await self.registry.register(agent)
                    self.registered[agent.agent_id] = agent
                failed = 0
            except EngineError as error:
                if isinstance(error, NotFound) and self.registered.pop(agent.agent_id, None) is not None:
                    continue  # it was forgotten there, so it registers anew, at once
                if agent.agent_id not in self.registered:
                    self._asked.pop(agent.agent_id, None)
                if not failed:
                    logger.warning("%s cannot be registered, it is tried again: %s", agent.agent_id, error.message)
                failed += 1
            if failed:
                self.failures += 1
                await trio.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failed - 1, 60)))
                continue
            for _ in range(round(HEARTBEAT_S / LOOK_S)):
                await trio.sleep(LOOK_S)
                if agent.status() != told:
                    break

    async def _leave(self, agent: OwnAgent) -> None:
        with suppress(EngineError):
            await self.registry.deregister(agent)
