"""The Ollama runtime in virtual time: what it asks, what it makes of the answers, and when it lets go."""

from __future__ import annotations

import json

import httpx
import pytest
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoadTimeout,
    ModelNotFound,
    NobodyListens,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import EndReason, GenerationEnd, GenerationRequest, Message, TokenKind
from engine.domain.models import Capability, MemoryUse
from tests.fakes.ollama import (
    Reply,
    ScriptedOllama,
    Send,
    Silence,
    capture,
    done,
    record,
    refused,
    spoken,
    virtual_clock,
    whole,
)
from tests.fakes.streams import ASKED, PROMPT, chunks_of, failure_of
from transport.runtimes.ollama import LOAD_S, OllamaRuntime, gives_logprobs, ollama_url

GENERATE = "/api/generate"


def runtime_of(server: ScriptedOllama) -> OllamaRuntime:
    return OllamaRuntime(virtual_clock, transport=server.transport, random_unit=lambda: 0.5)


def serving(*replies: Reply | Exception, path: str = GENERATE, **others: Reply) -> ScriptedOllama:
    return ScriptedOllama({path: list(replies)} | {f"/api/{name}": [reply] for name, reply in others.items()})


# ── streams ──


async def test_tokens_are_stamped_when_their_bytes_are_read(autojump_clock: trio.testing.MockClock):
    reply = Reply([Send(record("a"), 0.5), Send(record("b") + record("c"), 0.04), Send(done(), 0.04)], after_s=1.0)
    runtime = runtime_of(serving(reply))
    begin_us = virtual_clock()
    async with runtime.generate(ASKED) as chunks:
        seen = []
        async for chunk in chunks:
            seen.append((chunk.text, chunk.t_us - begin_us))
            await trio.sleep(0.01)  # a reader that takes its time changes no stamp of the same read
    assert seen == [("a", 1_500_000), ("b", 1_550_000), ("c", 1_550_000), ("", 1_610_000)]
    assert reply.body.closed


async def test_a_recorded_stream_byte_by_byte(autojump_clock: trio.testing.MockClock):
    body = capture("generate-logprobs")[1]
    server = serving(Reply([Send(body[at : at + 1]) for at in range(len(body))]))
    chunks = await chunks_of(runtime_of(server))
    assert [chunk.text for chunk in chunks] == [" streams", " tokens", " .", ""]
    assert chunks[-1].end == GenerationEnd(EndReason.LENGTH, 3, 3, load_ms=1.496992)
    assert server.bodies(GENERATE) == [
        {"model": "m", "prompt": PROMPT, "stream": True, "logprobs": True, "top_logprobs": 10, "truncate": False}
    ]


async def test_chat_with_thinking_and_tools(autojump_clock: trio.testing.MockClock):
    server = serving(Reply([Send(capture("chat-think-tools")[1])]), path="/api/chat")
    request = GenerationRequest("m", messages=(Message("user", PROMPT),))
    chunks = await chunks_of(runtime_of(server), request)
    assert [chunk.kind for chunk in chunks] == [TokenKind.THINKING] * 15 + [TokenKind.TOOL, TokenKind.ANSWER]
    assert server.bodies("/api/chat")[0]["messages"] == [{"role": "user", "content": PROMPT}]


async def test_a_stream_that_just_stops_has_no_end(autojump_clock: trio.testing.MockClock):
    runtime = runtime_of(serving(spoken([record("a")]), Reply([Send(record("a") + b'{"respo')])))
    assert [chunk.end for chunk in await chunks_of(runtime)] == [None]
    assert runtime.counters.cut_streams == 0
    assert [chunk.end for chunk in await chunks_of(runtime)] == [None]
    assert runtime.counters.cut_streams == 1


async def test_errors_in_the_middle(autojump_clock: trio.testing.MockClock):
    for line in (b'{"error":"runner crashed"}\n', b"garbage\n", b"x" * 1_048_577):
        reply = Reply([Send(record("a")), Send(line)])
        error = await failure_of(runtime_of(serving(reply)))
        assert isinstance(error, UpstreamProtocolError)
        assert reply.body.closed


# ── refusals and second tries ──


