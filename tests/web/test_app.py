from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from quart import Blueprint, Response, request

from engine.domain.errors import Forbidden
from engine.settings import LimitSettings, Settings
from tests.fakes.api import running_api
from tests.fakes.http_server import HOST, get, serving
from tests.fakes.network import ask, http_head, read_answer, read_to_end
from tests.fakes.runtime import Fail, ScriptedRuntime
from web.app import app_of
from web.guard import HttpServer

SMALL = Settings(limits=LimitSettings(body_bytes_max=1024, body_timeout_s=2.0))
ROUTES = [
    ("GET", "/"),
    ("GET", "/static/app.js"),
    ("GET", "/api/bootstrap"),
    ("GET", "/health"),
    ("GET", "/models"),
    ("GET", "/stats"),
    ("GET", "/stream/none"),
    ("POST", "/generate"),
    ("POST", "/stop"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
]
BODIES = [path for method, path in ROUTES if method == "POST"]


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nothing"), ("PUT", "/health")])
async def test_every_answer_carries_its_id_its_version_and_no_permission(method, path, autojump_clock):
    async with running_api() as api:
        answer = await api.ask(method, path, {} if method == "POST" else None, x_request_id="my-id_1.2")
        assert answer.headers["x-request-id"] == "my-id_1.2"
        assert answer.headers["x-schema-version"] == "1.0"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "server" not in answer.headers


@pytest.mark.parametrize("given", ["", "<script>", "a b", "a" * 129, "é"])
async def test_an_id_that_could_do_harm_is_replaced(given, autojump_clock):
    async with running_api() as api:
        first = await api.get("/health", x_request_id=given)
        second = await api.get("/health", x_request_id=given)
        assert len(first.headers["x-request-id"]) == 16
        assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_the_id_stands_in_the_error_too(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/nothing", x_request_id="find-me")
        assert answer.error["details"]["request_id"] == "find-me"


# ── refusals ──


@pytest.mark.parametrize("path", ["/nothing", "/models/", "/static/", "/stream/", "/api", "/generate/x", "/%00"])
async def test_an_unknown_path_is_404(path, autojump_clock):
    async with running_api() as api:
        answer = await api.get(path)
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("wrong", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])
async def test_another_method_is_405_and_says_which_there_are(wrong, autojump_clock):
    async with running_api() as api:
        for method, path in ROUTES:
            answer = await api.ask(wrong, path)
            assert (answer.status, answer.error["code"]) == (405, "METHOD_NOT_ALLOWED"), path
            assert method in answer.error["details"]["allowed"], path


async def test_a_405_has_its_allow_header(autojump_clock):
    async with running_api() as api:
        assert (await api.get("/generate")).headers["allow"] == "POST"


@pytest.mark.parametrize("path", BODIES)
async def test_getting_what_must_be_posted_is_405(path, autojump_clock):
    async with running_api() as api:
        assert (await api.get(path)).error["details"]["allowed"] == ["POST"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"name":NaN}',
        b'{"model":"a","prompt":"\\ud800"}',
        b"[" * 1000,
        b'{"a":' * 200,
        b'{"parameters":{"temperature":1e999}}',
        b'{"session_id":' + b"9" * 500 + b"}",
    ],
)
async def test_what_is_no_body_is_400_never_500(path, body, autojump_clock):
    async with running_api(settings=SMALL) as api:
        answer = await api.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize("path", BODIES)
async def test_unknown_fields_are_refused(path, autojump_clock):
    async with running_api() as api:
        known = {"/stop": {"session_id": "a"}, "/generate": {"model": "a", "prompt": "x"}}.get(path, {"name": "a"})
        answer = await api.post(path, {**known, "colour": "red"})
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
        assert "colour" in answer.error["message"]


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_over_the_limit_is_413_and_says_the_limit(path, autojump_clock):
    async with running_api(settings=SMALL) as api:
        answer = await api.post(path, b" " * 1025)
        assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
        assert answer.error["details"]["limit_bytes"] == 1024
        assert (await api.post(path, b" " * 1024)).status == 400


async def test_a_body_that_does_not_come_is_408(autojump_clock):
    async with running_api(settings=SMALL) as api:
        began = trio.current_time()
        async with api.open("POST", "/generate", b"{", whole=False) as connection:
            body = await connection.read_all()
        assert (connection.status, trio.current_time() - began) == (408, 2.0)
        assert b"REQUEST_TIMEOUT" in body


