"""Registrar: keeps our own services registered, with the registry of this engine or with another one. A registry that
does not answer is a warning, never a failed start: it is asked again, less and less often."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

import attrs
import trio

from actors.registry import HEARTBEAT_S, RegistryHandle
from engine.domain.agents import AgentCard
from engine.domain.errors import EngineError, NotFound

BACKOFF_S: Final = 1.0  # after the first failure; it doubles
BACKOFF_MAX_S: Final = 60.0
GOODBYE_S: Final = 1.0  # for all of them, when the engine stops

logger = logging.getLogger("wf.registrar")


class Registry(Protocol):
    """A registry somewhere. Raises EngineError; NotFound from a heartbeat means: register anew."""

    async def register(self, card: AgentCard) -> None: ...
    async def heartbeat(self, agent_id: str) -> None: ...
    async def deregister(self, agent_id: str) -> None: ...


@attrs.frozen
class OwnRegistry:
    """The registry of this engine."""

    handle: RegistryHandle

    async def register(self, card: AgentCard) -> None:
        await self.handle.register(card, own=True)

    async def heartbeat(self, agent_id: str) -> None:
        await self.handle.heartbeat(agent_id)

    async def deregister(self, agent_id: str) -> None:
        await self.handle.deregister(agent_id, own=True)


@attrs.define(eq=False)
class Registrar:
    """`registered` holds the ids that the registry knows; `failures` counts calls that went wrong."""

    registry: Registry
    cards: Sequence[AgentCard]
    registered: set[str] = attrs.field(factory=set)
    failures: int = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; then all are deregistered, within a second."""
        try:
            async with trio.open_nursery() as nursery:
                for card in self.cards:
                    nursery.start_soon(self._keep, card)
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(GOODBYE_S, shield=True):
                async with trio.open_nursery() as nursery:
                    for agent_id in sorted(self.registered):
                        nursery.start_soon(self._leave, agent_id)

    async def _keep(self, card: AgentCard) -> None:
        failed = 0
        while True:
            try:
                if card.agent_id in self.registered:
                    await self.registry.heartbeat(card.agent_id)
                else:
                    await self.registry.register(card)
                    self.registered.add(card.agent_id)
                failed = 0
            except EngineError as error:
                if isinstance(error, NotFound) and card.agent_id in self.registered:
                    self.registered.discard(card.agent_id)  # it was forgotten there, so it registers anew, at once
                    continue
                if not failed:
                    logger.warning("%s cannot be registered, it is tried again: %s", card.agent_id, error.message)
                failed += 1
            self.failures += failed > 0
            await trio.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failed - 1, 60)) if failed else HEARTBEAT_S)

    async def _leave(self, agent_id: str) -> None:
        with suppress(EngineError):
            await self.registry.deregister(agent_id)
