"""The drop-in Anthropic server: `ANTHROPIC_BASE_URL=http://127.0.0.1:8145`. Every request is translated."""

from __future__ import annotations

from quart import Blueprint, Response

from engine.domain.generation import Origin
from transport.wire.dialects import anthropic as dialect
from web.handles import Engine
from web.lens.flow import answer
from web.lens.tracing import traced


def blueprint(engine: Engine) -> Blueprint:
    routes = traced(Blueprint("lens_anthropic", __name__))

    @routes.post("/v1/messages")
    @routes.post("/v1/messages/count_tokens")
    async def messages() -> Response:
        return await answer(engine, dialect, Origin.ANTHROPIC)

    return routes
