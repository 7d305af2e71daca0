"""`POST /api/pull`, as Ollama has it: download a model and follow it, one JSON object a line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from quart import Blueprint, Response, jsonify, request

from actors.pulls import Follower
from engine.domain.errors import EngineError, InvalidRequest
from engine.domain.pull import PullProgress
from web.handles import Engine, on_leave
from web.schemas import PullBody, decode


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("pull", __name__)

    @routes.post("/api/pull")
    async def pull() -> Response:
        body = decode(await request.get_data(as_text=False), PullBody)
        name = body.model or body.name
        if name is None:
            raise InvalidRequest("model: give the name of the model to download")
        follower = await engine.pulls.join(name)
        on_leave(request.scope, follower.leave)
        if not body.stream:
            while await follower.next() is not None:
                pass
            return jsonify({"status": "success"})
        response = Response(
            _lines(follower),
            content_type="application/x-ndjson",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        response.timeout = None  # a download takes as long as it takes
        return response

    @routes.errorhandler(EngineError)
    async def refused(error: EngineError) -> tuple[Response, int]:
        return jsonify({"error": error.message}), error.status

    return routes


async def _lines(follower: Follower) -> AsyncIterator[bytes]:
    """Never a silent end: the last line is `{"status":"success"}` or `{"error": …}`."""
    last = ""
    try:
        while (progress := await follower.next()) is not None:
            yield _line(progress)
            last = progress.status
    except EngineError as error:
        yield msgspec.json.encode({"error": error.message}) + b"\n"
        return
    if last != "success":
        yield _line(PullProgress("success"))


def _line(progress: PullProgress) -> bytes:
    counts = {"completed": progress.completed_bytes, "total": progress.total_bytes}
    known = {name: count for name, count in counts.items() if count is not None}
    return msgspec.json.encode({"status": progress.status, **known}) + b"\n"
