"""Shapes of the answers of the native API; requests are in web/schemas.py. JSON Schemas are made from these."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from actors.kernel import FlowStats
from engine.domain.generation import EndReason, Origin
from engine.domain.models import Capability, ModelState, Tier
from policies.advice import Readiness
from policies.breaker import BreakerState
from policies.broker import BrokerMode
from transport.wire.json_schema import Json, asked, said
from transport.wire.messages import ErrorItem
from web.schemas import BrokerBody, GenerateBody, LoadBody, StopBody, UnloadBody
from web.usage_body import Usage

SessionState = Literal["queued", "loading", "waiting", "streaming", "ended"]
Moment = Annotated[str, msgspec.Meta(description="RFC 3339")]


class RuntimeHealth(msgspec.Struct):
    """`up` is null until it was asked, `url` when it runs in this process."""

    name: str
    kind: str
    url: str | None
    local: bool
    up: bool | None
    reason: str | None


class Health(msgspec.Struct):
    """`state` is for somebody who wants an answer: `next` says what to do, null when there is nothing. `remote`: other
    machines may connect."""

    status: Literal["ok", "degraded"]
    state: Readiness
    next: str | None
    suggested_model: str
    remote: bool
    version: str
    uptime_s: float
    runtimes: list[RuntimeHealth]
    tier: Tier
    tier_reason: str
    level: int
    policy_hash: str
    sessions_active: int


class Held(msgspec.Struct):
    """A figure beside what the tier aims at, in the same unit: tokens/s at least, or ms at most. Where nothing was
    measured, `reason` says why."""

    measured: float | None
    aim: float
    missed: bool | None
    reason: str | None


class AgainstTier(msgspec.Struct):
    """Pace, and the last time to the first token with the model in memory and with its load. Nothing is refused for a
    miss."""

    tps: Held
    ttft_warm_ms: Held
    ttft_cold_ms: Held


class ModelEntry(msgspec.Struct):
    """`tps`, `ttft_ms` (model in memory) and `ttft_cold_ms` (with its load) are measured here, null before that; other
    nulls: the runtime does not tell. `resident_bytes` is what it takes of this machine's memory, `vram_bytes` the part
    of that on GPUs; both are null for one that is in the memory of another machine. `below_tier`: slower than the tier
    aims at, in any of the three."""

    name: str
    runtime: str
    size_bytes: int | None
    modified_at: Moment | None
    digest: str | None
    state: ModelState
    last_used: Moment | None
    resident_bytes: int | None
    vram_bytes: int | None
    capabilities: list[Capability]
    details: dict[str, Any]
    tps: float | None
    ttft_ms: float | None
    ttft_cold_ms: float | None
    below_tier: bool | None
    against_tier: AgainstTier


class Memory(msgspec.Struct):
    """Models are held against both budgets: what the tier allows, of what the machine has (without a GPU that tells, 0
    there, and everything counts as main memory). `used_bytes` is of both memories together."""

    ram_total_bytes: int
    ram_budget_bytes: int
    vram_budget_bytes: int
    used_bytes: int
    used_ram_bytes: int
    used_vram_bytes: int


class DecisionEntry(msgspec.Struct):
    """What the pool decided about a model, and its numbers, named with their units. `times`: so often in a row, `at`
    the last of them."""

    at: Moment
    decision: str
    reason: str | None
    times: int
    numbers: dict[str, float | None]


class QueuePlace(msgspec.Struct):
    """Somebody waits for a model; `wait_ms` is estimated from what was measured, null as long as nothing was."""

    position: int | None
    reason: str | None
    wait_ms: float | None


class Outlook(msgspec.Struct):
    """What would happen if it were asked for now: `ready`, `load`, `wait` or `refuse`. `reason`: why it waits or is
    refused, or why it takes no memory here."""

    outcome: str
    reason: str | None
    evict: list[str]
    numbers: dict[str, float | None]


class Why(msgspec.Struct):
    """Why a model is loaded, waited for, refused or gone. `expected_bytes`: what it takes or will take, null when its
    runtime tells neither its size nor that; `cools_for_ms`: so long it is not evicted for another."""

    model: str
    state: ModelState
    size_bytes: int | None
    resident_bytes: int | None
    expected_bytes: int | None
    leases: int
    pinned: bool
    cools_for_ms: float
    now: Outlook
    waiting: list[QueuePlace]
    decisions: list[DecisionEntry]
    memory: Memory
    against_tier: AgainstTier


class VirtualModel(msgspec.Struct):
    name: str
    members: list[str]


class PullEntry(msgspec.Struct):
    """A download under way; `progress` is null while its size is not known."""

    name: str
    status: str
    progress: float | None


class Models(msgspec.Struct):
    models: list[ModelEntry]
    virtual: list[VirtualModel]
    pulls: list[PullEntry]
    memory: Memory
    tier: Tier


class LoadAnswer(msgspec.Struct):
    success: bool
    model: str
    load_time_ms: float
    resident_bytes: int | None
    evicted: list[str]


class UnloadAnswer(msgspec.Struct):
    success: bool
    freed_bytes: int


class GenerateAnswer(msgspec.Struct):
    """Without `stream`: the session runs on. With it, the answer is a stream of `line`."""

    session_id: str
    stream_url: str
    ws_url: str
    models: list[str]
    dropped_models: list[str]
    substituted: Substituted | None


class Substituted(msgspec.Struct):
    """`model` was asked for and cannot be had on this machine; the reason names who answers instead."""

    model: str
    reason: str


class StopAnswer(msgspec.Struct):
    success: bool
    state: SessionState
    reason: EndReason | None
    tokens_generated: int
    duration_ms: float
    stop_latency_ms: float | None


class TtftFigures(msgspec.Struct):
    """Time to first token: the last with the load in it, the last without, and percentiles of both."""

    cold: float | None
    warm: float | None
    p50: float | None
    p95: float | None


class ModelFigures(msgspec.Struct):
    tps_current: float | None
    tps_average: float | None
    ttft_ms: TtftFigures
    eu_rate: float | None
    active_sessions: int
    sessions: int
    total_tokens: int
    against_tier: AgainstTier


class ClientFigures(msgspec.Struct):
    """What a dashboard said of itself with `ack_rendered`; `behind` counts frames composed since the one it painted."""

    connection_id: str
    frame: int
    behind: int
    fps: float | None
    lag_ms: float | None


class PoolFigures(msgspec.Struct):
    """Since the start. `lost`: models that a runtime dropped by itself; `reloads`: loaded again although in memory;
    `refused`: could never be had; `thrashes`: loaded again less than a cool-down after they were evicted; `prefetches`:
    loads that nobody had asked for."""

    loads: int
    evictions: int
    lost: int
    reloads: int
    refused: int
    thrashes: int
    prefetches: int
    runner_options_dropped: int


class Percentiles(msgspec.Struct):
    p50: float | None
    p95: float | None
    p99: float | None


class Drops(msgspec.Struct):
    """What was merged, replaced or refused since the engine started."""

    frames_merged: int
    energy_replaced: int
    tokens_text_only: int
    frames_without_patterns: int
    client_frames_merged: int
    clients_closed_slow: int
    backlogs_cut: int
    orphan_tokens: int
    unmeasured_tokens: int
    bad_messages: int


class DegradeLevel(msgspec.Struct):
    """How often a level of degradation was entered (0 is normal), and the time spent in it."""

    degrade: int
    entries: int
    time_s: float


class SystemFigures(msgspec.Struct):
    """`edges` are the listeners' own counters, which may change or go at any time."""

    fps_current: float
    lateness_ms: Percentiles
    frame_ms: Percentiles
    frames: int
    frames_missed: int
    queues: list[FlowStats]
    degrade: int
    degrade_levels: list[DegradeLevel]
    drops: Drops
    bytes_out: int
    rss_bytes: int | None
    rss_peak_bytes: int
    cpu_s: float
    cpu_percent: float
    edges: dict[str, dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class RunningSession(msgspec.Struct):
    session_id: str
    model: str
    origin: Origin
    state: SessionState
    tokens: int
    duration_ms: float


class SessionFigures(msgspec.Struct):
    active: int
    running: list[RunningSession]
    queued: int
    total: int
    ended: dict[EndReason, int]


class CouncilFigures(msgspec.Struct):
    """Of the running council that measured one last; null without any."""

    active: int
    di: float | None
    sync_latency_ms: float | None


class Spread(msgspec.Struct):
    """In ms, of the last 512 answers; null before there is one."""

    p50: float | None
    p95: float | None


class ModelHealth(msgspec.Struct):
    """Ages in seconds, null where it never happened; `last_error` is a code."""

    name: str
    last_load_s: float | None
    last_answer_s: float | None
    last_error: str | None
    last_error_s: float | None


class ProviderFigures(msgspec.Struct):
    """How a provider fares, here or elsewhere: `requests` are its sessions that ended, `success_rate` is null before
    one of them succeeded or failed. While `breaker` is open a provider outside this machine is not asked, and one of
    this machine stands in for nobody. `resident_bytes` are its models in memory here, null where nobody can tell;
    `listed_age_s` is how old the list of its models is."""

    name: str
    local: bool
    requests: int
    success_rate: float | None
    ttft_ms: Spread
    latency_ms: Spread
    breaker: BreakerState
    models: list[ModelHealth]
    resident_bytes: int | None
    listed_age_s: float | None


class BrokerSpent(msgspec.Struct):
    """Of this day (UTC), by the list prices; calls under way count with their bounds."""

    tokens: int
    usd: float


class BrokerLimits(msgspec.Struct):
    calls_per_hour: int
    daily_tokens: int
    daily_usd: float
    first_token_s: float
    call_max_s: float


class KeptConnections(msgspec.Struct):
    """To one provider: how many wait for their next call, and since the start how many were opened, used again, and let
    go of while they waited."""

    idle: int
    opened: int
    reused: int
    let_go: int


class BrokerProvider(msgspec.Struct):
    """A provider outside this machine. `key`: there is one for its host; `reason` says why not. `connections` is null
    where each call has its own."""

    name: str
    host: str
    models: list[str]
    key: bool
    reason: str | None
    connections: KeptConnections | None


class BrokerAnswer(msgspec.Struct):
    """`available`: the tier allows a broker and no core lock forbids it. `bytes_out` is everything that left this
    machine since the start. `context` says what of a request leaves: its last question, or the whole."""

    mode: BrokerMode
    available: bool
    provider: str | None
    bytes_out: int
    calls_last_hour: int
    spent: BrokerSpent
    limits: BrokerLimits
    context: Literal["question", "whole"]
    providers: list[BrokerProvider]
    calls: int
    failed: int
    refused: dict[str, int]


class Stats(msgspec.Struct):
    models: dict[str, ModelFigures]
    system: SystemFigures
    council: CouncilFigures
    providers: list[ProviderFigures]
    clients: list[ClientFigures]
    pool: PoolFigures
    sessions: SessionFigures


class Bootstrap(msgspec.Struct):
    """`services`: the local services that this port answers for under `/services/NAME`, by name; left out without
    any."""

    ws_url: str
    token: str
    version: str
    schema_version: str
    boot: str
    tier: Tier
    level: int
    tick_hz: int
    limits: dict[str, int]
    services: list[str] | msgspec.UnsetType = msgspec.UNSET


class ErrorBody(msgspec.Struct):
    error: ErrorItem


REQUESTS: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "broker.request": (BrokerBody, "body of POST /broker, which needs the token"),
    "generate.request": (GenerateBody, "body of POST /generate"),
    "stop.request": (StopBody, "body of POST /stop"),
    "models.load.request": (LoadBody, "body of POST /models/load"),
    "models.unload.request": (UnloadBody, "body of POST /models/unload"),
}
ANSWERS: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "generate.response": (GenerateAnswer, "answer of POST /generate"),
    "stop.response": (StopAnswer, "answer of POST /stop"),
    "models.load.response": (LoadAnswer, "answer of POST /models/load"),
    "models.unload.response": (UnloadAnswer, "answer of POST /models/unload"),
    "models": (Models, "answer of GET /models"),
    "models.why": (Why, "answer of GET /models/{name}/why"),
    "health": (Health, "answer of GET /health"),
    "broker.response": (BrokerAnswer, "answer of GET and POST /broker"),
    "stats": (Stats, "answer of GET /stats"),
    "usage": (Usage, "answer of GET /usage"),
    "bootstrap": (Bootstrap, "answer of GET /api/bootstrap, for this engine's own page"),
    "error": (ErrorBody, "answer of every refused or failed request"),
}


def body_schemas() -> dict[str, tuple[str, Json]]:
    """Name to (a line about it, schema) of every request and answer."""
    schemas = {name: (doc, asked(type_)) for name, (type_, doc) in REQUESTS.items()}
    schemas["generate.request"][1]["oneOf"] = [  # the other one may be null
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
    ]
    return schemas | {name: (doc, said(type_)) for name, (type_, doc) in ANSWERS.items()}
