"""Who may call, judged from outside on both listeners. The rules alone are tested in tests/policies."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.system.process import EngineProcess

ASK = {"model": "synthetic/steady", "prompt": "x", "parameters": {"max_tokens": 1}}
JSON = {"content-type": "application/json"}
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(params=["http", "ws"])
def ask(request, engine) -> Callable[..., tuple[int, bytes]]:
    """`ask(headers)`: status and answer of a plain GET, or of an upgrade on the frames' listener."""

    def exchange(**headers: str) -> tuple[int, bytes]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {name: value.replace("PORT", str(engine.port())) for name, value in fields.items()}
        if request.param == "http":
            return send(engine, "http", engine.request("GET", "/health", headers=fields))
        own = {"host": f"127.0.0.1:{engine.port('ws')}"} | UPGRADE
        fields = {name: value.replace("OWN", str(engine.port("ws"))) for name, value in fields.items()}
        return send(engine, "ws", engine.request("GET", "/ws", headers=own | fields))

    exchange.good = 200 if request.param == "http" else 101
    exchange.own = str(engine.port(request.param))
    return exchange


def send(engine: EngineProcess, listener: str, data: bytes) -> tuple[int, bytes]:
    """Status and the first bytes of the answer; 0 when the connection was closed without one."""
    with engine.connect(listener) as sock:
        sock.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := sock.recv(65536)):
            answer += piece
        if b"HTTP/1.1 101" not in answer:
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_our_own_names_are_served(ask, name):
    assert ask(host=f"{name}:{ask.own}")[0] == ask.good


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:PORT", "127.1:PORT",
     "0.0.0.0:PORT", "wf.localhost:PORT", "localhost.:PORT", "user@127.0.0.1:PORT"],
)  # fmt: skip
def test_any_other_host_is_refused(ask, host):
    status, answer = ask(host=host.replace("PORT", ask.own))
    assert status == 403
    assert b'"code":"FORBIDDEN"' in answer
    assert b"evil" not in answer


def test_no_host_at_all_is_400(ask):
    assert ask(host="")[0] == 400


@pytest.mark.parametrize("origin", ["http://127.0.0.1:PORT", "http://localhost:PORT", "http://[::1]:PORT"])
def test_our_own_pages_are_served(ask, origin):
    assert ask(origin=origin)[0] == ask.good


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://127.0.0.1:PORT", "http://127.0.0.1:1", "http://127.0.0.1", "null",
     "http://127.0.0.1:PORT.evil.example", "file://", "chrome-extension://abc"],
)  # fmt: skip
def test_pages_of_others_are_refused(ask, origin):
    status, answer = ask(origin=origin)
    assert status == 403
    assert b'"code":"FORBIDDEN_ORIGIN"' in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"} | JSON, 403),
        ({"sec-fetch-site": "same-site"} | JSON, 403),
        ({"origin": "http://evil.example"} | JSON, 403),
        ({"origin": "null"} | JSON, 403),
        ({"sec-fetch-site": "same-origin"} | JSON, 202),
        ({"sec-fetch-site": "none"} | JSON, 202),
        ({"origin": "OURS"} | JSON, 202),
        ({"origin": "OURS", "content-type": "application/json; charset=utf-8"}, 202),
        ({"origin": "OURS", "content-type": "text/plain"}, 415),
        ({"sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}, 415),
        ({"sec-fetch-site": "same-origin", "content-type": ""}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 202),  # curl -d
        ({"content-type": ""}, 202),
    ],
)
def test_who_may_post(engine, headers, status):
    headers = {name: engine.http if value == "OURS" else value for name, value in headers.items()}
    assert send(engine, "http", engine.request("POST", "/generate", ASK, headers))[0] == status


def test_only_our_own_page_gets_the_token(engine):
    token = (engine.state / "token").read_bytes().strip()
    for site, status in (("cross-site", 403), ("same-site", 403), ("none", 403), ("same-origin", 200)):
        answer = send(engine, "http", engine.request("GET", "/api/bootstrap", headers={"sec-fetch-site": site}))
        assert answer[0] == status
        assert (token in answer[1]) == (status == 200)


def test_no_answer_opens_itself_to_other_origins(engine):
    with engine.client() as http:
        answers = [http.get("/health"), http.get("/"), http.post("/generate", json={}), http.options("/generate")]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]


def test_with_a_key_every_request_needs_it(start):
    engine = start(env={"WF_API_KEYS": "[first-key, second-key]"})
    good = {"authorization": "Bearer second-key"}
    with engine.client() as http:
        assert http.get("/health").status_code == 401
        assert http.get("/health", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert http.get("/health", headers=good).status_code == 200
        assert http.get("/health", headers={"x-api-key": "first-key"}).status_code == 200
    own = {"host": f"127.0.0.1:{engine.port('ws')}"} | UPGRADE
    assert send(engine, "ws", engine.request("GET", "/ws", headers=own))[0] == 401
    assert send(engine, "ws", engine.request("GET", "/ws", headers=own | good))[0] == 101
    assert "first-key" not in engine.stderr() + engine.stdout()


def test_ids_and_versions_are_on_every_answer_and_errors_carry_them(engine):
    with engine.client() as http:
        for path in ("/health", "/nowhere", "/stream/none", "/"):
            answer = http.get(path, headers={"x-request-id": "my-request.1"})
            assert (answer.headers["x-request-id"], answer.headers["x-schema-version"]) == ("my-request.1", "1.0")
        odd = http.get("/health", headers={"x-request-id": "not valid"})
        assert odd.headers["x-request-id"] not in ("", "not valid")
        error = http.get("/nowhere").json()["error"]
    assert error["code"] == "NOT_FOUND"
    assert set(error) == {"code", "message", "retryable", "details"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/generate", b"{", 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b"\xff\xfe", 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"synthetic/steady","prompt":"x","surprise":1}', 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"synthetic/steady"}', 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"synthetic/steady","prompt":"x","parameters":{"temperature":NaN}}', 400,
         "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"synthetic/steady","prompt":"x","parameters":{"top_k":0}}', 400,
         "VALIDATION_ERROR"),
        ("POST", "/generate", b"[" * 100_000, 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"../../etc/passwd","prompt":"x"}', 400, "VALIDATION_ERROR"),
        ("POST", "/generate", b'{"model":"none/such","prompt":"x"}', 404, "MODEL_NOT_FOUND"),
        ("POST", "/generate", b" " * 2_000_000, 413, "PAYLOAD_TOO_LARGE"),
        ("GET", "/generate", b"", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/stream/none", b"", 404, "SESSION_NOT_FOUND"),
        ("GET", "/static/..%2f..%2fengine%2fapp.py", b"", 404, "NOT_FOUND"),
        ("POST", "/models/load", b'{"name":"none"}', 404, "MODEL_NOT_FOUND"),
    ],
)  # fmt: skip
def test_refusals_have_their_code(engine, method, path, body, status, code):
    with engine.client() as http:
        answer = http.request(method, path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "Traceback" not in answer.text
