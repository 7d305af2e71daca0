"""The ways to ask for an answer in a client's dialect, and what a client of each reads out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs

Json = dict[str, Any]


@attrs.frozen
class Way:
    """`ask` is the least that must be said. `texts` are the pieces of text in a stream's values, `text` that of a whole
    body; `over` says whether a stream's last value is the dialect's own good end, `failed` gives the message of an
    error's body or of a stream's last value (None: it is no error)."""

    name: str
    path: str
    ask: Json
    stream_type: str
    texts: Callable[[list[Any]], list[str]]
    text: Callable[[Any], str]
    over: Callable[[Any], bool]
    failed: Callable[[Any], str | None]

    def body(self, **more: Any) -> Json:
        return {"model": "a", **self.ask, "stream": False, **more}

    def streamed(self, **more: Any) -> Json:
        return {"model": "a", **self.ask, "stream": True, **more}

    def values(self, data: bytes) -> list[Any]:
        """The records or events of a stream; a text that is no JSON (`[DONE]`) as it is."""
        if self.stream_type != "text/event-stream":
            assert data.endswith(b"\n"), data
            return [json.loads(line) for line in data.splitlines()]
        assert data.endswith(b"\n\n"), data
        found = []
        for event in data.split(b"\n\n")[:-1]:
            said = [line.removeprefix(b"data: ") for line in event.split(b"\n") if line.startswith(b"data: ")]
            if event.startswith(b":"):
                continue  # a comment, to keep the connection alive
            assert len(said) == 1, event
            found.append("[DONE]" if said[0] == b"[DONE]" else json.loads(said[0]))
        return found


MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}


def _choices(values: list[Any]) -> list[Json]:
    return [choice for value in values if value != "[DONE]" for choice in value.get("choices", ())]


def _openai_error(value: Any) -> str | None:
    if not isinstance(value, dict) or "error" not in value:
        return None
    assert isinstance(value["error"]["type"], str)
    return str(value["error"]["message"])


def _ollama_error(value: Any) -> str | None:
    error = value.get("error")
    assert error is None or isinstance(error, str)
    return error


def _anthropic_error(value: Any) -> str | None:
    if value.get("type") != "error":
        return None
    assert isinstance(value["error"]["type"], str)
    return str(value["error"]["message"])


def _responses_error(value: Any) -> str | None:
    """A stream that fails says so in its response; a refusal is as in the rest of the dialect."""
    if isinstance(value, dict) and value.get("type") == "response.failed":
        return str(value["response"]["error"]["message"])
    if isinstance(value, dict) and value.get("type") == "error":
        return str(value["message"])
    return _openai_error(value) if isinstance(value, dict) and value.get("error") else None


def _outputs(body: Json) -> str:
    said = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in said)


OLLAMA_CHAT = Way(
    "ollama chat",
    "/api/chat",
    MESSAGES,
    "application/x-ndjson",
    lambda values: [value["message"]["content"] for value in values if "message" in value],
    lambda body: body["message"]["content"],
    lambda value: value.get("done") is True,
    _ollama_error,
)
OLLAMA_GENERATE = Way(
    "ollama generate",
    "/api/generate",
    {"prompt": "hello"},
    "application/x-ndjson",
    lambda values: [value["response"] for value in values if "response" in value],
    lambda body: body["response"],
    lambda value: value.get("done") is True,
    _ollama_error,
)
OPENAI_CHAT = Way(
    "openai chat",
    "/v1/chat/completions",
    MESSAGES,
    "text/event-stream",
    lambda values: [choice["delta"].get("content") or "" for choice in _choices(values)],
    lambda body: body["choices"][0]["message"]["content"],
    lambda value: value == "[DONE]",
    _openai_error,
)
OPENAI_COMPLETION = Way(
    "openai completion",
    "/v1/completions",
    {"prompt": "hello"},
    "text/event-stream",
    lambda values: [choice["text"] for choice in _choices(values)],
    lambda body: body["choices"][0]["text"],
    lambda value: value == "[DONE]",
    _openai_error,
)
OPENAI_RESPONSE = Way(
    "openai response",
    "/v1/responses",
    {"input": "hello"},
    "text/event-stream",
    lambda values: [value["delta"] for value in values if value["type"] == "response.output_text.delta"],
    _outputs,
    lambda value: value["type"] in ("response.completed", "response.incomplete"),
    _responses_error,
)
ANTHROPIC = Way(
    "anthropic",
    "/v1/messages",
    {**MESSAGES, "max_tokens": 100},
    "text/event-stream",
    lambda values: [value["delta"]["text"] for value in values if value.get("delta", {}).get("type") == "text_delta"],
    lambda body: "".join(block["text"] for block in body["content"]),
    lambda value: value["type"] == "message_stop",
    _anthropic_error,
)
WAYS = (OLLAMA_CHAT, OLLAMA_GENERATE, OPENAI_CHAT, OPENAI_COMPLETION, OPENAI_RESPONSE, ANTHROPIC)
ONE_OF_EACH = (OLLAMA_CHAT, OPENAI_CHAT, ANTHROPIC)
