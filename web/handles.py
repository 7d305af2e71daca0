"""What the HTTP handlers hold of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from actors.catalog import Catalog
from actors.composer import FrameCounter
from actors.hub import FrameHub
from actors.kernel import FlowStats, Outlet
from actors.mapper import MapperCounters
from actors.pool import PoolHandle
from actors.session import SessionTable
from engine.domain.events import SessionSignal
from engine.domain.generation import Clock
from engine.domain.telemetry import Telemetry


@attrs.frozen
class EngineFacts:
    """Fixed for the life of the process. `limits` are the ones a client can run into."""

    version: str
    boot: str
    tier: str
    tier_reason: str
    level: int
    tick_hz: int
    policy_hash: str
    token: str
    ws_port: int
    limits: dict[str, Any]
    ram_total_bytes: int
    ram_budget_bytes: int
    vram_budget_bytes: int


@attrs.frozen
class Engine:
    """Handles of the running engine; nothing here owns state."""

    facts: EngineFacts
    clock: Clock
    catalog: Catalog
    pool: PoolHandle
    sessions: SessionTable
    hub: FrameHub
    telemetry: Telemetry
    frame_counter: FrameCounter
    mapper_counters: MapperCounters
    signals: Outlet[SessionSignal]
    flows: Callable[[], list[FlowStats]]
    edges: Mapping[str, Any]  # counter objects of the listeners
