"""OpenAI, Anthropic and OpenRouter in memory: answers and errors in the forms that their documentation gives, with the
fields that a real one has and nobody reads. Nothing here goes over a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import httpx

from engine.domain.generation import Clock
from policies.egress import Permit
from policies.providers import Dialect, ProviderSpec
from tests.fakes.ollama import Reply, ScriptedOllama, Send, whole
from transport.runtimes.anthropic import AnthropicRuntime
from transport.runtimes.openai import OpenAIRuntime
from transport.wire.anthropic_requests import MESSAGES_PATH
from transport.wire.openai_requests import CHAT_PATH

OPENROUTER_COMMENT = b": OPENROUTER PROCESSING\n\n"
DONE = b"data: [DONE]\n\n"


# ── OpenAI and OpenRouter ──


def openai_chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", "object": "chat.completion.chunk", "created": 1741570283,
        "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_50cad350e4",
        "choices": [{**choice, "logprobs": None}], "obfuscation": "aK2z", **more,
    }  # fmt: skip
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def openai_usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    usage = {
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    return openai_chunk(choices=[], usage=usage)


def openai_answer(words: Sequence[str], *, after_s: float = 0.1, tokens_in: int = 9) -> Reply:
    """A stream, one event a read."""
    events = [*(openai_chunk(word) for word in words), openai_chunk(finish="stop")]
    return Reply([Send(event, after_s) for event in [*events, openai_usage(tokens_in, len(words)) + DONE]])


def openai_error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return whole({"error": error}, status, **headers)


def openrouter_error_in_stream() -> bytes:
    """The form of an error after tokens were sent: status 200, and an event that is error and end at once."""
    error = {"code": "server_error", "message": "Provider disconnected unexpectedly"}
    choices = [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "native_finish_reason": "error"}]
    return openai_chunk(provider="Some Provider", error=error, choices=choices)


def openrouter_error(status: int, message: str, **headers: str) -> Reply:
    return whole({"error": {"code": status, "message": message, "metadata": {"provider_name": "x"}}}, status, **headers)


# ── Anthropic ──


def anthropic_event(type_: str, **more: Any) -> bytes:
    return f"event: {type_}\ndata: {json.dumps({'type': type_, **more})}\n\n".encode()


def message_start(input_tokens: int = 9, **usage: int) -> bytes:
    message = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL", "type": "message", "role": "assistant", "content": [],
        "model": "claude-haiku-4-5-20251001", "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": 1, "service_tier": "standard", **usage},
    }  # fmt: skip
    return anthropic_event("message_start", message=message)


def block(index: int, kind: str, *deltas: dict[str, Any], **more: Any) -> list[bytes]:
    """A content block with its deltas, one event each."""
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}[kind]
    return [
        anthropic_event("content_block_start", index=index, content_block={"type": kind, **empty, **more}),
        *(anthropic_event("content_block_delta", index=index, delta=delta) for delta in deltas),
        anthropic_event("content_block_stop", index=index),
    ]


def text_delta(text: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": text}


def message_end(output_tokens: int, stop_reason: str = "end_turn") -> bytes:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return anthropic_event("message_delta", delta=delta, usage={"output_tokens": output_tokens}) + anthropic_event(
        "message_stop"
    )


def anthropic_answer(words: Sequence[str], *, after_s: float = 0.1, tokens_in: int = 9) -> Reply:
    """A stream, one event a read, with a ping in it."""
    events = [message_start(tokens_in), anthropic_event("ping"), *block(0, "text", *map(text_delta, words))]
    return Reply([Send(event, after_s) for event in [*events, message_end(len(words))]])


def anthropic_error(status: int, kind: str, message: str, **headers: str) -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    return whole(body, status, **headers)


# ── both as runtimes ──


@attrs.define(eq=False)
class Cloud:
    """A provider that plays `replies`, one a request; `permits` are those it was asked under, and `asked` what it was
    asked. Its meter counts the bytes of a request, as the real way out does."""

    replies: list[Reply | Exception] = attrs.field(factory=list)
    permits: list[Permit] = attrs.field(factory=list)
    headers: list[dict[str, str]] = attrs.field(factory=list)
    server: ScriptedOllama = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        paths = (CHAT_PATH, f"/api{CHAT_PATH}", MESSAGES_PATH)  # the second is that of OpenRouter
        self.server = ScriptedOllama(dict.fromkeys(paths, self.replies))

    @property
    def asked(self) -> list[Any]:
        return [body for _, body in self.server.requests]

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(dict(request.headers))
        return await self.server.handle(request)

    def make(self, spec: ProviderSpec, clock: Clock, key: str | None) -> CloudUnderPermit:
        """To be given to `satellite_of`."""
        url, transport = spec.base_url or "", httpx.MockTransport(self._handle)
        if spec.dialect is Dialect.ANTHROPIC:
            return CloudUnderPermit(self, AnthropicRuntime(clock, url, spec.name, key, transport))
        return CloudUnderPermit(self, OpenAIRuntime(clock, url, spec.name, key, transport, hosted=True))


@attrs.define(eq=False)
class CloudUnderPermit:
    cloud: Cloud
    runtime: AnthropicRuntime | OpenAIRuntime

    @property
    def url(self) -> str:
        return self.runtime.url

    def under(self, permit: Permit) -> AnthropicRuntime | OpenAIRuntime:
        self.cloud.permits.append(permit)
        permit.meter.bytes_out += 1000  # what a request takes on the wire is the business of transport/outbound
        return self.runtime.under(permit)
