"""Agents of this machine: what one says of itself, and what can be known of those that are there.

An endpoint is a URL of this machine and nothing else: http, 127.0.0.1, localhost or [::1], a port, no path. It is
compared as text, never looked up.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import attrs

AgentStatus = Literal["healthy", "degraded", "unhealthy"]
ENDPOINT_WORDS: Final = "http://127.0.0.1:PORT, http://localhost:PORT or http://[::1]:PORT"
_ENDPOINT: Final = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):([1-9][0-9]{0,4})/?", re.IGNORECASE)
_PORT_MAX: Final = 65_535


def loopback_port(endpoint: str) -> int | None:
    """The port of an endpoint on this machine; None for anything else."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or int(found[2]) > _PORT_MAX:
        return None
    return int(found[2])


@attrs.frozen
class AgentCard:
    """An agent's definition as it registers, its fields in the order in which it is told. `metadata` are plain JSON
    values of its own."""

    agent_id: str
    name: str
    tier: int = attrs.field(default=2, kw_only=True)
    role: str = attrs.field(default="execution", kw_only=True)
    capabilities: tuple[str, ...]
    endpoint: str
    transport: Literal["rest"] = "rest"
    cost_per_1k_tokens: float = 0.0
    metadata: dict[str, Any] = attrs.field(factory=dict)

    @property
    def model(self) -> str | None:
        """The model it says it serves, where it says so."""
        model = self.metadata.get("model")
        return model if isinstance(model, str) else None


@attrs.frozen
class AgentEntry:
    """A registered agent. Wall clock, seconds since 1970 UTC; `own` is a service of this engine."""

    card: AgentCard
    status: AgentStatus
    registered_s: float
    seen_s: float
    own: bool = False
