"""Events of an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def entry(token: str, logprob: float = -1.0, data: bytes | None = None, **values: object) -> dict[str, Any]:
    """One log-probability; `data` are its bytes."""
    return {"token": token, "logprob": logprob, "bytes": None if data is None else list(data), **values}


def delta(content: str | None = None, *entries: dict[str, Any], **values: object) -> bytes:
    """One chunk of a chat."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": content, **values}, "finish_reason": None}
    if entries:
        choice["logprobs"] = {"content": list(entries)}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def finish(reason: str = "stop", **values: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason, **values}]})


def usage(prompt_tokens: int = 3, completion_tokens: int = 2) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})
