"""What a client gets through the engine, against what the runtime itself says: the mock Ollama and a real llama.cpp.

Passive: a tap between the engine and the runtime keeps the bytes, and the client's are the same. Active: the parsed
answer is the runtime's own answer to the client's unmodified request, order included, apart from times and ids.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import attrs
import httpx
import numpy as np
import pytest

from tests.fakes import gguf
from tests.fakes.llama_server import llama_server
from tests.fakes.tap import Heard, Tap, tapped
from tests.system.process import WATCHDOG_S, EngineProcess, environment
from tests.system.test_real_engine_text import CONTEXT, SCRIPTS

GENERATE, CHAT = "/api/generate", "/api/chat"
COMPLETIONS, TEXT_COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PASSIVE: Final = {"x-wf-lens": "passive"}
TIMES: Final = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "created"}
VARYING: Final = TIMES | {"id", "timings"}  # of each answer its own
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "the time of day",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}

SLOPE: Final = 2.0  # nats, from the first word to the last

Json = dict[str, Any]


@attrs.frozen
class Upstream:
    """A runtime, the tap before it, and the engine behind that. Clients of `direct` ask the runtime itself."""

    direct: httpx.Client
    tap: Tap
    engine: EngineProcess
    http: httpx.Client


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    folder = tmp_path_factory.mktemp("mock")
    command = [sys.executable, "-m", "engine", "mock", "--port", "0", "--tps", "0", "--ttft-ms", "0", "--tokens", "15"]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        with tapped(url) as tap:
            env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__SPAWN": "false", "OLLAMA_HOST": tap.url}
            yield from _served(url, tap, EngineProcess.spawn(folder / "engine", env=env))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    folder = tmp_path_factory.mktemp("llama")
    model = gguf.scripted(SCRIPTS)
    slope = np.linspace(0, SLOPE, len(model.written))  # no two alternatives alike: their order would be chance
    model = attrs.evolve(model, logprobs=model.logprobs + slope)
    model.save(folder / "scripted.gguf", context=CONTEXT, feed_forward=4096)
    with llama_server(folder / "scripted.gguf", "scripted", context=CONTEXT) as server, tapped(server.url) as tap:
        yield from _served(
            server.url, tap, EngineProcess.spawn(folder / "engine", env={"WF_OPENAI__BASE_URL": tap.url})
        )


def _served(url: str, tap: Tap, engine: EngineProcess) -> Iterator[Upstream]:
    once = httpx.Limits(max_keepalive_connections=0)  # llama.cpp closes them when it likes
    options: Any = {"trust_env": False, "verify": False, "timeout": WATCHDOG_S, "limits": once}
    try:
        engine.wait_ready()
        with httpx.Client(base_url=url, **options) as direct, engine.client() as http:
            engine.wait_for(lambda: tap.url in _urls(http))
            yield Upstream(direct, tap, engine, http)
    finally:
        engine.kill()


def _urls(http: httpx.Client) -> set[str]:
    return {runtime["url"] for runtime in http.get("/health").json()["runtimes"] if runtime["up"]}


# ── what is compared ──


def media_type(answer: httpx.Response) -> str:
    return answer.headers["content-type"].partition(";")[0]


def told(answer: httpx.Response) -> list[Any]:
    """The JSON values of a body, in their order; the rest of a stream of events as text."""
    kind = media_type(answer)
    if kind == "text/event-stream":
        events = [event for event in answer.text.split("\n\n") if event and not event.startswith(":")]
        data = [event.removeprefix("data: ") for event in events]
        return [json.loads(one) if one.startswith("{") else one for one in data]
    lines = answer.content.split(b"\n") if kind == "application/x-ndjson" else [answer.content]
    return [json.loads(line) for line in lines if line]


def lasting(value: Any) -> Any:
    """Without what differs from answer to answer. Objects become pairs: their order counts, but for log-probabilities:
    in a whole chat Ollama has them before the counts, the mock behind them."""
    if isinstance(value, dict):
        pairs = [(name, lasting(one)) for name, one in value.items() if name not in VARYING]
        return sorted(pairs, key=lambda pair: pair[0] == "logprobs")
    if isinstance(value, list):
        return [lasting(one) for one in value]
    return value


def names_of(value: Any) -> list[str]:
    """Every field with its place, also of those whose values differ."""
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda pair: pair[0] == "logprobs")
        return [f"{name}.{rest}" for name, one in ordered for rest in names_of(one)]
    if isinstance(value, list):
        return [f"[].{rest}" for one in value for rest in names_of(one)]
    return [""]


def same_as_direct(upstream: Upstream, path: str, asked: Json | bytes, sent: Json | bytes | None = None) -> list[Any]:
    """Both answers, compared; `sent` is what the engine is asked, where its name of the model is another."""
    data = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in (asked, sent or asked)]
    own = upstream.direct.post(path, content=data[0])
    ours = upstream.http.post(path, content=data[1])
    assert (ours.status_code, media_type(ours)) == (own.status_code, media_type(own))
    values, expected = told(ours), told(own)
    assert [lasting(value) for value in values] == [lasting(value) for value in expected]
    assert [names_of(value) for value in values] == [names_of(value) for value in expected]
    if ours.status_code == 200:
        assert (ours.headers["x-wf-route"], ours.headers["x-wf-lens"]) == ("native", "active")
    return values


def same_as_tapped(upstream: Upstream, path: str, asked: Json | bytes) -> bytes:
    """What a passive client got, compared with what passed the tap: both ways, to the byte."""
    upstream.tap.forget()
    data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    ours = upstream.http.post(path, content=data, headers=PASSIVE)
    (heard,) = [one for one in upstream.tap.heard(path) if one.asked == data]  # another one loads the model
    assert ours.content == heard.body
    assert (ours.status_code, ours.headers["content-type"]) == (heard.status, heard.content_type)
    assert (ours.headers["x-wf-lens"], ours.headers["x-wf-route"]) == ("passive", "native")
    assert heard.whole
    return ours.content


# ── Ollama ──


def generate(model: str, **more: Any) -> Json:
    return {"model": f"mock:{model}", "prompt": "what is it?", **more}


def chat(model: str, **more: Any) -> Json:
    return {"model": f"mock:{model}", "messages": [{"role": "user", "content": "what is it?"}], **more}


OLLAMA: Final[dict[str, tuple[str, Json | bytes]]] = {
    "generate": (GENERATE, generate("steady")),
    "chat": (CHAT, chat("steady")),
    "seed, length": (GENERATE, generate("steady", options={"seed": 7, "num_predict": 4})),
    "stop": (CHAT, chat("steady", options={"stop": [" the"]})),
    "unknown fields": (CHAT, chat("steady", odd={"x": [1.5, None]}, options={"odd": 1})),
    "raw": (GENERATE, generate("steady", raw=True, system="", keep_alive="5m")),
    "old name": (GENERATE, {"name": "mock:steady", "model": "mock:steady", "prompt": "x"}),
    "json": (CHAT, chat("steady", format="json")),
    "schema": (CHAT, chat("steady", format={"type": "object", "properties": {"x": {"type": "integer"}}})),
    "null fields": (GENERATE, generate("steady", options=None, format=None, keep_alive=None, images=None)),
    "logprobs": (CHAT, chat("logprobs", logprobs=True)),
    "top logprobs": (GENERATE, generate("logprobs", logprobs=True, top_logprobs=3)),
    "most logprobs": (GENERATE, generate("logprobs", logprobs=True, top_logprobs=20)),
    "logprobs off": (CHAT, chat("logprobs", logprobs=False, top_logprobs=5)),
    "no logprobs": (GENERATE, generate("nologprobs", logprobs=True)),
    "thinking": (CHAT, chat("thinking")),
    "thinking in generate": (GENERATE, generate("thinking")),
    "thinking off": (CHAT, chat("thinking", think=False)),
    "thinking on": (CHAT, chat("thinking", think=True)),
    "thinking, logprobs": (CHAT, chat("thinking", logprobs=True, top_logprobs=2)),
    "tools": (CHAT, chat("tools", tools=[TOOL])),
    "tools, logprobs": (CHAT, chat("tools", tools=[TOOL], logprobs=True, top_logprobs=1)),
    "tools unused": (CHAT, chat("tools")),
    "several tokens a record": (CHAT, chat("coalesced")),
    "several, logprobs": (GENERATE, generate("coalesced", logprobs=True)),
    "emoji": (GENERATE, generate("fewer")),
    "emoji, logprobs": (GENERATE, generate("fewer", logprobs=True, top_logprobs=2)),
    "prompt too long": (GENERATE, generate("long-prompt-cut") | {"prompt": "word " * 100}),
    "too long refused": (GENERATE, generate("long-prompt-cut", truncate=False) | {"prompt": "word " * 100}),
    "cannot think": (CHAT, chat("steady", think=True)),
    "has no tools": (CHAT, chat("steady", tools=[TOOL])),
}
LOADS: Final[dict[str, tuple[str, Json | bytes]]] = {
    "load": (GENERATE, {"model": "mock:steady"}),
    "load by chat": (CHAT, {"model": "mock:steady", "messages": []}),
    "load, streaming": (GENERATE, {"model": "mock:steady", "prompt": "", "stream": True, "keep_alive": "1m"}),
    "unload": (GENERATE, {"model": "mock:steady", "keep_alive": 0}),
    "unload by chat": (CHAT, {"model": "mock:steady", "keep_alive": "0s"}),
}


def asking_to(stream: bool, body: Json | bytes) -> Json:
    assert isinstance(body, dict)
    return body | {"stream": stream}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", OLLAMA)
def test_active_answers_are_ollamas_own(mock: Upstream, name: str, stream: bool):
    path, body = OLLAMA[name]
    same_as_direct(mock, path, asking_to(stream, body))


def test_a_client_that_does_not_say_streams(mock: Upstream):
    assert len(same_as_direct(mock, GENERATE, generate("steady"))) == 16


def test_a_model_that_ollama_lists_but_does_not_have_is_told_in_its_words(mock: Upstream):
    own, ours = (http.post(GENERATE, json=generate("missing")) for http in (mock.direct, mock.http))
    assert ours.status_code == own.status_code == 404
    assert ours.json()["error"].startswith(own.json()["error"])


@pytest.mark.parametrize("name", LOADS)
def test_loads_and_unloads_are_told_as_ollama_does(mock: Upstream, name: str):
    path, body = LOADS[name]
    own, ours = (http.post(path, json=body) for http in (mock.direct, mock.http))
    assert (ours.status_code, ours.headers["content-type"]) == (own.status_code, own.headers["content-type"])
    assert lasting(told(ours)) == lasting(told(own))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", OLLAMA)
def test_passive_answers_are_ollamas_bytes(mock: Upstream, name: str, stream: bool):
    path, body = OLLAMA[name]
    same_as_tapped(mock, path, asking_to(stream, body))


@pytest.mark.parametrize("model", ["late-records", "repeat-guard", "silent-end", "error-line", "flood"])
def test_passive_takes_oddities_as_they_come(mock: Upstream, model: str):
    same_as_tapped(mock, GENERATE, generate(model))


def cut_off(mock: Upstream, model: str) -> tuple[bytes, Heard]:
    """What a passive client got before its connection broke, and what passed the tap."""
    mock.tap.forget()
    asked, got = json.dumps(generate(model)).encode(), b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        mock.http.stream("POST", GENERATE, content=asked, headers=PASSIVE) as answer,
    ):
        for piece in answer.iter_raw():
            got += piece
    (heard,) = [one for one in mock.tap.heard(GENERATE) if one.asked == asked]
    return got, heard


@pytest.mark.parametrize("model", ["cut", "rst", "cut-json", "bad-chunk"])
def test_passive_breaks_off_where_ollama_does(mock: Upstream, model: str):
    got, heard = cut_off(mock, model)
    assert not heard.whole
    assert got == heard.body
    assert got


@pytest.mark.parametrize("model", ["garbage", "bad-utf8"])
def test_passive_hands_on_what_is_no_record(mock: Upstream, model: str):
    """What we cannot read may still mean something to the client."""
    same_as_tapped(mock, GENERATE, generate(model))


# ── llama.cpp ──


def asked(key: str, **more: Any) -> Json:
    """What the model says to it is decided by the key; greedy, and computed anew each time."""
    message = {"role": "user", "content": key}
    return {"model": "scripted", "messages": [message], "temperature": 0, "cache_prompt": False, **more}


def asked_text(key: str, **more: Any) -> Json:
    return {"model": "scripted", "prompt": key, "temperature": 0, "cache_prompt": False, **more}


LLAMA: Final[dict[str, tuple[str, Json]]] = {
    "chat": (COMPLETIONS, asked("F")),
    "letters of all kinds": (COMPLETIONS, asked("A")),
    "control characters": (COMPLETIONS, asked("E")),
    "no text": (COMPLETIONS, asked("H")),
    "half a letter": (COMPLETIONS, asked("I")),
    "length": (COMPLETIONS, asked("G", max_tokens=7)),
    "stop": (COMPLETIONS, asked("F", stop=["halt"])),
    "counts": (COMPLETIONS, asked("F", stream_options={"include_usage": True})),
    "no counts": (COMPLETIONS, asked("F", stream_options={"include_usage": False})),
    "unknown fields": (COMPLETIONS, asked("F", odd={"x": 1}, user="me", n_probs=0)),
    "logprobs": (COMPLETIONS, asked("F", logprobs=True)),
    "top logprobs": (COMPLETIONS, asked("F", logprobs=True, top_logprobs=3)),
    "top logprobs of letters": (COMPLETIONS, asked("A", logprobs=True, top_logprobs=2)),
    "logprobs off": (COMPLETIONS, asked("F", logprobs=False)),
    "thinking": (COMPLETIONS, asked("B")),
    "thinking, logprobs": (COMPLETIONS, asked("B", logprobs=True, top_logprobs=1)),
    "thinking in pieces": (COMPLETIONS, asked("C")),
    "thinking in pieces, logprobs": (COMPLETIONS, asked("C", logprobs=True, top_logprobs=2)),
    "half a letter, logprobs": (COMPLETIONS, asked("I", logprobs=True, top_logprobs=2)),
    "stop, logprobs": (COMPLETIONS, asked("F", stop=["t four"], logprobs=True, top_logprobs=2)),
    "tools": (COMPLETIONS, asked("F", tools=[TOOL])),
    "tools, logprobs": (COMPLETIONS, asked("F", tools=[TOOL], logprobs=True, top_logprobs=2)),
    "text": (TEXT_COMPLETIONS, asked_text("F", max_tokens=9)),
    "text of letters": (TEXT_COMPLETIONS, asked_text("A")),
    "text, counts": (TEXT_COMPLETIONS, asked_text("F", stream_options={"include_usage": True})),
    "text, logprobs": (TEXT_COMPLETIONS, asked_text("F", logprobs=2)),
    "text, stop": (TEXT_COMPLETIONS, asked_text("F", stop=["halt"])),
    "text, stop, logprobs": (TEXT_COMPLETIONS, asked_text("F", stop=["t four"], logprobs=2)),
    "bad value": (COMPLETIONS, asked("F", grammar="no grammar ::= [")),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", LLAMA)
def test_active_answers_are_llama_cpps_own(llama: Upstream, name: str, stream: bool):
    path, body = LLAMA[name]
    same_as_direct(llama, path, body | {"stream": stream})


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", LLAMA)
def test_passive_answers_are_llama_cpps_bytes(llama: Upstream, name: str, stream: bool):
    path, body = LLAMA[name]
    same_as_tapped(llama, path, body | {"stream": stream})
