"""A streaming client whose answer is long in coming: it has its head, hears that somebody is there, and what goes wrong
is told within the stream; in virtual time."""

from __future__ import annotations

import json

import pytest
import trio

from actors.clock import EngineClock
from engine.domain.errors import ModelLoadFailed
from engine.settings import LensSettings, Settings
from policies.access import loopback_rules
from tests.fakes.api import running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.http_server import make_app, serving
from tests.fakes.network import http_head, receive
from tests.fakes.ollama import Reply, Send, done, record, refused
from tests.fakes.openai import DONE, delta, finish
from tests.fakes.processes import WATCHDOG_S
from tests.fakes.runtime import ScriptedRuntime, words
from tests.web.lens.ways import OLLAMA_GENERATE, OPENAI_CHAT, Way
from transport.listen import ListenLimits, bound_port, open_listener
from web.guard import HttpLimits

ALIVE = b": keep-alive\n\n"
NDJSON, SSE = {"content-type": "application/x-ndjson"}, {"content-type": "text/event-stream"}


def slow(load_s: float, **more: object):
    def made(clock: EngineClock) -> ScriptedRuntime:
        return ScriptedRuntime(clock, words(2), load_s=load_s, **more)

    return made


async def test_the_head_is_out_after_ten_seconds_and_the_answer_follows(way: Way, autojump_clock):
    async with running_api(slow(60.0)) as api:
        began = trio.current_time()
        async with api.open("POST", way.path, way.streamed()) as client:
            await trio.sleep(9.9)
            assert client.status == 0
            await trio.sleep(0.2)
            assert client.status == 200
            assert client.headers["content-type"].startswith(way.stream_type)
            assert client.headers["x-wf-model"] == "a"
            assert not {"x-wf-queue-ms", "x-wf-overhead-ms"} & set(client.headers)  # nobody knows them yet
            data = await client.read_all()
        assert trio.current_time() - began > 60
        alive = 4 if way.stream_type == "text/event-stream" else 0  # at 10, 25, 40 and 55 s
        assert data.count(ALIVE) == alive
        values = way.values(data)
        assert "".join(way.texts(values)) == "w0 w1 "
        assert way.over(values[-1])


async def test_what_goes_wrong_then_is_told_within_the_stream(way: Way, autojump_clock):
    async with running_api(slow(30.0, load_error=ModelLoadFailed("no room for it"))) as api:
        answer = await api.post(way.path, way.streamed())
        assert answer.status == 200
        values = way.values(answer.body)
        assert way.failed(values[-1]) == "no room for it"


async def test_what_goes_wrong_sooner_has_its_status(way: Way, autojump_clock):
    async with running_api(slow(5.0, load_error=ModelLoadFailed("no room for it"))) as api:
        assert (await api.post(way.path, way.streamed())).status == 502


async def test_a_whole_answer_keeps_its_status_however_long_it_takes(dialect: Way, autojump_clock):
    async with running_api(slow(30.0, load_error=ModelLoadFailed("no room for it"))) as api:
        assert (await api.post(dialect.path, dialect.body())).status == 502


async def test_how_long_is_a_setting(dialect: Way, autojump_clock):
    async with running_api(slow(60.0), Settings(lens=LensSettings(head_wait_s=2.0))) as api:
        async with api.open("POST", dialect.path, dialect.streamed()) as client:
            await trio.sleep(2.1)
            assert client.status == 200


async def test_a_client_that_leaves_meanwhile_stops_its_session(dialect: Way, autojump_clock):
    async with running_api(slow(60.0)) as api:
        async with api.open("POST", dialect.path, dialect.streamed()):
            await trio.sleep(20)
        await trio.sleep(1)
        (session,) = api.slice.core.sessions.known()
        assert session.state == "ended"


# ── forwarded ──


def server_of(path: str, *replies: Reply) -> ListeningOllama:
    return ListeningOllama().plays(path, *replies)


async def test_passive_waits_for_the_runtimes_own_head(autojump_clock):
    body = record("hi") + done()
    server = server_of("/api/generate", Reply([Send(body)], headers=NDJSON, after_s=60.0))
    async with running_api(server.runtime) as api:
        async with api.open(
            "POST", "/api/generate", {"model": "m:latest", "prompt": "x"}, x_wf_lens="passive"
        ) as client:
            await trio.sleep(50)
            assert client.status == 0
            assert await client.read_all() == body


async def test_a_runtimes_own_refusal_becomes_the_last_record(autojump_clock):
    late = refused(400, "too long")
    late.after_s = 30.0
    server = server_of("/api/generate", late)
    async with running_api(server.runtime) as api:
        answer = await api.post("/api/generate", OLLAMA_GENERATE.streamed(model="m"))
        assert answer.status == 200
        assert [json.loads(line) for line in answer.body.splitlines()] == [{"error": "too long"}]


@pytest.mark.parametrize(("said", "told"), [(b'{"error":{"message":"no","type":"t"}}', "no"), (b"<html>", "refused")])
async def test_a_refusal_in_a_stream_of_events(said, told, autojump_clock):
    server = server_of(OPENAI_CHAT.path, Reply([Send(said)], 400, {"content-type": "application/json"}, 30.0))
    async with running_api(server.runtime) as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.streamed(model="m"))
        (value,) = OPENAI_CHAT.values(answer.body)
        assert told in (OPENAI_CHAT.failed(value) or "")


async def test_a_server_without_the_path_is_asked_in_other_words_also_then(autojump_clock):
    absent = Reply([Send(b"404 page not found")], 404, {"content-type": "text/plain"}, 30.0)
    said = b'{"message":{"role":"assistant","content":"hi"},"done":false}\n'
    over = b'{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
    server = server_of(OPENAI_CHAT.path, absent).plays("/api/chat", Reply([Send(said + over)], headers=NDJSON))
    async with running_api(server.runtime) as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.streamed(model="m"))
        values = OPENAI_CHAT.values(answer.body)
        assert "".join(OPENAI_CHAT.texts(values)) == "hi"
        assert OPENAI_CHAT.over(values[-1])


async def test_a_slow_forwarded_answer_comes_as_it_is(autojump_clock):
    server = server_of(OPENAI_CHAT.path, Reply([Send(delta("hi") + finish() + DONE)], headers=SSE, after_s=30.0))
    async with running_api(server.runtime) as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.streamed(model="m"))
        assert answer.body.startswith(ALIVE)
        assert "".join(OPENAI_CHAT.texts(OPENAI_CHAT.values(answer.body))) == "hi"


# ── on the wire ──


async def test_the_head_goes_out_with_an_empty_piece():
    """Where nothing can be said to keep a connection alive, as between records, the head alone must."""

    async def app(scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x/y")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await trio.sleep_forever()

    made = make_app()
    made.asgi_app = app
    listener = await open_listener("127.0.0.1", 0)
    port = bound_port(listener)
    limits = HttpLimits(listen=ListenLimits(write_timeout_s=5.0))
    with trio.fail_after(WATCHDOG_S):
        async with serving(made, listener, limits, loopback_rules(port, port, token="t")):
            client = await trio.open_tcp_stream("127.0.0.1", port)
            await client.send_all(http_head("GET", "/", f"127.0.0.1:{port}", (), "1.1"))
            data = b""
            while b"\r\n\r\n" not in data:
                data += await receive(client)
            assert data.startswith(b"HTTP/1.1 200")
            await trio.aclose_forcefully(client)
