"""Anthropic as a runtime in virtual time: what it asks, what it makes of the answers, and when it lets go."""

from __future__ import annotations

import httpx
import pytest
import trio

from engine.domain.errors import ConfigError, Overloaded, RuntimeUnavailable, UpstreamTruncated
from engine.domain.generation import EndReason, GenerationEnd
from tests.fakes.cloud import anthropic_answer, anthropic_error, anthropic_event, block, message_start, text_delta
from tests.fakes.ollama import Break, Reply, ScriptedOllama, Send, Silence, virtual_clock
from tests.fakes.streams import KEY, chunks_of, failure_of, read_texts
from transport.runtimes.anthropic import AnthropicRuntime
from transport.wire.anthropic_requests import MESSAGES_PATH


def serving(*replies: Reply | Exception) -> ScriptedOllama:
    return ScriptedOllama({MESSAGES_PATH: list(replies)})


def runtime_of(server: ScriptedOllama) -> AnthropicRuntime:
    return AnthropicRuntime(virtual_clock, api_key=KEY, transport=server.transport)


async def test_an_answer_is_stamped_as_its_bytes_come(autojump_clock: trio.testing.MockClock):
    reply = anthropic_answer(["a", "b"], after_s=0.1)
    began_us = virtual_clock()
    chunks = await chunks_of(runtime_of(serving(reply)))
    assert [(chunk.text, chunk.t_us - began_us) for chunk in chunks[:2]] == [("a", 400_000), ("b", 500_000)]
    assert chunks[-1].end == GenerationEnd(EndReason.FINISHED, 9, 2)
    assert reply.body.closed


async def test_key_and_version_go_out_in_headers(autojump_clock: trio.testing.MockClock):
    seen: list[httpx.Headers] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, stream=anthropic_answer(["x"]).body)

    await chunks_of(AnthropicRuntime(virtual_clock, api_key=KEY, transport=httpx.MockTransport(handle)))
    assert (seen[0]["x-api-key"], seen[0]["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in seen[0]


async def test_what_breaks_off_is_told_as_such(autojump_clock: trio.testing.MockClock):
    begun = message_start() + b"".join(block(0, "text", text_delta("a")))
    assert isinstance(await failure_of(runtime_of(serving(Reply([Send(begun), Break()])))), UpstreamTruncated)
    chunks = await chunks_of(runtime_of(serving(Reply([Send(begun)]))))  # it just stops
    assert [chunk.text for chunk in chunks] == ["a"]
    assert chunks[-1].end is None


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (429, "rate_limit_error", Overloaded),
        (529, "overloaded_error", Overloaded),
        (401, "authentication_error", RuntimeUnavailable),
    ],
)
async def test_a_refusal(status, kind, error, autojump_clock: trio.testing.MockClock):
    reply = anthropic_error(status, kind, f"no {KEY}", retry_after="17")
    found = await failure_of(runtime_of(serving(reply)))
    assert isinstance(found, error)
    assert found.details.get("retry_after_s", 17) == 17


async def test_an_error_in_the_stream_comes_after_what_was_said(autojump_clock: trio.testing.MockClock):
    told = message_start() + b"".join(block(0, "text", text_delta("a")))
    told += anthropic_event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    seen: list[str] = []
    with pytest.raises(Overloaded):
        await read_texts(runtime_of(serving(Reply([Send(told)]))), seen)
    assert seen == ["a"]


async def test_leaving_closes_the_connection(autojump_clock: trio.testing.MockClock):
    reply = Reply([Send(message_start() + b"".join(block(0, "text", text_delta("a")))), Silence()])
    with trio.move_on_after(5):
        await chunks_of(runtime_of(serving(reply)))
    assert reply.body.closed


async def test_it_asks_nobody_how_it_is_or_what_it_has(autojump_clock: trio.testing.MockClock):
    server = serving()
    runtime = runtime_of(server)
    assert (await runtime.probe()).up
    assert (await runtime.list_models(), await runtime.resident(), await runtime.unload("m")) == ((), None, 0)
    assert (await runtime.load("m")).resident_bytes is None
    assert server.requests == []
    assert (runtime.local, runtime.url) == (False, "https://api.anthropic.com")


@pytest.mark.parametrize(("url", "key"), [("https://u:p@x", None), ("https://x", "a b"), ("https://x", "a\nb")])
def test_what_cannot_be_sent_is_refused_at_once(url, key):
    with pytest.raises(ConfigError) as caught:
        AnthropicRuntime(virtual_clock, url, api_key=key)
    assert key is None or key not in caught.value.message
    assert "secret" not in repr(AnthropicRuntime(virtual_clock, api_key="secret"))