async def test_a_missing_model_says_how_to_get_it(autojump_clock: trio.testing.MockClock):
    error = await failure_of(runtime_of(serving(refused(404, "model 'm' not found"))))
    assert isinstance(error, ModelNotFound)
    assert "ollama pull m" in error.message


async def test_a_busy_server_is_tried_three_times(autojump_clock: trio.testing.MockClock):
    busy = "server busy, please try again.  maximum pending requests exceeded"
    server = serving(refused(503, busy), refused(503, busy), spoken([record("a"), done()], after_s=0))
    runtime = runtime_of(server)
    assert [chunk.text for chunk in await chunks_of(runtime)] == ["a", ""]
    assert trio.current_time() == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert runtime.counters.retries == 2
    error = await failure_of(runtime_of(serving(*[refused(503, busy) for _ in range(3)])))
    assert isinstance(error, Overloaded)
    assert error.details["retry_after_s"] == 1


@pytest.mark.parametrize(
    ("stated", "tries", "waited_s"), [("4", 2, 4), ("10", 2, 10), ("11", 1, 0), ("soon", 2, 0.125)]
)
async def test_retry_after(autojump_clock: trio.testing.MockClock, stated: str, tries: int, waited_s: float):
    begin_s = trio.current_time()
    server = serving(refused(429, "busy", retry_after=stated), spoken([done()], after_s=0))
    if tries == 1:
        error = await failure_of(runtime_of(server))
        assert (type(error), error.details["retry_after_s"]) == (Overloaded, int(stated))
    else:
        await chunks_of(runtime_of(server))
    assert len(server.requests) == tries
    assert trio.current_time() - begin_s == pytest.approx(waited_s)


async def test_nothing_is_tried_again_once_it_answers(autojump_clock: trio.testing.MockClock):
    server = serving(Reply([Send(record("a")), Send(b'{"error":"server busy"}\n')]))
    await failure_of(runtime_of(server))
    assert len(server.requests) == 1


async def test_log_probabilities_are_given_up_once_and_for_the_model(autojump_clock: trio.testing.MockClock):
    no = '"m" does not support logprobs'
    server = serving(
        refused(400, no), spoken([done()]), spoken([done()]), tags=whole({"models": [{"name": "m:latest"}]})
    )
    runtime = runtime_of(server)
    await chunks_of(runtime)
    await chunks_of(runtime)
    assert ["logprobs" in body for body in server.bodies(GENERATE)] == [True, False, False]
    assert runtime.counters.without_logprobs == 1
    (info,) = await runtime.list_models()
    assert Capability.LOGPROBS not in info.capabilities


async def test_a_refusal_that_log_probabilities_did_not_cause_is_not_remembered(autojump_clock: trio.testing.MockClock):
    no = '"m" does not support chat'
    server = serving(refused(400, no), refused(400, no), spoken([done()]))
    runtime = runtime_of(server)
    error = await failure_of(runtime)
    assert isinstance(error, InvalidRequest)
    assert error.message.endswith(no)
    await chunks_of(runtime)
    assert ["logprobs" in body for body in server.bodies(GENERATE)] == [True, False, True]


async def test_a_cut_prompt_is_made_visible(autojump_clock: trio.testing.MockClock):
    inner = {"error": {"message": "exceeds the available context size", "n_prompt_tokens": 3502, "n_ctx": 2048}}
    server = serving(
        refused(400, json.dumps(inner)),
        spoken([record("a"), done(prompt_eval_count=1027)]),
        refused(400, "the prompt exceeds the context length"),
        spoken([done()]),
    )
    runtime = runtime_of(server)
    first, second = await chunks_of(runtime), await chunks_of(runtime)
    assert first[-1].end == GenerationEnd(EndReason.FINISHED, 1027, 2, prompt_tokens_dropped=3502 - 1027)
    assert second[-1].end is not None
    assert second[-1].end.prompt_tokens_dropped == 1
    assert [body.get("truncate") for body in server.bodies(GENERATE)] == [False, None, False, None]
    assert runtime.counters.prompts_cut == 2


@pytest.mark.parametrize(
    ("status", "kind"), [(401, RuntimeUnavailable), (500, UpstreamProtocolError), (302, UpstreamProtocolError)]
)
async def test_other_statuses(autojump_clock: trio.testing.MockClock, status: int, kind: type[EngineError]):
    server = serving(refused(status, "what a day", location="http://elsewhere/"))
    assert type(await failure_of(runtime_of(server))) is kind
    assert len(server.requests) == 1


