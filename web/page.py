"""The dashboard's files, served from memory, and `/api/bootstrap`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quart import Blueprint, Response, current_app, request

from engine.domain.errors import ForbiddenOrigin, NotFound
from transport.wire.frames import SCHEMA_VERSION
from web.assets import INDEX, Asset, respond
from web.handles import Engine

SERVICE_PREFIX: Final = "service_"  # of the names of blueprints that serve a local service


def blueprint(engine: Engine, assets: Mapping[str, Asset]) -> Blueprint:
    routes = Blueprint("page", __name__)

    @routes.get("/")
    async def index() -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return Response(b"Ollama is running", content_type="text/plain; charset=utf-8")  # its clients ask so
        response = _serve(assets, INDEX)
        response.headers["content-security-policy"] = _policy(engine.ws_origin(request.host))
        return response

    @routes.get("/static/<path:name>")
    async def static_file(name: str) -> Response:
        return _serve(assets, name)

    @routes.get("/api/bootstrap")
    async def bootstrap() -> dict[str, Any]:
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise ForbiddenOrigin("only this engine's own page may ask for its token")
        facts = engine.facts
        allowed = facts.tier_limits
        models = allowed.max_parallel_models
        council = {"council_models_max": models, "turbo_models_max": models if allowed.turbo_enabled else 0}
        services = _services()
        offered = {"services": services} if services else {}
        return offered | {
            "ws_url": f"{engine.ws_origin(request.host)}/ws",
            "token": facts.token,
            "version": facts.version,
            "schema_version": SCHEMA_VERSION,
            "boot": facts.boot,
            "tier": facts.tier,
            "level": facts.level,
            "tick_hz": facts.tick_hz,
            "limits": facts.limits | council,
        }

    return routes


def _serve(assets: Mapping[str, Asset], name: str) -> Response:
    asset = assets.get(name)
    if asset is None:
        raise NotFound("there is no such file")
    return respond(asset)


def _services() -> list[str]:
    """The local services that this port answers for, by name."""
    names = current_app.blueprints
    return sorted(name.removeprefix(SERVICE_PREFIX) for name in names if name.startswith(SERVICE_PREFIX))


def _policy(ws_origin: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            f"connect-src 'self' {ws_origin}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types lit-html",  # it makes templates of markup that stands in our own files
        )
    )
