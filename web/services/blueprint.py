"""The routes of one local service; every service of the table has the same, a classifier has three more.

A service that has a port is offered under `/services/<name>` of the engine's own port too, where the dashboard, which
may only ask where it came from, reaches it.
"""

from __future__ import annotations

from typing import Any, Final

import trio
from quart import Blueprint, Response, g, request

from engine.domain.errors import NotFound
from engine.domain.usage import AGENT, agent_of
from web.app import AGENT_HEADER
from web.page import SERVICE_PREFIX
from web.service_bodies import (
    ServiceHealth,
    ServiceInfo,
    ServiceModel,
    ServicePerformance,
    TaxonomyBody,
    VocabularyBody,
    told,
)
from web.services import classify
from web.services.completions import CHAT, GENERATE, completion
from web.services.service import Service, described

ASKED_S: Final = 3.0  # how long /health waits, right after the start, for the runtimes to have been asked
COMMON: Final = ("/chat/completions", "/generate", "/health", "/info")
CLASSIFIER: Final = ("/classify_domain", "/extract_tmd", "/validate_domain")
MOUNT: Final = "/services"


def blueprint(service: Service) -> Blueprint:
    """For an app of its own, on the port that the service has by now."""
    routes = _routes(service)

    @routes.app_errorhandler(404)
    async def nothing_here(_: Exception) -> tuple[dict[str, Any], int]:
        error = NotFound("there is nothing at this path; GET /info lists what is", request_id=g.get("request_id"))
        return error.body(), error.status

    return routes


def mounted(service: Service) -> Blueprint:
    """The same for the engine's own app, under `/services/<name>`; a classifier shows its vocabularies as well."""
    routes = _routes(service, f"{MOUNT}/{service.name}")
    if service.entry.kind == "classifier":

        @routes.get("/taxonomy")
        async def taxonomy() -> Response:
            return told(taxonomy_body(service))

    return routes


def taxonomy_body(service: Service) -> TaxonomyBody:
    """Version and labels of each vocabulary, and the label that stands where the model said none of them."""
    return TaxonomyBody(
        **{
            part: VocabularyBody(one.version, one.fallback, list(one.labels))
            for part, one in service.taxonomy.vocabularies().items()
        }
    )


def _routes(service: Service, prefix: str | None = None) -> Blueprint:
    routes = Blueprint(f"{SERVICE_PREFIX}{service.name}", __name__, url_prefix=prefix)

    @routes.before_request
    async def name_agent() -> None:
        """What is asked here counts for the service, unless the caller says who he is."""
        if agent_of(request.headers.get(AGENT_HEADER, ""), "") is None:
            AGENT.set(service.agent_id)

    @routes.post("/chat/completions")
    async def chat() -> Response:
        return await completion(service, CHAT)

    @routes.post("/generate")
    async def generate() -> Response:
        return await completion(service, GENERATE)

    @routes.get("/health")
    async def health() -> Response:
        return told(*await health_body(service))

    @routes.get("/info")
    async def info() -> Response:
        await _runtimes_asked(service)
        return told(info_body(service))

    if service.entry.kind == "classifier":
        _classifier_routes(routes, service)
    return routes


def _classifier_routes(routes: Blueprint, service: Service) -> None:
    @routes.post("/classify_domain")
    async def classify_domain() -> Response:
        return await classify.classify_domain(service)

    @routes.post("/extract_tmd")
    async def extract_tmd() -> Response:
        return await classify.extract_tmd(service)

    @routes.post("/validate_domain")
    async def validate_domain() -> Response:
        return await classify.validate_domain(service)


async def _runtimes_asked(service: Service) -> None:
    with trio.move_on_after(ASKED_S):
        await service.engine.catalog.asked.wait()


async def health_body(service: Service) -> tuple[ServiceHealth, int]:
    """Body and status; 503 while there is no model to answer. Never touches a model."""
    await _runtimes_asked(service)
    chosen = service.current()
    runtime = None if chosen is None else chosen.model.runtime
    body = ServiceHealth(
        status="unhealthy" if chosen is None else "healthy",
        service=service.entry.health_name or service.name,
        port=service.port,
        ollama_backend=None if runtime is None else runtime.url,
        model=service.models[0] if chosen is None else chosen.model.name,
        model_loaded=chosen is not None and service.is_loaded(chosen),
        uptime_seconds=int((service.engine.clock() - service.started_us) / 1e6),
        runtime=None if runtime is None else runtime.name,
        requested_model=service.models[0],
        fallback_reason=None if chosen is None else chosen.fallback_reason,
    )
    return body, 503 if chosen is None else 200


def info_body(service: Service) -> ServiceInfo:
    """What it is and how it did here. Throughput is of whole answers of its model, latency of requests to it; null
    before the first."""
    entry, chosen = service.entry, service.current()
    figures = None if chosen is None else service.engine.telemetry.models.get(chosen.model.name)
    body = ServiceInfo(
        service_name=entry.title,
        version=service.engine.facts.version,
        model=ServiceModel(service.models[0], None, None, None, None) if chosen is None else described(chosen),
        capabilities=list(entry.capabilities),
        performance=ServicePerformance(
            avg_throughput_tok_s=None if figures is None else figures.tps_average,
            avg_latency_ms=service.figures.average_ms,
            p95_latency_ms=service.figures.p95_ms,
        ),
        endpoints=[*COMMON, *(CLASSIFIER if entry.kind == "classifier" else ())],
        requested_model=service.models[0],
        fallback_reason=None if chosen is None else chosen.fallback_reason,
    )
    if entry.kind == "classifier":
        body.specialized_for = entry.specialized_for
        for name, version in classify.versions(service).items():
            setattr(body, name, version)
    return body