async def test_a_path_with_doubled_slashes_is_answered_in_our_shape(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/stream//x")
        assert 400 <= answer.status < 500
        assert answer.error


async def test_a_bug_is_a_500_that_tells_nothing_but_its_id(autojump_clock, caplog):
    broken = (Fail(ZeroDivisionError("secret answer")),)
    async with running_api(lambda clock: ScriptedRuntime(clock, broken)) as api:
        with caplog.at_level(logging.ERROR, "wf.web"):
            answer = await api.post("/models/load", {"name": "a"}, x_request_id="find-me")
        assert (answer.status, answer.error["code"]) == (500, "INTERNAL")
        assert "secret" not in answer.body.decode()
        told = [record.getMessage() for record in caplog.records]
        assert told == ["warming a up failed: ZeroDivisionError"]
        assert (await api.get("/health")).status == 200


# ── HEAD ──


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "GET" and "stream" not in path])
async def test_head_has_the_headers_of_get(path, autojump_clock):
    async with running_api() as api:
        get, head = await api.get(path, x_request_id="r"), await api.ask("HEAD", path, x_request_id="r")
        assert head.status == get.status == 200
        counted = {"content-length"} if path == "/stats" else set()  # figures that go on counting
        assert {k: v for k, v in head.headers.items() if k not in counted} == {
            k: v for k, v in get.headers.items() if k not in counted
        }


# ── what every app of ours has ──


@asynccontextmanager
async def serving_routes(routes: Blueprint) -> AsyncIterator[HttpServer]:
    async with serving(app_of([routes], body_bytes_max=64, lens_body_bytes_max=64, body_timeout_s=1.0)) as server:
        yield server


async def test_what_a_handler_says_of_its_answer_stands(autojump_clock):
    routes = Blueprint("own", __name__)

    @routes.get("/own")
    async def own() -> Response:
        return Response(b"x", headers={"Cache-Control": "max-age=1", "X-Schema-Version": "own", "x-request-id": "mine"})

    async with serving_routes(routes) as server:
        client = await server.listener.connect()
        answer = await ask(client, get("/own"))
        found = [answer.headers[name] for name in ("cache-control", "x-schema-version", "x-request-id")]
        assert found == ["max-age=1", "own", "mine"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        await client.aclose()


async def test_a_handler_that_is_no_coroutine_is_called_too(autojump_clock):
    routes = Blueprint("plain", __name__)

    @routes.get("/plain")
    def plain() -> str:
        return threading.current_thread().name

    async with serving_routes(routes) as server:
        client = await server.listener.connect()
        for _ in range(2):
            answer = await ask(client, get("/plain"))
            assert (answer.status, answer.body == b"MainThread") == (200, False)
        await client.aclose()


async def test_an_answer_to_head_and_a_part_of_an_answer_are_whole(autojump_clock):
    routes = Blueprint("parts", __name__)

    @routes.get("/parts")
    async def parts() -> Response:
        response = Response(b"0123456789", content_type="text/plain")
        return await response.make_conditional(request, accept_ranges=True, complete_length=10)

    async with serving_routes(routes) as server:
        client = await server.listener.connect()
        head = await ask(client, http_head("HEAD", "/parts", HOST), "HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "10")
        part = await ask(client, get("/parts", "Range: bytes=2-4"))
        assert (part.status, part.body, part.headers["content-length"]) == (206, b"234", "3")
        await client.aclose()


async def test_a_refusal_waits_for_the_body_it_refuses(autojump_clock):
    """Also where a handler makes it without a look at the body: else the server closes, and what comes next is lost."""
    routes = Blueprint("refusing", __name__)

    @routes.post("/own")
    async def own() -> Response:
        return Response(b"no", status=403)

    @routes.post("/raised")
    async def raised() -> Response:
        raise Forbidden("no")

    async with serving_routes(routes) as server:
        client = await server.listener.connect()
        for path, status in (("/own", 403), ("/raised", 403), ("/nowhere", 404)):
            await client.send_all(http_head("POST", path, HOST, ("Content-Length: 4",)) + b"ab")
            await trio.sleep(0.5)
            await client.send_all(b"cd")
            assert (await read_answer(client, "POST")).status == status
        await client.aclose()


@pytest.mark.parametrize(("sent", "length"), [(b"", 4), (b"ab", 4), (b"", 65)])
async def test_a_refusal_does_not_wait_longer_than_for_any_body(sent, length, autojump_clock):
    async with serving_routes(Blueprint("none", __name__)) as server:
        client = await server.listener.connect()
        await client.send_all(http_head("POST", "/nowhere", HOST, (f"Content-Length: {length}",)) + sent)
        assert (await read_answer(client, "POST")).status == 404
        assert trio.current_time() <= 1.5
        assert await read_to_end(client) == b""
