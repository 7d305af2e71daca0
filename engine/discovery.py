"""The registry of agents and the provider router, beside the local services: which of them there are by the settings,
and who registers where."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import attrs
import trio
from quart import Blueprint
from quart_trio import QuartTrio

from actors.kernel import mailbox
from actors.ledger import LedgerHandle
from actors.registrar import OwnAgent, OwnRegistry, Registrar
from actors.registry import MAILBOX_COMMANDS, AgentRegistry, Command, RegistryHandle
from actors.supervise import supervise
from engine.agent_store import SqliteAgents
from engine.domain.agents import AgentCard, AgentStatus
from engine.domain.errors import RestartsExhausted
from engine.domain.generation import Clock
from engine.services import Offer
from engine.settings import ServiceSettings, Settings
from engine.store import Database
from policies.restart import RestartPolicy
from policies.routing import CapabilityMap
from transport.registry_client import RemoteRegistry
from transport.wire.json_schema import Documents
from web import registry, router
from web.app import app_of
from web.router import Router
from web.services import calls
from web.services.service import Service, agent_definition

RESTARTS: Final = RestartPolicy()
SERVE, OFF = "serve", "off"

logger = logging.getLogger("wf.discovery")


@attrs.define(eq=False)
class Discovery:
    """`registry` is our own, null where there is none. `run` keeps `agents` registered, there or elsewhere, until
    `close`."""

    settings: Settings
    clock: Clock
    registry: RegistryHandle | None
    router: Router | None
    agents: list[OwnAgent] = attrs.field(factory=list)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @classmethod
    def of(
        cls,
        settings: Settings,
        clock: Clock,
        database: Database,
        table: CapabilityMap,
        ledger: LedgerHandle,
        broker_on: Callable[[], bool] = lambda: False,
    ) -> Discovery:
        """What the settings ask for; nothing where the services are off. Nothing runs yet. `broker_on`: may the request
        at hand be led outside this machine?"""
        asked = settings.services
        if not asked.enabled:
            return cls(settings, clock, None, None)
        own = _registry(database, clock) if asked.registry == SERVE else None
        found = Router(table, own, ledger, time.time, broker_on) if asked.router == SERVE else None
        return cls(settings, clock, own, found)

    def offers(self, documents: Documents) -> list[Offer]:
        """The listeners of both. `documents` are the published schemas."""
        asked: ServiceSettings = self.settings.services
        offers = []
        if self.registry is not None:
            made = partial(registry.blueprint, self.registry)
            told = partial(calls.described, documents, calls.REGISTRY, "Registry of agents")
            offers.append(Offer(registry.NAME, asked.registry_port, self._app(made, told), "services.registry_port"))
        if self.router is not None:
            made = partial(router.blueprint, self.router)
            told = partial(calls.described, documents, calls.ROUTER, "Provider router")
            offers.append(Offer(router.NAME, asked.router_port, self._app(made, told), "services.router_port"))
        return offers

    def announce(self, services: Mapping[str, Service]) -> None:
        """Services that have their ports now: `run` registers them."""
        self.agents += [_agent(service) for service in services.values()]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `close`; our services are then deregistered. A registry beyond help is given up, the engine goes on."""
        async with trio.open_nursery() as nursery:
            if self.registry is not None:
                await nursery.start(_keep, self.registry)
            elsewhere = self.settings.services.registry
            with self._scope:
                if self.registry is not None:
                    await _register(Registrar(OwnRegistry(self.registry), self.agents), task_status)
                elif self.agents and elsewhere != OFF:
                    await _register(Registrar(RemoteRegistry(elsewhere), self.agents), task_status)
                else:
                    task_status.started()
                await trio.sleep_forever()
            if self.registry is not None:
                self.registry.close()

    def close(self) -> None:
        """`run` returns within a second."""
        self._scope.cancel(reason="stopped")

    def _app(
        self, made: Callable[[int, Callable[[], float]], Blueprint], told: Callable[[], Blueprint]
    ) -> Callable[[int], QuartTrio]:
        limits, lens, clock = self.settings.limits, self.settings.lens, self.clock

        def app_on(port: int) -> QuartTrio:
            began_us = clock()
            return app_of(
                [made(port, lambda: (clock() - began_us) / 1e6), told()],
                body_bytes_max=limits.body_bytes_max,
                lens_body_bytes_max=lens.body_bytes_max,
                body_timeout_s=limits.body_timeout_s,
            )

        return app_on


def _registry(database: Database, clock: Clock) -> RegistryHandle:
    commands, inlet = mailbox[Command]("registry", MAILBOX_COMMANDS)
    return RegistryHandle(AgentRegistry(inlet, SqliteAgents(database), clock, time.time), commands)


async def _keep(handle: RegistryHandle, *, task_status: trio.TaskStatus[None]) -> None:
    try:
        await supervise("registry", lambda: handle.registry, RESTARTS, task_status=task_status)
    except RestartsExhausted as error:
        logger.error("the registry of agents is given up: %s", error.message)
        handle.give_up()


async def _register(registrar: Registrar, task_status: trio.TaskStatus[None]) -> None:
    """Until cancelled. Beyond help it is given up; the services go on."""
    try:
        await supervise("registrar", lambda: registrar, RESTARTS, task_status=task_status)
    except RestartsExhausted as error:
        logger.error("our services are not registered any more: %s", error.message)


def _agent(service: Service) -> OwnAgent:
    """A service as it registers. It is told as localhost, the name that its users know."""
    endpoint = f"http://localhost:{service.port}"

    def card() -> AgentCard:
        told = agent_definition(service, endpoint)
        return AgentCard(**told | {"capabilities": tuple(told["capabilities"])})

    def status() -> AgentStatus:
        if service.current() is not None:
            return "healthy"
        return "unhealthy" if service.engine.catalog.asked.is_set() else "degraded"  # nobody knows yet

    return OwnAgent(service.agent_id, card, status)
