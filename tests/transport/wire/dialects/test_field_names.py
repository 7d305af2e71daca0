"""Refusals of runtimes in the words of the client's dialect."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.domain.errors import InvalidRequest, UpstreamTruncated
from engine.domain.generation import Dialect, GenerationRequest
from transport.wire.dialects.field_names import in_words_of
from transport.wire.dialects.reply import Asked
from transport.wire.requests import refused

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"


def told(path: str, field: str, **body: Any) -> str:
    dialect = Dialect.OLLAMA if path.startswith("/api") else Dialect.OPENAI
    if path.startswith("/v1/messages"):
        dialect = Dialect.ANTHROPIC
    asked = Asked(dialect, path, msgspec.json.encode(body), "m", False, GenerationRequest("m", prompt="x"))
    error = in_words_of(asked, refused(field, "cannot be done: format"))
    assert isinstance(error, InvalidRequest)
    assert error.message == f"{error.details['field']}: cannot be done: format"
    return str(error.details["field"])


@pytest.mark.parametrize(
    ("path", "field", "body", "named"),
    [
        (CHAT, "format", {"response_format": {}}, "response_format"),
        (CHAT, "max_tokens", {"max_completion_tokens": 1}, "max_completion_tokens"),
        (CHAT, "max_tokens", {"max_tokens": 1, "max_completion_tokens": None}, "max_tokens"),
        (CHAT, "think", {"reasoning": {"effort": "low"}}, "reasoning"),
        (CHAT, "think", {"reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, "think", {"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        (CHAT, "images", {"messages": []}, "images"),
        (CHAT, "repeat_penalty", {"repetition_penalty": 2}, "repetition_penalty"),
        (CHAT, "tools", {"tools": []}, "tools"),
        (RESPONSES, "format", {"text": {"format": {}}}, "text.format"),
        (RESPONSES, "max_tokens", {}, "max_output_tokens"),
        (RESPONSES, "messages.tool_calls.arguments", {"input": []}, "input"),
        (COMPLETIONS, "suffix", {"suffix": "x"}, "suffix"),
        ("/v1/messages", "stop", {"stop_sequences": ["x"]}, "stop_sequences"),
        ("/v1/messages", "think", {"thinking": {"type": "enabled"}}, "thinking"),
        ("/v1/messages", "think", {"output_config": {"effort": "low"}}, "output_config.effort"),
        ("/v1/messages", "format", {"output_format": {}}, "output_format"),
        ("/v1/messages", "format", {"output_config": {"format": {}}}, "output_config.format"),
        ("/api/generate", "max_tokens", {"options": {"num_predict": 1}}, "options.num_predict"),
        ("/api/generate", "min_p", {"options": {"min_p": 1}}, "options.min_p"),
        ("/api/generate", "images", {"images": ["x"]}, "images"),
        ("/api/chat", "images", {"messages": []}, "images"),
        ("/api/chat", "format", {"format": "json"}, "format"),
    ],
)
def test_a_field_is_called_as_the_client_calls_it(path, field, body, named):
    assert told(path, field, **body) == named


def test_what_names_no_field_or_is_no_fault_of_the_request_stays_as_it_is():
    asked = Asked(Dialect.OPENAI, CHAT, b"[", "m", False, GenerationRequest("m"))
    for error in (InvalidRequest("no"), UpstreamTruncated("x", field="format"), refused("model", "no")):
        assert in_words_of(asked, error) is error
    assert in_words_of(asked, refused("format", "no")).details["field"] == "response_format"
