"""The OpenAI-compatible runtime in virtual time: what it asks, what it makes of the answers, and when it lets go."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio

from engine.domain.errors import (
    ConfigError,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NobodyListens,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
)
from engine.domain.generation import EndReason, GenerationEnd, GenerationRequest, Message, TokenKind, Tool
from engine.domain.models import Capability, Loaded
from tests.fakes.network import receive
from tests.fakes.ollama import Break, Reply, ScriptedOllama, Send, Silence, capture, virtual_clock, whole
from tests.fakes.openai import DONE, delta, entry, event, finish, usage
from tests.fakes.processes import WATCHDOG_S
from tests.fakes.streams import ASKED, KEY, PROMPT, chunks_of, failure_of
from transport.runtimes.forwarding import DONE_S
from transport.runtimes.openai import OpenAIRuntime
from transport.wire.openai import MODELS_PATH
from transport.wire.openai_requests import CHAT_PATH

URL = "http://127.0.0.1:8080"
END = GenerationEnd(EndReason.FINISHED, 3, 2)


def runtime_of(server: ScriptedOllama, api_key: str | None = KEY) -> OpenAIRuntime:
    return OpenAIRuntime(virtual_clock, URL, api_key=api_key, transport=server.transport)


def serving(*replies: Reply | Exception, path: str = CHAT_PATH) -> ScriptedOllama:
    return ScriptedOllama({path: list(replies)})


def answering(*events: bytes, after_s: float = 0.04) -> Reply:
    """A stream, one event a read."""
    return Reply([Send(data, after_s) for data in events])


def refused(status: int, text: str, **headers: str) -> Reply:
    return whole({"error": {"message": text, "type": "invalid_request_error", "code": status}}, status, **headers)


def listing(*names: str) -> Reply:
    return whole({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"} for name in names]})


# ── streams ──


async def test_tokens_are_stamped_when_their_bytes_are_read(autojump_clock: trio.testing.MockClock):
    steps = [Send(delta("a"), 0.5), Send(delta("b") + delta("c"), 0.04), Send(finish() + usage() + DONE, 0.04)]
    reply = Reply(steps, after_s=1.0)
    begin_us = virtual_clock()
    async with runtime_of(serving(reply)).generate(ASKED) as chunks:
        seen = []
        async for chunk in chunks:
            seen.append((chunk.text, chunk.t_us - begin_us))
            await trio.sleep(0.01)  # a reader that takes its time changes no stamp of the same read
    assert seen[:3] == [("a", 1_500_000), ("b", 1_550_000), ("c", 1_550_000)]
    assert seen[3:] == [("", 1_610_000)] * 3
    assert reply.body.closed


async def test_a_recorded_stream_byte_by_byte(autojump_clock: trio.testing.MockClock):
    body = capture("openai-chat-logprobs")[1]
    server = serving(Reply([Send(body[at : at + 1]) for at in range(len(body))]))
    chunks = await chunks_of(runtime_of(server))
    assert [chunk.text for chunk in chunks if chunk.text] == [" the", " model", " is"]
    assert chunks[-1].end == GenerationEnd(EndReason.LENGTH, 56, 3)
    assert server.bodies(CHAT_PATH) == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 10,
        }
    ]


async def test_chat_with_thinking_and_tools(autojump_clock: trio.testing.MockClock):
    server = serving(answering(capture("openai-think-tools")[1]))
    chunks = await chunks_of(runtime_of(server), GenerationRequest("m", messages=(Message("user", PROMPT),)))
    assert [chunk.kind for chunk in chunks if chunk.text] == [TokenKind.THINKING] * 15 + [TokenKind.TOOL]
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED)


@pytest.mark.parametrize("events", [(), (delta("a"),), (delta("a"), delta("b")[:-9]), (delta("a"), DONE)])
async def test_a_stream_that_stops_without_a_finish_reason_has_no_end(
    autojump_clock: trio.testing.MockClock, events: tuple[bytes, ...]
):
    runtime = runtime_of(serving(answering(*events)))
    chunks = await chunks_of(runtime)
    assert [chunk.text for chunk in chunks if chunk.text] == ["a"] * bool(events)
    assert all(chunk.end is None for chunk in chunks)
    assert runtime.counters.cut_streams == (events[1:] != (DONE,) and len(events) == 2)
    assert runtime.counters.done_missing == 0


@pytest.mark.parametrize(
    ("steps", "waited_s", "end"),
    [
        ([], 0, GenerationEnd(EndReason.FINISHED)),
        ([Send(usage())], 0, END),
        ([Break()], 0, GenerationEnd(EndReason.FINISHED)),
        ([Send(usage()), Break(0.5)], 0.5, END),
        ([Silence()], DONE_S, GenerationEnd(EndReason.FINISHED)),
        ([Send(usage(), DONE_S / 2), Silence()], DONE_S * 1.5, END),
    ],
)
async def test_with_its_finish_reason_an_answer_is_whole(
    autojump_clock: trio.testing.MockClock, steps: list[Any], waited_s: float, end: GenerationEnd
):
    reply = Reply([Send(delta("a") + finish()), *steps])
    runtime = runtime_of(serving(reply))
    begin_s = trio.current_time()
    chunks = await chunks_of(runtime)
    assert trio.current_time() - begin_s == pytest.approx(waited_s)
    assert (chunks[-1].end, [chunk.end for chunk in chunks].count(None)) == (end, len(chunks) - 1)
    assert runtime.counters.done_missing == 1
    assert reply.body.closed


@pytest.mark.parametrize("fault", [event({"error": {"message": f"bad {KEY}"}}), b"<html>\n", b"x" * 1_048_577])
async def test_errors_in_the_middle(autojump_clock: trio.testing.MockClock, fault: bytes):
    reply = Reply([Send(delta("a")), Send(fault)])
    assert type(await failure_of(runtime_of(serving(reply)))) is UpstreamProtocolError
    assert reply.body.closed


# ── refusals ──


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(400, f"[{{'input': '{PROMPT}'}}]"), InvalidRequest),
        (refused(500, "image input is not supported - hint: you may need the mmproj"), InvalidRequest),
        (refused(401, f"wrong key {KEY}"), RuntimeUnavailable),
        (refused(403, f"wrong key {KEY}"), RuntimeUnavailable),
        (refused(404, "The model `m` does not exist."), ModelNotFound),
        (whole({"detail": "Not Found"}, 404), UpstreamProtocolError),
        (refused(500, f"what a day for {KEY}"), UpstreamProtocolError),
        (whole(b"", 302, location="http://elsewhere/"), UpstreamProtocolError),
        (httpx.ConnectError("refused"), NobodyListens),
    ],
)
async def test_refusals(autojump_clock: trio.testing.MockClock, reply: Reply | Exception, kind: type[EngineError]):
    server = serving(reply)
    assert type(await failure_of(runtime_of(server))) is kind
    assert len(server.requests) == 1


@pytest.mark.parametrize(("stated", "retry_after_s"), [("4", 4), ("soon", 1), ("", 1)])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server(autojump_clock: trio.testing.MockClock, status: int, stated: str, retry_after_s: int):
    error = await failure_of(runtime_of(serving(refused(status, "Loading model", retry_after=stated))))
    assert (type(error), error.details["retry_after_s"]) == (Overloaded, retry_after_s)


async def test_log_probabilities_are_given_up_once_and_for_the_model(autojump_clock: trio.testing.MockClock):
    no = "logprobs is not supported with this model"
    server = serving(refused(400, no), *(answering(delta("a"), finish(), DONE) for _ in range(3)))
    runtime = runtime_of(server)
    for _ in range(2):
        assert (await chunks_of(runtime))[0].text == "a"
    await chunks_of(runtime, GenerationRequest("other", prompt=PROMPT))
    assert ["logprobs" in body for body in server.bodies(CHAT_PATH)] == [True, False, False, True]
    assert runtime.counters.without_logprobs == 1


async def test_a_refusal_that_log_probabilities_did_not_cause_is_not_remembered(autojump_clock: trio.testing.MockClock):
    server = serving(refused(400, "logprobs"), refused(400, "no chat template"), answering(finish(), DONE))
    runtime = runtime_of(server)
    assert (await failure_of(runtime)).message.endswith("no chat template")
    await chunks_of(runtime)
    assert ["logprobs" in body for body in server.bodies(CHAT_PATH)] == [True, False, True]


async def test_log_probabilities_refused_beside_tools_are_asked_for_without_them(
    autojump_clock: trio.testing.MockClock,
):
    no = "logprobs is not supported with tools + stream"
    server = serving(refused(400, no), *(answering(delta("a"), finish(), DONE) for _ in range(3)))
    runtime = runtime_of(server)
    beside = GenerationRequest("m", prompt=PROMPT, tools=(Tool("f"),))
    for request in (beside, beside, ASKED):
        await chunks_of(runtime, request)
    assert ["logprobs" in body for body in server.bodies(CHAT_PATH)] == [True, False, False, True]


# ── the small calls ──


async def test_models_and_what_is_known_of_them(autojump_clock: trio.testing.MockClock):
    server = serving(
        answering(delta("a", entry("a")), finish(), DONE),
        answering(delta("a"), finish(), DONE),
        refused(400, "logprobs"),
        answering(delta("a"), finish(), DONE),
    )
    names = ("m", "org/other", "/models/path.gguf", "m", "no")
    server.replies[MODELS_PATH] = [listing(*names), listing(*names), listing("org/other")]
    runtime = runtime_of(server)
    before = await runtime.list_models()
    assert [info.name for info in before] == ["m", "org/other", "no"]
    assert before[0].capabilities == (Capability.COMPLETION, Capability.CHAT)
    assert (before[0].size_bytes, before[0].runtime) == (None, "openai")
    assert before[0].details == {"owned_by": "vllm"}
    assert runtime.counters.unnameable_models == 1
    for name in ("m", "org/other", "no"):
        await chunks_of(runtime, GenerationRequest(name, prompt=PROMPT))
    after = await runtime.list_models()
    assert [Capability.LOGPROBS in info.capabilities for info in after] == [True, False, False]
    await runtime.list_models()  # forgets the models that are gone
    server.replies[CHAT_PATH] = [answering(delta("a"), finish(), DONE)]
    await chunks_of(runtime, GenerationRequest("no", prompt=PROMPT))
    assert "logprobs" in server.bodies(CHAT_PATH)[-1]


async def test_load_only_looks_and_unload_does_nothing(autojump_clock: trio.testing.MockClock):
    server = serving(listing("m"), listing("m"), path=MODELS_PATH)
    runtime = runtime_of(server)
    assert await runtime.load("m") == Loaded(None, None)
    with pytest.raises(ModelNotFound, match="openai has no model gone"):
        await runtime.load("gone")
    assert await runtime.unload("m") == 0
    assert [path for path, _ in server.requests] == [MODELS_PATH] * 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(401, KEY), RuntimeUnavailable),
        (refused(503, "Loading model"), RuntimeUnavailable),
        (refused(404, "no"), UpstreamProtocolError),
        (whole(b"<html>"), UpstreamProtocolError),
    ],
)
async def test_listings_that_fail(autojump_clock: trio.testing.MockClock, reply: Reply, kind: type[EngineError]):
    with pytest.raises(kind) as caught:
        await runtime_of(serving(reply, path=MODELS_PATH)).list_models()
    assert KEY not in caught.value.message


async def test_probe(autojump_clock: trio.testing.MockClock):
    up = await runtime_of(serving(listing(), path=MODELS_PATH)).probe()
    assert (up.up, up.version, up.reason) == (True, None, None)
    reasons = {
        "nothing listens there": httpx.ConnectError("refused"),
        "did not answer within 2 s": Reply(after_s=60),
        "(GET /v1/models: 401) refuses us": refused(401, KEY),
        "may still be loading": refused(503, "Loading model"),
        "(GET /v1/models: 404) is no OpenAI-compatible server": whole(b"not here", 404),
        "(GET /v1/models: 200) is no OpenAI-compatible server": whole({"models": []}),
        "more than 4194304 bytes": whole(b"x" * 4_194_305),
    }
    for reason, reply in reasons.items():
        begin_s = trio.current_time()
        probe = await runtime_of(serving(reply, path=MODELS_PATH)).probe()
        assert not probe.up
        assert reason in (probe.reason or "")
        assert KEY not in (probe.reason or "")
        assert trio.current_time() - begin_s <= 2


async def test_the_key_is_in_the_header_and_nowhere_else(autojump_clock: trio.testing.MockClock):
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=listing().body)

    for key in (KEY, None):
        runtime = OpenAIRuntime(virtual_clock, f"{URL}/v1/", api_key=key, transport=httpx.MockTransport(handle))
        await runtime.list_models()
        assert KEY not in repr(runtime)
    assert [request.headers.get("authorization") for request in seen] == [f"Bearer {KEY}", None]
    assert [str(request.url) for request in seen] == [f"{URL}/v1/models"] * 2
    for bad in ("sk\nx", "sk x", "schlüssel", "", "x" * 5000):
        with pytest.raises(ConfigError) as caught:
            OpenAIRuntime(virtual_clock, URL, api_key=bad)
        assert not bad or bad not in caught.value.message
    with pytest.raises(ConfigError) as caught:
        OpenAIRuntime(virtual_clock, "http://me:hush@box")
    assert "hush" not in caught.value.message


def test_a_server_elsewhere_is_not_local():
    def local(url: str) -> bool:
        return OpenAIRuntime(virtual_clock, url).local

    assert all(map(local, ("http://127.0.0.1:1/v1", "http://localhost:1", "http://[::1]:1")))
    assert not any(map(local, ("https://api.openai.com/v1", "http://192.168.0.2:1", "http://localhost.example.com")))


# ── over real sockets ──


@attrs.define(eq=False)
class StreamingServer:
    """Answers every request with one token and then waits; `closed` is set when the client lets go."""

    closed: trio.Event = attrs.field(factory=trio.Event)
    requests: list[bytes] = attrs.field(factory=list)

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while not request.endswith(b"}"):
                request += await receive(stream)
            self.requests.append(request)
            data = delta("a") + delta("b")
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            await stream.send_all(head + b"%x\r\n%s\r\n" % (len(data), data))
            while await receive(stream):
                pass
            self.closed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self.handle, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["leave", "cancel while reading", "raise", "unread"])
async def test_letting_go_is_felt_at_once(how: str):
    """The server sees the close, and no generator is left to the collector (a ResourceWarning, hence a failure)."""
    server = StreamingServer()
    async with server.running() as url:
        with suppress(KeyError), trio.CancelScope() as scope:
            async with OpenAIRuntime(virtual_clock, url, api_key=KEY).generate(ASKED) as chunks:
                if how != "unread":
                    assert (await anext(chunks)).text == "a"
                if how == "raise":
                    raise KeyError("a fault of the caller")
                if how == "cancel while reading":
                    scope.cancel()
                    async for _ in chunks:
                        pass
        gc.collect()
        with trio.fail_after(WATCHDOG_S):
            await server.closed.wait()
    assert scope.cancelled_caught == how.startswith("cancel")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"authorization: bearer " + KEY.encode() in head.lower()
    assert json.loads(body)["model"] == "m"