async def test_models_that_run_elsewhere_are_refused_unasked(autojump_clock: trio.testing.MockClock):
    tags = {
        "models": [
            {"name": "big:1t-cloud"},
            {"name": "stub:latest", "remote_host": "https://ollama.com", "remote_model": "x"},
            {"name": "not a name"},
            {"name": "embedder:latest", "capabilities": ["embedding"]},
            {"name": "here:latest", "capabilities": ["completion", "tools"], "details": {"family": "llama"}},
        ]
    }
    server = ScriptedOllama({"/api/tags": [whole(tags)]})
    runtime = runtime_of(server)
    here, embedder = await runtime.list_models()
    assert (here.name, embedder.name) == ("here:latest", "embedder:latest")
    assert here.capabilities == (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)
    assert here.details == {"family": "llama", "capabilities": ["completion", "tools"]}
    assert (runtime.counters.remote_models, runtime.counters.unnameable_models) == (2, 1)
    for name in ("big:1t-cloud", "other:cloud", "stub", "stub:latest"):
        error = await failure_of(runtime, GenerationRequest(name, prompt=PROMPT))
        assert isinstance(error, ModelNotFound)
        assert "another machine" in error.message
        for call in (runtime.load(name), runtime.unload(name), anext(runtime.pull(name))):
            with pytest.raises(ModelNotFound):
                await call
    assert len(server.requests) == 1


# ── the small calls ──


async def test_probe(autojump_clock: trio.testing.MockClock):
    up = await runtime_of(serving(whole(capture("version")[1]), path="/api/version")).probe()
    assert (up.up, up.version, up.reason) == (True, "0.33.0-rc2", None)
    reasons = {
        "start it with `ollama serve`": httpx.ConnectError("refused"),
        "did not answer within 2 s": Reply(after_s=60),
        "is no Ollama (GET /api/version: 404)": whole(b"not here", 404),
        "is no Ollama (GET /api/version: 200)": whole({"version": ""}),
        "refuses us (403)": whole(b"", 403),
        "compressed": whole(b"x", 200, content_encoding="gzip"),
        "more than 4194304 bytes": whole(b"x" * 4_194_305),
    }
    for reason, reply in reasons.items():
        begin_s = trio.current_time()
        probe = await runtime_of(serving(reply, path="/api/version")).probe()
        assert not probe.up
        assert reason in (probe.reason or "")
        assert "http://127.0.0.1:11434" in (probe.reason or "") or "ollama" in (probe.reason or "")
        assert trio.current_time() - begin_s <= 2


async def test_a_new_version_is_asked_for_log_probabilities_again(autojump_clock: trio.testing.MockClock):
    server = serving(refused(400, "logprobs"), spoken([done()]), spoken([done()]))
    server.replies["/api/version"] = [whole({"version": "0.1"}), whole({"version": "0.2"})]
    runtime = runtime_of(server)
    await runtime.probe()
    await chunks_of(runtime)
    await runtime.probe()
    await chunks_of(runtime)
    assert ["logprobs" in body for body in server.bodies(GENERATE)] == [True, False, True]


async def test_load_and_unload(autojump_clock: trio.testing.MockClock):
    loading = Reply([Send(capture("load")[1])], after_s=2.5)
    server = serving(loading, whole(capture("unload")[1]))
    server.replies["/api/ps"] = [whole(capture("ps")[1]), whole(capture("ps")[1]), whole(capture("ps-after-unload")[1])]
    runtime = runtime_of(server)
    loaded = await runtime.load("bigram")
    assert (loaded.resident_bytes, loaded.load_ms) == (24_893_194, 2500)
    assert await runtime.unload("bigram") == 24_893_194
    assert await runtime.unload("bigram:latest") == 0
    assert server.bodies(GENERATE) == [
        {"model": "bigram", "stream": False},
        {"model": "bigram", "stream": False, "keep_alive": 0},
    ]


