"""Which ports the local services, the registry and the router take, by the settings."""

from __future__ import annotations

import attrs

from engine.config import services_of
from engine.settings import Settings


@attrs.frozen
class ServicePort:
    """`port` 0 is any free one; `setting` changes it."""

    name: str
    port: int
    setting: str


def service_ports(settings: Settings) -> tuple[ServicePort, ...]:
    """In the order of their offers, whether the services are switched on or not. Raises ConfigError; reads package
    files."""
    table, _ = services_of(settings)
    asked = settings.services
    found = [ServicePort(name, entry.port, f"services.table.{name}.port") for name, entry in table.entries.items()]
    if asked.registry == "serve":
        found.append(ServicePort("registry", asked.registry_port, "services.registry_port"))
    if asked.router == "serve":
        found.append(ServicePort("router", asked.router_port, "services.router_port"))
    return tuple(found)
