"""Shapes of what the local services, the registry of agents and the router answer, in the order of their fields as the
document of the services has it; what it has no word for comes after. JSON Schemas are made from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from quart import Response

from engine.domain.agents import AgentStatus
from policies.routing import Why

JSON = "application/json"
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Moment = Annotated[str, msgspec.Meta(description="RFC 3339")]
Fact = str | int | float | bool | None


def told(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer, its fields in their order; jsonify would sort them."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), content_type=JSON)


# ── every local service ──


class ServiceHealth(msgspec.Struct):
    """`ollama_backend` is where the runtime that answers really is, null when it runs in this process. `model` answers;
    where that is not `requested_model`, `fallback_reason` says why."""

    status: Literal["healthy", "unhealthy"]
    service: str
    port: Port
    ollama_backend: str | None
    model: str
    model_loaded: bool
    uptime_seconds: Count
    runtime: str | None
    requested_model: str
    fallback_reason: str | None


class ServiceModel(msgspec.Struct):
    """Null: its runtime does not tell."""

    name: str
    parameters: str | None
    quantization: str | None
    context_length: int | None
    embedding_dim: int | None


class ServicePerformance(msgspec.Struct):
    """Measured here: throughput of whole answers of the model, latency of requests to the service; null before the
    first."""

    avg_throughput_tok_s: float | None
    avg_latency_ms: float | None
    p95_latency_ms: float | None


class ServiceInfo(msgspec.Struct):
    """The last four are of a classifier."""

    service_name: str
    version: str
    model: ServiceModel
    capabilities: list[str]
    performance: ServicePerformance
    endpoints: list[str]
    requested_model: str
    fallback_reason: str | None
    specialized_for: str | None | msgspec.UnsetType = msgspec.UNSET
    domain_taxonomy_version: str | msgspec.UnsetType = msgspec.UNSET
    task_vocabulary_version: str | msgspec.UnsetType = msgspec.UNSET
    method_vocabulary_version: str | msgspec.UnsetType = msgspec.UNSET


# ── the classifier ──


class DomainChance(msgspec.Struct):
    """`confidence` is the model's own probability of the label, null where it gave none."""

    domain: str
    confidence: Share | None


class Classified(msgspec.Struct):
    """`validated`: the model said `primary_domain` itself; else it stands for an answer outside the vocabulary."""

    query: str
    domains: list[DomainChance]
    primary_domain: str
    validated: bool
    confidence_source: Literal["label_logprobs", "none"]
    confidence_reason: str | None
    domain_taxonomy_version: str
    model: str
    fallback_reason: str | None


class Tmd(msgspec.Struct):
    """Labels of the vocabularies, always."""

    task: str
    method: str
    domain: str


class TmdConfidence(msgspec.Struct):
    task: Share | None
    method: Share | None
    domain: Share | None


class TmdValidated(msgspec.Struct):
    task: bool
    method: bool
    domain: bool


class TmdReason(msgspec.Struct):
    """Why a confidence is null."""

    task: str | None
    method: str | None
    domain: str | None


class Extracted(msgspec.Struct):
    query: str
    tmd: Tmd
    confidence: TmdConfidence
    validated: TmdValidated
    confidence_source: Literal["label_logprobs", "none"]
    confidence_reason: TmdReason
    context_docs_used: Count
    context_chars_dropped: Count
    domain_taxonomy_version: str
    task_vocabulary_version: str
    method_vocabulary_version: str
    model: str
    fallback_reason: str | None


class DomainVerdict(msgspec.Struct):
    """`nearest` is the domain itself when it is valid, null when none is alike."""

    valid: bool
    domain: str
    nearest: str | None
    domain_taxonomy_version: str


class VocabularyBody(msgspec.Struct):
    """`fallback` stands where the model said none of the labels."""

    version: str
    fallback: str
    labels: list[str]


class TaxonomyBody(msgspec.Struct):
    task: VocabularyBody
    method: VocabularyBody
    domain: VocabularyBody


