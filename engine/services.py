"""The listeners of the local services: opened with the engine, each on its own port, behind the guards of the API.

A service whose port is taken is left out and told about; the engine starts without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import trio
from quart_trio import QuartTrio

from engine.domain.errors import EngineError
from engine.settings import Settings
from policies.services import ServiceTable
from policies.taxonomy import Taxonomy
from transport.listen import bound_port, open_listener
from transport.wire.json_schema import Documents
from web.app import app_of
from web.guard import HttpServer
from web.handles import Engine
from web.services import calls
from web.services.blueprint import blueprint
from web.services.service import Service

logger = logging.getLogger("wf.services")

ServerOf = Callable[[QuartTrio, trio.SocketListener], HttpServer]


@attrs.frozen
class Offer:
    """Something to be served on a port of its own. `app_on` makes the app for the port that it really gets; `setting`
    is what changes the port."""

    name: str
    port: int
    app_on: Callable[[int], QuartTrio]
    setting: str


@attrs.define(eq=False)
class LocalServices:
    """Those whose port was free, by name, in the order of their offers. `problems` are lines about the others."""

    host: str
    servers: dict[str, HttpServer] = attrs.field(factory=dict)
    services: dict[str, Service] = attrs.field(factory=dict)  # those of the table
    ports: dict[str, int] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    @property
    def counters(self) -> dict[str, Any]:
        return {name: server.counters for name, server in self.servers.items()}

    async def start(self, nursery: trio.Nursery) -> None:
        """All of them serve when this returns."""
        for server in self.servers.values():
            await nursery.start(server.run)

    def stop_accepting(self) -> None:
        for server in self.servers.values():
            server.stop_accepting()


async def open_services(offers: Sequence[Offer], host: str, server_of: ServerOf) -> LocalServices:
    """Bound and listening, not yet served. Never raises for a port. Cancelled, or on another error: all are closed."""
    opened, listeners = LocalServices(host), list[trio.SocketListener]()
    try:
        for offer in offers:
            try:
                listener = await open_listener(host, offer.port)
            except EngineError as error:
                problem = f"service {offer.name} is not offered: {error.message}; free the port, or set {offer.setting}"
                opened.problems.append(f"{problem} (0: any free one)")
                logger.warning("%s", opened.problems[-1])
                continue
            listeners.append(listener)
            opened.ports[offer.name] = bound_port(listener)
            opened.servers[offer.name] = server_of(offer.app_on(opened.ports[offer.name]), listener)
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return opened


def offers_of(
    table: ServiceTable,
    taxonomy: Taxonomy,
    engine: Engine,
    settings: Settings,
    made: dict[str, Service],
    documents: Documents,
) -> list[Offer]:
    """One for each service of the table; `made` gets each service once its port is known. `documents` are the published
    schemas."""

    def app_for(name: str, port: int) -> QuartTrio:
        service = made[name] = Service.of(name, table, taxonomy, engine, port)
        answered = calls.CLASSIFIER if service.entry.kind == "classifier" else calls.COMPLETION
        return app_of(
            [blueprint(service), calls.described(documents, answered, service.entry.title)],
            body_bytes_max=settings.limits.body_bytes_max,
            lens_body_bytes_max=settings.lens.body_bytes_max,
            body_timeout_s=settings.limits.body_timeout_s,
        )

    return [
        Offer(name, entry.port, partial(app_for, name), f"services.table.{name}.port")
        for name, entry in table.entries.items()
    ]