async def test_what_is_on_gpus_is_told_beside_all_that_a_model_takes(autojump_clock: trio.testing.MockClock):
    server = serving(whole({"model": "big", "done": True, "done_reason": "load"}))
    found = {"models": [{"name": "big:latest", "size": 20, "size_vram": 12}, {"name": "small:1b", "size": 3}]}
    server.replies["/api/ps"] = [whole(found), whole(found)]
    runtime = runtime_of(server)
    assert await runtime.resident() == {"big:latest": MemoryUse(20, 12), "small:1b": MemoryUse(3, 0)}
    loaded = await runtime.load("big")
    assert (loaded.resident_bytes, loaded.vram_bytes) == (20, 12)


async def test_loads_that_fail(autojump_clock: trio.testing.MockClock):
    cases: list[tuple[Reply | Exception, type[EngineError]]] = [
        (refused(404, "model 'm' not found"), ModelNotFound),
        (refused(500, "model requires more system memory (9 GiB) than is available (2 GiB)"), ModelLoadFailed),
        (Reply(after_s=LOAD_S + 1), ModelLoadTimeout),
        (whole({"response": "", "done": False}), UpstreamProtocolError),
        (httpx.ConnectError("refused"), NobodyListens),
    ]
    for reply, kind in cases:
        with pytest.raises(kind) as caught:
            await runtime_of(serving(reply)).load("m")
        assert type(caught.value) is kind


async def test_pull_tells_its_progress(autojump_clock: trio.testing.MockClock):
    lines = [
        {"status": "pulling manifest"},
        {"status": "pulling 1a", "digest": "sha256:1a", "total": 9},
        {"status": "pulling 1a", "digest": "sha256:1a", "total": 9, "completed": 4},
        {"status": "pulling 2b", "digest": "sha256:2b", "total": 5, "completed": 5},
        {"status": "success"},
    ]
    server = serving(spoken([json.dumps(line).encode() + b"\n" for line in lines]), path="/api/pull")
    progress = [step async for step in runtime_of(server).pull("m")]
    assert [(step.status, step.completed_bytes, step.total_bytes) for step in progress] == [
        ("pulling manifest", None, None),
        ("pulling 1a", 0, 9),
        ("pulling 1a", 4, 9),
        ("pulling 2b", 9, 14),
        ("success", 9, 14),
    ]
    failing = serving(spoken([b'{"error":"pull model manifest: file does not exist"}\n']), path="/api/pull")
    with pytest.raises(ModelNotFound, match="file does not exist"):
        await anext(runtime_of(failing).pull("m"))
    cut = runtime_of(serving(spoken([b'{"status":"pulling manifest"}\n']), path="/api/pull"))
    with pytest.raises(UpstreamTruncated, match="broke off pulling m"):
        assert [step.status async for step in cut.pull("m")] == ["pulling manifest"]
    with pytest.raises(UpstreamTimeout, match="nothing for 120 s"):
        await anext(runtime_of(serving(Reply([Silence()]), path="/api/pull")).pull("m"))


def test_where_the_server_is():
    expected = {
        "": "http://127.0.0.1:11434",
        "  'example.com'  ": "http://example.com:11434",
        '"0.0.0.0:8080"': "http://127.0.0.1:8080",
        ":8080": "http://127.0.0.1:8080",
        "0.0.0.0": "http://127.0.0.1:11434",
        "[::]:8080": "http://[::1]:8080",
        "::1": "http://[::1]:11434",
        "http://box": "http://box:80",
        "https://box/ollama/": "https://box:443/ollama",
        "box:99999": "http://box:11434",
        "box:no": "http://box:11434",
    }
    assert {value: ollama_url({"OLLAMA_HOST": value}) for value in expected} == expected
    assert ollama_url({}) == "http://127.0.0.1:11434"


def test_a_server_elsewhere_is_not_local():
    def local(url: str) -> bool:
        return OllamaRuntime(virtual_clock, url).local

    assert all(map(local, ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9")))
    assert not any(map(local, ("http://box:1", "http://192.168.0.2:1", "http://localhost.example.com")))


def test_versions_with_log_probabilities():
    assert [gives_logprobs(v) for v in (None, "0.33.0-rc2", "0.12.11", "0.0.0", "main")] == [True] * 5
    assert [gives_logprobs(v) for v in ("0.12.10", "0.9.0", "0.12")] == [False] * 3
