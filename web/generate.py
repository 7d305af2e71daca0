"""`/generate`, `/stream`, `/stop`: start a session, follow its events, end it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import attrs
import trio
from quart import Blueprint, Response, request

from actors.catalog import ModelRef
from actors.session import Session, SessionRequest
from actors.session_log import Line
from engine.domain.errors import InsufficientMemory, InvalidRequest, Overloaded, TierLimitExceeded
from engine.domain.events import ModelChanged
from engine.domain.generation import EndReason, Origin
from engine.domain.models import ModelState
from engine.domain.synthesis import CouncilMethod
from policies.broker import CONSENT
from policies.selection import wants_of
from policies.substitute import substitute
from transport.wire.frames import sse
from web.handles import Engine, on_leave
from web.schemas import GenerateBody, StopBody, decode, generation_request

KEEP_ALIVE_S: Final = 15.0
SSE_KEEP_ALIVE: Final = b": keep-alive\n\n"
TOO_SLOW: Final = Overloaded("this reader was too slow and is cut off")  # said, so that nobody takes it for the end


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("generate", __name__)

    @routes.post("/generate")
    async def generate() -> Response | tuple[dict[str, Any], int]:
        body = decode(await request.get_data(as_text=False), GenerateBody)
        if body.broker is not None:
            CONSENT.set(True)
        model = await _asked_model(engine, body)
        stand_in = _stand_in(engine, model) if body.substitute else None
        model = model if stand_in is None else stand_in.model
        generation = generation_request(body, model.info.name)
        if generation.runner_options and model.runtime.kind != "ollama":
            raise InvalidRequest(f"runner_options: they are Ollama's, and {model.name} runs in {model.runtime.name}")
        instead = engine.providers.stand_ins(model, wants_of(generation))
        again = engine.providers.again(model)
        asked = SessionRequest(model, generation, _origin(), again=again, instead=instead)
        session = engine.sessions.start(asked)
        if stand_in is not None:
            await engine.signals.put(ModelChanged(session.id, stand_in.asked, ModelState.FAILED, reason=stand_in.words))
        if body.stream:
            on_leave(request.scope, partial(session.stop, EndReason.ABORTED))
            return _stream(engine, session, as_sse="text/event-stream" in request.headers.get("accept", ""))
        return {
            "session_id": session.id,
            "stream_url": f"/stream/{session.id}",
            "ws_url": f"{engine.ws_origin(request.host)}/ws",
            "models": list(session.asked.models),
            "dropped_models": list(session.asked.dropped_models),
            "substituted": None if stand_in is None else {"model": stand_in.asked, "reason": stand_in.words},
        }, 202

    @routes.get("/stream/<session_id>")
    async def stream(session_id: str) -> Response:
        return _stream(engine, engine.sessions.get(session_id), as_sse=True)

    @routes.post("/stop")
    async def stop() -> dict[str, Any]:
        body = decode(await request.get_data(as_text=False), StopBody)
        report = await engine.sessions.stop(body.session_id)
        return {
            "success": True,
            "state": report.state,
            "reason": report.reason,
            "tokens_generated": report.tokens_generated,
            "duration_ms": report.duration_ms,
            "stop_latency_ms": report.stop_latency_ms,
        }

    return routes


@attrs.frozen
class StandIn:
    """`model` answers in place of `asked`, which this machine cannot take."""

    model: ModelRef
    asked: str
    words: str


def _stand_in(engine: Engine, model: ModelRef) -> StandIn | None:
    """Another model where this one can never be had here; None where it can. Raises why not, when there is no other."""
    if model.seats is not None:
        return None
    try:
        engine.pool.plan([model])
    except (TierLimitExceeded, InsufficientMemory) as error:
        other = substitute(model, engine.catalog.models, engine.facts.tier_limits)
        if other is None:
            raise
        return StandIn(other, model.name, f"{other.name} stands in: {error.message}")
    return None


async def _asked_model(engine: Engine, body: GenerateBody) -> ModelRef:
    """The model, or the council, that the body names. Raises InvalidRequest, and as the pool's gates do."""
    if (body.model is None) == (body.models is None):
        raise InvalidRequest("give exactly one of `model` and `models`")
    if body.models is None:
        if body.mode != "single":
            raise InvalidRequest(f"mode: {body.mode} takes `models`, a list of 2 to 6 names", field="mode")
        if body.method is not None or body.judge is not None:
            raise InvalidRequest("method and judge go with `models`; a named council has its own", field="method")
        name = body.model or ""
        return await engine.providers.resolve(name, wants_of(generation_request(body, name)))
    if body.mode == "single":
        raise InvalidRequest("mode: single takes `model`; give council or turbo for `models`", field="mode")
    engine.providers.refuse_elsewhere([*body.models, *([] if body.judge is None else [body.judge])])
    method = None if body.method is None else CouncilMethod(body.method)
    return await engine.pulls.council(body.models, body.mode, body.on_excess, method, body.judge)


def _origin() -> Origin:
    """Pages send Sec-Fetch-Site; programs do not."""
    return Origin.DASHBOARD if request.headers.get("sec-fetch-site") == "same-origin" else Origin.API


def _stream(engine: Engine, session: Session, *, as_sse: bool) -> Response:
    energy = request.args.get("energy") in ("1", "true")
    response = Response(
        b"" if request.method == "HEAD" else _lines(engine, session, as_sse=as_sse, energy=energy),
        content_type="text/event-stream; charset=utf-8" if as_sse else "application/x-ndjson",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no", "x-wf-session": session.id},
    )
    response.timeout = None  # the default would cut a stream after a minute
    return response


async def _lines(engine: Engine, session: Session, *, as_sse: bool, energy: bool) -> AsyncIterator[bytes]:
    """The session's events from its start to its end."""
    follower, sent = engine.hub.follow(session.id, energy=energy), 0
    try:
        while True:
            with trio.move_on_after(KEEP_ALIVE_S) as wait:
                lines = await follower.next_lines()
            if wait.cancelled_caught:
                if as_sse:
                    yield SSE_KEEP_ALIVE
                continue
            if lines:
                yield b"".join(_format(line, as_sse, number) for number, line in enumerate(lines, sent + 1))
                sent += len(lines)
            elif follower.overflowed:
                notice = engine.hub.notice("system.error", session.id, TOO_SLOW.as_dict())
                yield _format(Line("system.error", notice), as_sse, sent + 1)
                return
            else:
                return
    finally:
        engine.hub.unfollow(session.id, follower)


def _format(line: Line, as_sse: bool, number: int) -> bytes:
    return sse(line.data, line.type, number) if as_sse else line.data + b"\n"
