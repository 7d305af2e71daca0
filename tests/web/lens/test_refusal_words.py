"""What a runtime cannot do is refused in the client's own words; in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from engine.domain.generation import Chunk, GenerationRequest
from tests.fakes.api import running_api
from tests.fakes.http_server import HOST, serving
from tests.fakes.network import ask, http_head
from tests.fakes.runtime import ScriptedRuntime
from tests.web.lens.ways import ANTHROPIC, OLLAMA_CHAT, OPENAI_CHAT, OPENAI_RESPONSE, Way
from transport.wire.requests import refuse_all_but_words, refuse_penalties

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


class Plain(ScriptedRuntime):
    """Knows words and nothing else, as the built-in models do."""

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        refuse_all_but_words(request, self.name)
        refuse_penalties(request.parameters, self.name)
        async with ScriptedRuntime.generate(self, request) as chunks:
            yield chunks


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("way", "more", "field"),
    [
        (OPENAI_CHAT, {"response_format": SCHEMA}, "response_format"),
        (OPENAI_CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        (OPENAI_RESPONSE, {"text": {"format": {"type": "json_object"}}}, "text.format"),
        (ANTHROPIC, {"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking"),
        (OLLAMA_CHAT, {"options": {"min_p": 0.5}}, "options.min_p"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_it_is_named_as_the_client_wrote_it(way: Way, more: dict[str, Any], field, stream, autojump_clock):
    async with running_api(Plain) as api:
        answer = await api.post(way.path, way.body(stream=stream, **more))
        assert answer.status == 400, answer.body
        assert (way.failed(answer.json) or "").startswith(f"{field}: scripted models ")
        if way.name.startswith("openai"):
            assert answer.json["error"]["param"] == field


async def test_a_call_that_is_never_served_hears_its_body_out_so_that_the_connection_lasts(autojump_clock):
    """Clients send head and body in two pieces, and the second may be late."""
    body = b'{"model":"a"}'
    async with running_api() as api, serving(api.app) as server:
        client = await server.listener.connect()
        for method, path in (("POST", "/api/push"), ("DELETE", "/api/delete"), ("POST", "/api/push")):
            await client.send_all(http_head(method, path, HOST, [f"Content-Length: {len(body)}"]))
            await wait_all_tasks_blocked()
            assert (await ask(client, body)).status == 403
        await client.aclose()
