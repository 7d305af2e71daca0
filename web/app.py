"""The HTTP application: routes, error bodies and the headers every response carries."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Blueprint, Request, Response, g, jsonify, request
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from engine.domain.errors import (
    EngineError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from engine.domain.usage import AGENT, agent_of
from transport.wire.frames import SCHEMA_VERSION
from transport.wire.json_schema import Documents
from web import broker, docs_page, generate, models, page, pull, schema_docs, stats, usage
from web.assets import Asset
from web.handles import Engine, left
from web.lens import anthropic as lens_anthropic
from web.lens import ollama as lens_ollama
from web.lens import openai as lens_openai
from web.lens.shapes import shape_of
from web.openapi import openapi_document

R = TypeVar("R", bound=Request)

LENS_PATHS: Final = ("/api/", "/v1/")
AGENT_HEADER: Final = "x-wf-agent"
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
EVERY_RESPONSE: Final = (  # has these headers, unless its handler said otherwise
    ("x-schema-version", SCHEMA_VERSION),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)

logger = logging.getLogger("wf.web")


def create_app(
    engine: Engine,
    assets: Mapping[str, Asset],
    schemas: Documents,
    *,
    body_bytes_max: int,
    lens_body_bytes_max: int,
    body_timeout_s: float,
) -> QuartTrio:
    """The app over a running engine. It owns nothing: stopping it stops nobody's session but those of its callers."""
    routes = (
        generate.blueprint(engine),
        models.blueprint(engine),
        pull.blueprint(engine),
        broker.blueprint(engine),
        stats.blueprint(engine),
        usage.blueprint(engine),
        lens_ollama.blueprint(engine),
        lens_openai.blueprint(engine),
        lens_anthropic.blueprint(engine),
        page.blueprint(engine, assets),
        schema_docs.blueprint(schemas),
        docs_page.blueprint(openapi_document(schemas), assets),
    )
    return app_of(
        routes, body_bytes_max=body_bytes_max, lens_body_bytes_max=lens_body_bytes_max, body_timeout_s=body_timeout_s
    )


def app_of(
    routes: Iterable[Blueprint], *, body_bytes_max: int, lens_body_bytes_max: int, body_timeout_s: float
) -> QuartTrio:
    """These routes with what every app of ours has: limits on bodies, request ids, headers and error bodies."""
    app = LeanApp("wf", static_folder=None)
    app.request_class = _sized_requests(app.request_class, body_bytes_max, lens_body_bytes_max)
    app.config["BODY_TIMEOUT"] = body_timeout_s
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # else `//` answers with a redirect page
    app.asgi_http_class = RequestConnection
    for blueprint in routes:
        app.register_blueprint(blueprint)

    @app.before_request
    async def name_request() -> None:
        given = request.headers.get("x-request-id", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        broker.hear_consent()
        AGENT.set(agent_of(request.headers.get(AGENT_HEADER, ""), request.headers.get("user-agent", "")))

    @app.after_request
    async def stamp(response: Response) -> Response:
        if response.status_code >= 400:
            await _hear_out(response.status_code)
        headers = response.headers
        present = {name.lower() for name in headers.keys()}
        if "x-request-id" not in present:
            headers.add("x-request-id", g.get("request_id") or secrets.token_hex(8))
        if request.path.startswith("/v1/messages"):
            headers["request-id"] = headers["x-request-id"]  # where Anthropic's clients look
        for name, value in EVERY_RESPONSE:
            if name not in present:
                headers.add(name, value)
        return response

    @app.errorhandler(EngineError)
    async def refused(error: EngineError) -> Response:
        return _error(error)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        limit = lens_body_bytes_max if request.path.startswith(LENS_PATHS) else body_bytes_max
        return _error(_from_http(error, limit, body_timeout_s))

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Response:
        logger.error("request %s failed: %s", g.get("request_id"), type(error).__name__, exc_info=error)
        return _error(InternalError("the engine failed on this request; its log has the request id"))

    return app


def _sized_requests(base: type[R], native_max: int, lens_max: int) -> type[R]:
    """Requests whose body may be as large as their path allows: images come in JSON."""

    class SizedRequest(base):  # type: ignore[misc, valid-type]
        def __init__(self, method: str, scheme: str, path: str, *args: Any, **kwargs: Any) -> None:
            kwargs["max_content_length"] = lens_max if path.startswith(LENS_PATHS) else native_max
            super().__init__(method, scheme, path, *args, **kwargs)

        @functools.cached_property
        def blueprints(self) -> list[str]:
            """Known once the request is routed, and nobody asks before."""
            found: list[str] = super().blueprints
            return found

    return SizedRequest


class LeanApp(QuartTrio):
    """quart without what it does again for every request and never finds otherwise."""

    def ensure_async(self, func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return func if _is_async(func) else self.sync_to_async(func)

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routes know no host: which ones are served, the gate has decided."""
        if request is None:
            return super().create_url_adapter(None)
        return self.url_map.bind("localhost", default_method=request.method, path_info=request.path)


@functools.lru_cache(maxsize=1024)
def _is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func)


class RequestConnection(TrioASGIHTTPConnection):
    """Calls what a handler gave to `on_leave` once the request is over, also when the client left before the first byte
    of the body: then nobody ever touches the response's iterator."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.handle_messages, nursery, request, receive)
                await self.handle_request(nursery, request, send)  # quart-trio starts a second task for it
        finally:
            left(self.scope)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """A body that is there is sent in one message, which is also the last one."""
        if not isinstance(response, Response) or not isinstance(response.response, DataBody):
            await super()._send_response(send, response)
            return
        body = response.response
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


async def _hear_out(status: int) -> None:
    """Takes the rest of a refused body, within the limits of every body. An answer that overtakes it costs the
    connection, and the next request on it; where the body is too long or too slow that is as it should be."""
    if status in (408, 413):
        return
    with suppress(HTTPException):
        await request.get_data(cache=False, as_text=False)


def _error(error: EngineError) -> Response:
    error.details.setdefault("request_id", g.get("request_id"))
    shape = shape_of(request.path)
    response: Response = jsonify(error.body())
    if shape is not None:
        response.set_data(shape(error))
    response.status_code = error.status
    if "allowed" in error.details and error.status == 405:
        response.headers["allow"] = ", ".join(error.details["allowed"])
    if "retry_after_s" in error.details:
        response.headers["retry-after"] = str(error.details["retry_after_s"])
    return response


def _from_http(error: HTTPException, body_bytes_max: int, body_timeout_s: float) -> EngineError:
    match error.code:
        case 404:
            return NotFound("there is nothing at this path; GET / is the dashboard, GET /health the state")
        case 405:
            allowed = sorted(getattr(error, "valid_methods", None) or ())
            return MethodNotAllowed(f"this path answers {', '.join(allowed)}", allowed=allowed)
        case 408:
            return RequestTimeout(f"the body did not arrive within {body_timeout_s:g} s", limit_s=body_timeout_s)
        case 413:
            return PayloadTooLarge(f"the body is larger than {body_bytes_max} bytes", limit_bytes=body_bytes_max)
        case 415:
            return UnsupportedMediaType("the body must be application/json")
        case code if code is not None and code < 500:
            return InvalidRequest("the request is malformed")
        case _:
            return InternalError("the engine failed on this request")
