"""The dashboard's files and `/api/bootstrap`. Files are read once, before the engine is ready, and served from
memory."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

import attrs
from quart import Blueprint, Response, current_app, request

from engine.domain.errors import ForbiddenOrigin, NotFound
from transport.wire.frames import SCHEMA_VERSION
from web.handles import Engine

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SERVICE_PREFIX: Final = "service_"  # of the names of blueprints that serve a local service


@attrs.frozen
class Asset:
    """A file as it is sent; `packed` is it with gzip, empty where that is not done."""

    body: bytes
    content_type: str
    etag: str
    packed: bytes = b""


def read_assets() -> Mapping[str, Asset]:
    """All files of web/static by name. Blocking: call it from a thread."""
    assets = {}
    for entry in files("web").joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in CONTENT_TYPES:
            body = entry.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:16]
            packed = gzip.compress(body, mtime=0)
            assets[entry.name] = Asset(body, CONTENT_TYPES[suffix], f'"{digest}"', packed)
    return assets


def blueprint(engine: Engine, assets: Mapping[str, Asset]) -> Blueprint:
    routes = Blueprint("page", __name__)

    @routes.get("/")
    async def index() -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return Response(b"Ollama is running", content_type="text/plain; charset=utf-8")  # its clients ask so
        response = _serve(assets, "index.html")
        response.headers["content-security-policy"] = _policy(engine.ws_origin(request.host))
        return response

    @routes.get("/static/<name>")
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
    headers = {"etag": asset.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(b"", status=304, headers=headers)
    if asset.packed and request.accept_encodings["gzip"] > 0:
        packing = {"content-encoding": "gzip"}
        return Response(asset.packed, content_type=asset.content_type, headers=headers | packing)
    return Response(asset.body, content_type=asset.content_type, headers=headers)


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
            f"connect-src 'self' {ws_origin}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
