"""The drop-in Ollama: `OLLAMA_HOST=127.0.0.1:8145`, and every program that speaks to Ollama speaks to this engine.

Calls that change what is installed are refused: they are how servers on open ports get robbed. `/api/pull` is in
web/pull.py.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Final

import attrs
from quart import Blueprint, Response, request

from actors.catalog import ModelRef
from engine.domain.errors import Forbidden
from engine.domain.generation import Dialect, Origin
from engine.domain.models import ModelInfo, ModelState
from engine.domain.runtime import Forwarder, ForwardRequest, OllamaServer, Residence
from transport.wire.dialects import ollama as dialect
from transport.wire.dialects import ollama_show as listing
from transport.wire.dialects.reply import Asked, ReplyFacts
from web.handles import Engine
from web.lens.exchange import NATIVE, TRANSLATED
from web.lens.flow import (
    UNLOAD,
    aged_headers,
    answer,
    call_headers,
    embed,
    explained,
    is_passive,
    listed,
    look_up,
    refusal,
    tell_of,
)
from web.lens.tracing import traced

MANAGEMENT: Final = (
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/push"),
    ("POST", "/api/blobs/<digest>"),
    ("HEAD", "/api/blobs/<digest>"),
)
JSON: Final = "application/json; charset=utf-8"


def blueprint(engine: Engine) -> Blueprint:
    routes = traced(Blueprint("lens_ollama", __name__))

    @routes.get("/api/version")
    async def version() -> Response:
        return Response(listing.version(), content_type=JSON)

    @routes.get("/api/tags")
    async def tags() -> Response:
        return await listed(engine, JSON, lambda: listing.tags(map(_public, engine.catalog.askable)))

    @routes.get("/api/ps")
    async def ps() -> Response:
        return await explained(engine, dialect.error_body, _ps(engine))

    @routes.post("/api/show")
    async def show() -> Response:
        return await explained(engine, dialect.error_body, _show(engine))

    @routes.post("/api/generate")
    @routes.post("/api/chat")
    async def generate() -> Response:
        return await answer(engine, dialect, Origin.OLLAMA, load_only=_load, prepare=partial(_prepared, engine))

    @routes.post("/api/embed")
    @routes.post("/api/embeddings")
    async def embeddings() -> Response:
        return await explained(engine, dialect.error_body, _embed(engine))

    async def refused(**_: str) -> Response:
        error = Forbidden("calls that change what is installed are not served here; ask Ollama itself")
        return refusal(dialect.error_body, error)

    for method, path in MANAGEMENT:
        routes.add_url_rule(path, f"{method} {path}", refused, methods=[method])
    return routes


def _public(model: ModelRef) -> ModelInfo:
    return attrs.evolve(model.info, name=model.name)


async def _resident(engine: Engine) -> list[listing.Resident]:
    """What is in memory, with what each runtime knows of it: an Ollama its own, the built-in models use no GPU."""
    statuses = [(model, engine.pool.pool.status(model.name)) for model in engine.catalog.models]
    ready = [(model, status) for model, status in statuses if status.state is ModelState.READY]
    running = {
        name: await engine.lens.residences.of(
            name, runtime, frozenset(model.info.name for model, _ in ready if model.runtime is runtime)
        )
        for name, runtime in engine.catalog.runtimes.items()
        if isinstance(runtime, OllamaServer) and (probe := engine.catalog.probes.get(name)) is not None and probe.up
    }
    found = []
    for model, status in ready:
        vram_bytes = 0 if model.runtime.kind == "embedded" else None
        told = running.get(model.runtime.name, {}).get(model.info.name, Residence(vram_bytes, None, None))
        size_bytes = status.resident_bytes if model.runtime.local else told.size_bytes  # there it takes none of ours
        found.append(
            listing.Resident(_public(model), size_bytes, told.vram_bytes, told.expires_at, told.context_length)
        )
    return found


async def _ps(engine: Engine) -> Response:
    aged = await aged_headers(engine)
    return Response(listing.ps(await _resident(engine)), content_type=JSON, headers=aged)


async def _show(engine: Engine) -> Response:
    asked = listing.parse_show(await _body())
    model = await look_up(engine, asked.model)
    if isinstance(model.runtime, OllamaServer):
        return Response(await model.runtime.show_raw(model.info.name, verbose=asked.verbose), content_type=JSON)
    return Response(listing.show(_public(model)), content_type=JSON)


async def _embed(engine: Engine) -> Response:
    began_us = engine.clock()
    asked = listing.parse_embed(request.path, await _body())
    made = await embed(engine, asked.model, asked.request)
    total_ms = (engine.clock() - began_us) / 1000
    body = listing.embed_body(asked, made.found, total_ms=total_ms, load_ms=made.load_ms)
    return Response(body, content_type=JSON, headers=made.headers)


def _prepared(engine: Engine, asked: Asked) -> Asked:
    """Pinned runner options are ours alone: those of the request are dropped, and counted."""
    if is_passive(engine) or not (engine.sessions.pin_runner_options and asked.request.runner_options):
        return asked  # passive changes no byte
    engine.sessions.runner_options_dropped += 1
    return dialect.without_runner_options(asked)


async def _load(engine: Engine, asked: Asked, model: ModelRef) -> Response:
    """A request without a prompt: the model into memory, or out of it."""
    began_us = engine.clock()
    if asked.request.keep_alive in UNLOAD:
        await engine.pool.unload(model)
    else:
        await engine.pool.load(model, tell_of(engine, model))
        if isinstance(model.runtime, Forwarder) and Dialect.OLLAMA in model.runtime.dialects:
            try:
                return await _load_as_asked(engine, model, model.runtime, asked, began_us)
            finally:
                engine.lens.residences.forget(model.runtime.name)  # it may stay longer, or shorter, than before
    headers = call_headers(engine, model, TRANSLATED, began_us, (engine.clock() - began_us) / 1000, 0)
    facts = ReplyFacts(secrets.token_hex(12), time.time(), asked.model)
    return Response(dialect.load_body(asked, facts), content_type=JSON, headers=headers)


async def _load_as_asked(engine: Engine, model: ModelRef, runtime: Forwarder, asked: Asked, began_us: int) -> Response:
    """The client's own request on top: how long the model shall stay, and with which options."""
    own, loaded_us = model.info.name, engine.clock()
    body = bytearray()
    request = ForwardRequest(Dialect.OLLAMA, asked.path, dialect.renamed(asked.body, own), own)
    async with runtime.forward(request) as answer:
        async for read in answer.reads:
            body += read.data
    queue_ms, runtime_us = (loaded_us - began_us) / 1000, engine.clock() - loaded_us
    headers = call_headers(engine, model, NATIVE, began_us, queue_ms, runtime_us)
    return Response(bytes(body), status=answer.status, content_type=answer.content_type, headers=headers)


async def _body() -> bytes:
    body = await request.get_data(as_text=False)
    assert isinstance(body, bytes)
    return body
