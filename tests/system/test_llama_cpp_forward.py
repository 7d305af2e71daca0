"""A client's own requests to the real llama.cpp, and that it takes every form in which we ask it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio

from engine.domain.errors import InvalidRequest, UpstreamTruncated
from engine.domain.generation import Chunk, Dialect, EndReason, GenerationRequest, Message, Parameters, Tool, ToolCall
from engine.domain.runtime import ForwardRequest, Read
from tests.fakes import gguf
from tests.system.test_llama_cpp import PROMPT, answer_of, children, running
from transport.runtimes.llama_cpp.process import ServerSettings
from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
WEATHER = Tool("get_weather", "of a city", '{"type":"object","properties":{"city":{"type":"string"}}}')
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}


def asked(path: str, **values: Any) -> ForwardRequest:
    return ForwardRequest(Dialect.OPENAI, path, json.dumps({"model": "lexicon"} | values).encode(), "lexicon")


async def reads_of(
    runtime: LlamaCppRuntime, request: ForwardRequest, without_logprobs: bytes | None = None
) -> tuple[int, list[Read]]:
    async with runtime.forward(attrs.evolve(request, without_logprobs=without_logprobs)) as answer:
        return answer.status, [read async for read in answer.reads]


def chunks_of(reads: list[Read]) -> list[Chunk]:
    return [chunk for read in reads for chunk in read.chunks]


@asynccontextmanager
async def short_answers(folder: Path) -> AsyncIterator[Any]:
    """Answers of six tokens to requests given by their fields."""
    async with running(folder) as runtime:

        async def answered(**values: Any) -> list[Chunk]:
            values = {"prompt": None if "messages" in values else PROMPT} | values
            parameters = values.pop("parameters", Parameters(max_tokens=6, seed=1))
            return await answer_of(runtime, GenerationRequest("lexicon", parameters=parameters, **values))

        yield answered


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "values"),
    [
        (CHAT, TALK | {"logprobs": True, "top_logprobs": 3}),
        (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 4, "logprobs": 3}),
    ],
)
async def test_answers_are_read_while_they_are_handed_on(
    tmp_path: Path, path: str, values: dict[str, Any], stream: bool
):
    async with running(tmp_path) as runtime:
        status, reads = await reads_of(runtime, asked(path, **values, stream=stream))
        chunks, data = chunks_of(reads), b"".join(read.data for read in reads)
        assert status == 200
        assert sum(len(chunk.logprobs) for chunk in chunks) == 4
        assert all(len(entry.top) == 3 for chunk in chunks for entry in chunk.logprobs)
        ends = [chunk.end for chunk in chunks if chunk.end is not None]
        assert [end.reason for end in ends] == [EndReason.LENGTH]
        assert data.endswith(b"data: [DONE]\n\n" if stream else b"}")
        if not stream:
            assert ends[0].eval_count == 4
            assert msgspec.json.decode(data)["usage"]["completion_tokens"] == 4


async def test_a_refusal_is_its_own_words(tmp_path: Path):
    async with running(tmp_path) as runtime:
        status, reads = await reads_of(runtime, asked(CHAT, messages=5))
        assert (status, chunks_of(reads)) == (400, [])
        assert msgspec.json.decode(reads[0].data)["error"]["type"] == "invalid_request_error"


async def test_log_probabilities_beside_tools_are_done_without(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {}}}]
    request = asked(CHAT, **TALK, stream=True, tools=tools, logprobs=True)
    async with running(tmp_path) as runtime:
        status, _ = await reads_of(runtime, request)
        assert status == 400
        body = asked(CHAT, **TALK, stream=True, tools=tools).body
        status, reads = await reads_of(runtime, request, body)
        assert (status, chunks_of(reads)[-1].end is not None) == (200, True)
        plain = await answer_of(
            runtime, GenerationRequest("lexicon", prompt=PROMPT, parameters=Parameters(max_tokens=4))
        )
        assert sum(len(chunk.logprobs) for chunk in plain) == 4


async def test_a_process_that_is_killed_breaks_off_what_is_handed_on(tmp_path: Path):
    request = asked(CHAT, **TALK | {"max_tokens": 400, "ignore_eos": True}, stream=True)
    async with running(tmp_path) as runtime:
        with pytest.raises(UpstreamTruncated, match="ended by SIGKILL inside its answer"):
            async with runtime.forward(request) as answer:
                assert await anext(answer.reads)
                (pid,) = children()
                os.kill(pid, signal.SIGKILL)
                async for _ in answer.reads:
                    await trio.lowlevel.checkpoint()
        assert (await reads_of(runtime, asked(CHAT, **TALK)))[0] == 200


async def test_it_takes_every_form_in_which_we_ask(tmp_path: Path):
    call = Message("assistant", "", thinking="hm", tool_calls=(ToolCall("get_weather", '{"city":"Oslo"}'),))
    history = (Message("user", PROMPT), call, Message("tool", "rain", tool_name="get_weather"))
    every = Parameters(0.5, 0.9, 20, 6, 1, ("###",), 0.01, 0.5, 0.5, 1.1)
    forms: list[dict[str, Any]] = [
        {"system": "be brief"},
        {"think": False},
        {"think": True},
        {"think": "low"},
        {"raw": True},
        {"format": "json"},
        {"parameters": every},
        {"messages": history},
        {"tools": (WEATHER,), "tool_choice": "none"},
    ]
    async with short_answers(tmp_path) as answered:
        for form in forms:
            assert (await answered(**form))[-1].end is not None, form
        with pytest.raises(InvalidRequest, match="image input is not supported"):
            await answered(images=(PIXEL,))
        with pytest.raises(InvalidRequest, match="tools: lexicon cannot call any"):
            await answered(tools=(WEATHER,))
        told = await answered(format=SCHEMA, parameters=Parameters(max_tokens=60, seed=1, temperature=0.0))
        assert "".join(chunk.text for chunk in told).lstrip().startswith("{")


async def test_a_raw_prompt_is_continued_without_a_template(tmp_path: Path):
    greedy = Parameters(max_tokens=6, temperature=0.0)
    async with short_answers(tmp_path) as answered:
        answer = await answered(parameters=greedy)
        templated = await answered(prompt=f"Q: {PROMPT}\nA:", raw=True, parameters=greedy)
        bare = await answered(raw=True, parameters=greedy)
        assert sum(len(chunk.logprobs) for chunk in templated) == 6
    assert "".join(chunk.text for chunk in templated) == "".join(chunk.text for chunk in answer)
    assert "".join(chunk.text for chunk in bare) != "".join(chunk.text for chunk in answer)


# ── tools, with a model that says what it is told to and whose template has a place for them ──

TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    'Call with <tool_call>\n{"name": <name>, "arguments": <args>}\n</tool_call>\n{% endif %}'
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endfor %}"
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def toolish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Calls a tool when the prompt ends with C, and says plain words at W or after a tool's result."""
    monkeypatch.setattr(gguf, "TEMPLATE", TEMPLATE)
    texts = {"C": CALL, "W": "plain words here"}
    pieces = dict(zip(texts, gguf.pieces_of(*texts.values()), strict=True))
    path = tmp_path / "toolish.gguf"
    gguf.scripted({key: gguf.Script(piece, 0.95) for key, piece in pieces.items()}).save(
        path, context=1024, feed_forward=4096
    )
    return path