# ── the registry of agents ──


class AgentBody(msgspec.Struct):
    """The definition as it was registered, and how the agent is."""

    agent_id: str
    name: str
    tier: int
    role: str
    capabilities: list[str]
    endpoint: str
    transport: Literal["rest"]
    cost_per_1k_tokens: float
    metadata: dict[str, Fact]
    status: AgentStatus
    registered_at: Moment
    last_seen_at: Moment


class Agents(msgspec.Struct):
    agents: list[AgentBody]


class Registered(msgspec.Struct):
    """A heartbeat is due every `heartbeat_s`; without any the agent is gone after `expires_s`."""

    success: bool
    agent_id: str
    registered_at: Moment
    heartbeat_s: float
    expires_s: float


class HeartbeatAnswer(msgspec.Struct):
    success: bool
    agent_id: str
    status: AgentStatus
    heartbeat_s: float
    expires_s: float


class Deregistered(msgspec.Struct):
    success: bool
    agent_id: str


class RegistryFigures(msgspec.Struct):
    """Since the start; `registered` counts new ones, `failures` are the store's."""

    registered: Count
    deregistered: Count
    expired: Count
    restored: Count
    failures: Count


class RegistryHealth(msgspec.Struct):
    """`persistent`: agents outlive the engine. `problem` is that of the last write."""

    status: Literal["healthy", "degraded"]
    service: str
    port: Port
    agents: Count
    persistent: bool
    problem: str | None
    counters: RegistryFigures
    uptime_seconds: Count


# ── the router ──


class CandidateSaid(msgspec.Struct):
    """An entry of the map. `endpoint` is null outside this machine: where a provider is, the broker knows."""

    provider: str
    model: str
    endpoint: str | None


class JudgedBody(msgspec.Struct):
    """A candidate of the map or the registry, and why it was chosen or passed over."""

    provider: str
    model: str
    endpoint: str | None
    source: Literal["map", "registry"]
    agent_id: str | None
    agent_model: str | None
    verdict: Why
    reason: str


class Route(msgspec.Struct):
    """The choice. `cost_per_1k_tokens` is null outside this machine. `agent_model`: what the agent there says it
    serves."""

    provider: str
    model: str
    endpoint: str | None
    capability: str
    prefer_local: bool
    agent_id: str | None
    agent_model: str | None
    cost_per_1k_tokens: float | None
    reason: str
    fallback_reason: str | None
    map_hash: str
    candidates: list[JudgedBody]


class LoggedBody(msgspec.Struct):
    """`chosen` is null where nobody was left; `fallback` says why not the first."""

    at_s: int
    capability: str
    prefer_local: bool
    chosen: CandidateSaid | None
    fallback: str | None


class Decisions(msgspec.Struct):
    decisions: list[LoggedBody]


class MapBody(msgspec.Struct):
    map_hash: str
    capabilities: dict[str, list[CandidateSaid]]


class RouterHealth(msgspec.Struct):
    status: Literal["healthy"]
    service: str
    port: Port
    map_hash: str
    capabilities: list[str]
    registry: bool
    broker_on: bool
    uptime_seconds: Count


class RouteAsked(msgspec.Struct):
    capability: str
    prefer_local: bool


class ChangedBody(msgspec.Struct):
    """A logged request that the new map decides otherwise, and why."""

    at_s: int
    request: RouteAsked
    before: CandidateSaid | None
    after: CandidateSaid | None
    why: list[JudgedBody]


class WhatIfAnswer(msgspec.Struct):
    """What the new map would have done with the `replayed` requests: `lost` were answered then and would not be now,
    `gained` the other way round; both are part of `changed`. `by_capability`: replayed, changed."""

    map_hash: str
    before_hash: str
    replayed: Count
    unchanged: Count
    changed: Count
    lost: Count
    gained: Count
    by_capability: dict[str, tuple[int, int]]
    shown: list[ChangedBody]
