"""`/schemas`: the published JSON Schemas, as the engine was given them; `/openapi.json` of a port that has no page."""

from __future__ import annotations

import msgspec
from quart import Blueprint, Response

from transport.wire.json_schema import Documents, Json, find, listing


def blueprint(documents: Documents) -> Blueprint:
    routes = Blueprint("schema_docs", __name__)

    @routes.get("/schemas")
    async def schemas() -> Response:
        listed = listing(documents)
        for entry in listed["schemas"]:
            entry["url"] = f"/schemas/{entry['name']}"
        return Response(msgspec.json.encode(listed), content_type="application/json")

    @routes.get("/schemas/<name>")
    async def schema(name: str) -> Response:
        # Encoded here and not by jsonify, which would sort the fields.
        return Response(msgspec.json.encode(find(documents, name)), content_type="application/schema+json")

    return routes


def openapi(document: Json) -> Blueprint:
    """`/openapi.json` alone, encoded once."""
    routes, encoded = Blueprint("openapi", __name__), msgspec.json.encode(document)

    @routes.get("/openapi.json")
    async def described() -> Response:
        return Response(encoded, content_type="application/json")

    return routes