@pytest.mark.parametrize("choice", ["auto", "required", "get_weather"])
async def test_tool_calls_of_the_real_llama_cpp(tmp_path: Path, toolish: Path, choice: str):
    request = GenerationRequest(
        "toolish",
        messages=(Message("user", "C"),),
        tools=(Tool("get_time"), WEATHER),
        tool_choice=choice,
        parameters=Parameters(max_tokens=60, temperature=0.0),
    )
    async with running(tmp_path, toolish, settings=ServerSettings(context_length=1024, threads=1)) as runtime:
        chunks = await answer_of(runtime, request)
        parts = [part for chunk in chunks for part in chunk.tool_calls]
        assert {part.index for part in parts} == {0}
        assert [part.name for part in parts if part.name] == ["get_weather"]
        assert json.loads("".join(part.arguments for part in parts)) == {"city": "Oslo"}
        assert len(parts) > 1
        assert chunks[-1].end is not None
        assert chunks[-1].end.reason is EndReason.FINISHED
        call = ToolCall("get_weather", "".join(part.arguments for part in parts), parts[0].id)
        answered = Message("tool", "rain W", tool_call_id=parts[0].id)
        history = (Message("user", "C"), Message("assistant", "", tool_calls=(call,)), answered, Message("user", "W"))
        after = await answer_of(runtime, attrs.evolve(request, messages=history, tool_choice="auto"))
        assert "".join(chunk.text for chunk in after) == "plain words here"
