"""Requests in Ollama's native dialect, without IO.

- `/api/generate` knows no tools, so a prompt with tools goes to `/api/chat` as the message of a user.
- Nothing makes the model call a tool: `tool_choice` can be `auto` or `none` (then no tools are offered).
- Whether a model thinks, sees or fills in a middle is for the server to say: it refuses in its own words.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.domain.generation import GenerationRequest, Message
from engine.domain.runtime import EmbedRequest
from transport.wire import requests
from transport.wire.records import TOP_ASKED_MAX

GENERATE_PATH = "/api/generate"
CHAT_PATH = "/api/chat"
EMBED_PATH = "/api/embed"
SHOW_PATH = "/api/show"


def request_path(request: GenerationRequest) -> str:
    return CHAT_PATH if request.messages or requests.offered(request)[0] else GENERATE_PATH


def request_body(
    request: GenerationRequest, *, logprobs: bool = True, truncate: bool = True, keep_alive: str | int | None = None
) -> bytes:
    """The body for `request_path`. Options stand in it only where the request gives them; we never add a runner option
    (num_ctx and the like), since a change of one reloads the model. `truncate=False` has a long prompt refused, not
    cut. `keep_alive` is for requests that give none. Raises InvalidRequest for what cannot be said."""
    return msgspec.json.encode(_fields(request, logprobs, truncate, keep_alive))


def check(request: GenerationRequest) -> None:
    """Raises InvalidRequest for what cannot be said."""
    _fields(request)


def _fields(
    request: GenerationRequest, logprobs: bool = True, truncate: bool = True, keep_alive: str | int | None = None
) -> dict[str, Any]:
    tools, must_call = requests.offered(request)
    if must_call:
        raise requests.refused("tool_choice", "Ollama cannot be made to call a tool; use auto or none")
    body: dict[str, Any] = {"model": request.model, "stream": True}
    if request_path(request) == CHAT_PATH:
        body["messages"] = [_message(message) for message in requests.turns(request)]
        body |= {"tools": [requests.function(tool) for tool in tools]} if tools else {}
    else:
        body |= _prompt(request)
    if request.think is not None:
        body["think"] = request.think
    if request.format is not None:
        body["format"] = "json" if request.format == "json" else requests.json_object(request.format, "format")
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": min(request.top_logprobs, TOP_ASKED_MAX)}
    if not truncate:
        body["truncate"] = False
    keep_alive = keep_alive if request.keep_alive is None else request.keep_alive
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    options = requests.options(request.parameters, "num_predict") | dict(request.runner_options)
    return body | ({"options": options} if options else {})


def _prompt(request: GenerationRequest) -> dict[str, Any]:
    beside = {
        "system": request.system,
        "suffix": request.suffix,
        "images": list(request.images) or None,
        "raw": request.raw or None,
    }
    return {"prompt": request.prompt or ""} | {name: value for name, value in beside.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "function": {
                "name": call.name,
                "arguments": requests.json_object(call.arguments or "{}", "messages.tool_calls.arguments"),
            },
        }
        for call in message.tool_calls
    ]
    beside = {
        "thinking": message.thinking,
        "images": list(message.images),
        "tool_calls": calls,
        "tool_name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.content} | {name: value for name, value in beside.items() if value}


def load_body(model: str, keep_alive: str | int | None = None) -> bytes:
    """A generate request without a prompt: it only loads; with `keep_alive=0` it unloads."""
    body: dict[str, Any] = {"model": model, "stream": False}
    return msgspec.json.encode(body if keep_alive is None else body | {"keep_alive": keep_alive})


def embed_body(request: EmbedRequest, *, keep_alive: str | int | None = None) -> bytes:
    """The body for `EMBED_PATH`; `keep_alive` as in `request_body`. Raises InvalidRequest."""
    requests.check_inputs(request)
    body: dict[str, Any] = {"model": request.model, "input": list(request.inputs), "truncate": request.truncate}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    keep_alive = keep_alive if request.keep_alive is None else request.keep_alive
    return msgspec.json.encode(body if keep_alive is None else body | {"keep_alive": keep_alive})


def show_body(model: str, *, verbose: bool = False) -> bytes:
    return msgspec.json.encode({"model": model} | ({"verbose": True} if verbose else {}))
