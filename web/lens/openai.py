"""The drop-in OpenAI server: `OPENAI_BASE_URL=http://127.0.0.1:8145/v1`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from quart import Blueprint, Response, request

from engine.domain.generation import Origin
from engine.domain.models import ModelInfo
from transport.wire.dialects import openai as dialect
from transport.wire.dialects import openai_models as listing
from web.handles import Engine
from web.lens.flow import answer, embed, explained, listed, look_up
from web.lens.tracing import traced

JSON: Final = "application/json"


def blueprint(engine: Engine) -> Blueprint:
    routes = traced(Blueprint("lens_openai", __name__))

    @routes.get("/v1/models")
    async def models() -> Response:
        return await listed(engine, JSON, lambda: listing.models_body(_named(engine)))

    @routes.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        return await explained(engine, dialect.error_body, _model(engine, name))

    @routes.post("/v1/chat/completions")
    @routes.post("/v1/completions")
    @routes.post("/v1/responses")
    async def generate() -> Response:
        return await answer(engine, dialect, Origin.OPENAI)

    @routes.post("/v1/embeddings")
    async def embeddings() -> Response:
        return await explained(engine, dialect.error_body, _embed(engine))

    return routes


def _named(engine: Engine) -> Iterator[tuple[str, ModelInfo]]:
    return ((model.name, model.info) for model in engine.catalog.askable)


async def _model(engine: Engine, name: str) -> Response:
    model = await look_up(engine, name)
    return Response(listing.model_body(name, model.info), content_type=JSON)


async def _embed(engine: Engine) -> Response:
    body = await request.get_data(as_text=False)
    assert isinstance(body, bytes)
    asked = listing.parse_embeddings(body)
    made = await embed(engine, asked.model, asked.request)
    return Response(listing.embeddings_body(asked, made.found), content_type=JSON, headers=made.headers)
