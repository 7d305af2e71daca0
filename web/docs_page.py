"""`/openapi.json`, and `/docs`, the page that shows it. Both are served from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from engine.domain.errors import NotFound
from transport.wire.json_schema import Json
from web.api_calls import JSON
from web.page import Asset

PAGE: Final = "docs.html"
PAGE_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


def blueprint(document: Json, assets: Mapping[str, Asset]) -> Blueprint:
    """Serves the document, encoded once, and the page."""
    routes = Blueprint("openapi", __name__)
    encoded = msgspec.json.encode(document)
    described = Asset(encoded, JSON, f'"{hashlib.sha256(encoded).hexdigest()[:16]}"')

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return _serve(described)

    @routes.get("/docs")
    async def docs() -> Response:
        if PAGE not in assets:
            raise NotFound("the page is not part of this installation; GET /openapi.json is what it shows")
        response = _serve(assets[PAGE])
        response.headers["content-security-policy"] = PAGE_POLICY
        return response

    return routes


def _serve(asset: Asset) -> Response:
    headers = {"etag": asset.etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(b"", status=304, headers=headers)
    return Response(asset.body, content_type=asset.content_type, headers=headers)
