"""`/openapi.json`, and `/docs`, the page that shows it. Both are served from memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from quart import Blueprint, Response

from engine.domain.errors import NotFound
from transport.wire.json_schema import Json
from web.api_calls import JSON
from web.assets import Asset, asset_of, respond

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
    described = asset_of(msgspec.json.encode(document), JSON)

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return respond(described)

    @routes.get("/docs")
    async def docs() -> Response:
        if PAGE not in assets:
            raise NotFound("the page is not part of this installation; GET /openapi.json is what it shows")
        response = respond(assets[PAGE])
        response.headers["content-security-policy"] = PAGE_POLICY
        return response

    return routes
