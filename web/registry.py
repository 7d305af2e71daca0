"""The registry of agents as a service of its own: `/register`, `/discover`, `/heartbeat`, `/deregister`.

What an agent says of itself is kept as it is and never called from here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec
from quart import Blueprint, Response, g, request

from actors.registry import EXPIRY_S, HEARTBEAT_S, RegistryHandle
from engine.domain.agents import AgentCard, AgentEntry, AgentStatus
from engine.domain.errors import NotFound, PayloadTooLarge
from web.schemas import decode
from web.service_bodies import (
    AgentBody,
    Agents,
    Deregistered,
    HeartbeatAnswer,
    Registered,
    RegistryFigures,
    RegistryHealth,
    told,
)

NAME: Final = "registry"
CAPABILITIES_MAX: Final = 64
METADATA_MAX: Final = 64
CARD_BYTES_MAX: Final = 16_384  # of a definition; all of them are told at once
NOTHING_HERE: Final = (
    "there is nothing at this path; here are /register, /discover, /heartbeat, /deregister and /health"
)

# `$` alone would let a line end pass
AgentId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$(?!\n)")]
Capability = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$(?!\n)")]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_.-]+$(?!\n)")]
Fact = Annotated[str, msgspec.Meta(max_length=512)] | int | float | bool | None
FactName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class RegisterBody(msgspec.Struct, forbid_unknown_fields=True):
    """An agent's definition. `metadata` are plain facts of its own."""

    agent_id: AgentId
    name: Line
    capabilities: Annotated[list[Capability], msgspec.Meta(min_length=1, max_length=CAPABILITIES_MAX)]
    endpoint: Annotated[str, msgspec.Meta(max_length=64)]
    tier: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2
    role: Word = "execution"
    transport: Literal["rest"] = "rest"
    cost_per_1k_tokens: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    metadata: Annotated[dict[FactName, Fact], msgspec.Meta(max_length=METADATA_MAX)] = {}


class DiscoverBody(msgspec.Struct, forbid_unknown_fields=True):
    """Agents with all of these capabilities; all agents without any."""

    capabilities: Annotated[list[Capability], msgspec.Meta(max_length=CAPABILITIES_MAX)] = []


class HeartbeatBody(msgspec.Struct, forbid_unknown_fields=True):
    agent_id: AgentId
    status: AgentStatus = "healthy"


class DeregisterBody(msgspec.Struct, forbid_unknown_fields=True):
    agent_id: AgentId


def blueprint(handle: RegistryHandle, port: int, uptime_s: Callable[[], float]) -> Blueprint:
    routes = Blueprint("registry", __name__)

    @routes.post("/register")
    async def register() -> Response:
        data = await request.get_data(as_text=False)
        if len(data) > CARD_BYTES_MAX:
            raise PayloadTooLarge(f"a definition is larger than {CARD_BYTES_MAX} bytes", limit_bytes=CARD_BYTES_MAX)
        body = decode(data, RegisterBody)
        fields = msgspec.structs.asdict(body) | {"capabilities": tuple(dict.fromkeys(body.capabilities))}
        entry = await handle.register(AgentCard(**fields))
        moment = _moment(entry.registered_s)
        return told(Registered(True, entry.card.agent_id, moment, HEARTBEAT_S, EXPIRY_S))

    @routes.post("/discover")
    async def discover() -> Response:
        body = decode(await request.get_data(as_text=False) or b"{}", DiscoverBody)
        return told(Agents([agent_body(entry) for entry in await handle.discover(body.capabilities)]))

    @routes.post("/heartbeat")
    async def heartbeat() -> Response:
        body = decode(await request.get_data(as_text=False), HeartbeatBody)
        entry = await handle.heartbeat(body.agent_id, body.status)
        return told(HeartbeatAnswer(True, entry.card.agent_id, entry.status, HEARTBEAT_S, EXPIRY_S))

    @routes.post("/deregister")
    async def deregister() -> Response:
        body = decode(await request.get_data(as_text=False), DeregisterBody)
        entry = await handle.deregister(body.agent_id)
        return told(Deregistered(True, entry.card.agent_id))

    @routes.get("/health")
    async def health() -> Response:
        registry = handle.registry
        return told(
            RegistryHealth(
                status="healthy" if registry.problem is None else "degraded",
                service=NAME,
                port=port,
                agents=len(registry.agents),
                persistent=registry.store.persistent,
                problem=registry.problem,
                counters=RegistryFigures(**attrs.asdict(registry.counters)),
                uptime_seconds=int(uptime_s()),
            )
        )

    @routes.app_errorhandler(404)
    async def nothing_here(_: Exception) -> tuple[dict[str, Any], int]:
        error = NotFound(NOTHING_HERE, request_id=g.get("request_id"))
        return error.body(), error.status

    return routes


def agent_body(entry: AgentEntry) -> AgentBody:
    """The definition as it was registered, and how the agent is."""
    card = entry.card
    return AgentBody(
        agent_id=card.agent_id,
        name=card.name,
        tier=card.tier,
        role=card.role,
        capabilities=list(card.capabilities),
        endpoint=card.endpoint,
        transport=card.transport,
        cost_per_1k_tokens=card.cost_per_1k_tokens,
        metadata=card.metadata,
        status=entry.status,
        registered_at=_moment(entry.registered_s),
        last_seen_at=_moment(entry.seen_s),
    )


def _moment(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
