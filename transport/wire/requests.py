"""What a generation asks for, on its way to a runtime, without IO: the part of requests in which the dialects agree,
and what is refused because it cannot be said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
import msgspec

from engine.domain.errors import InvalidRequest
from engine.domain.generation import GenerationRequest, Message, Parameters, Tool, ToolCall
from engine.domain.runtime import EmbedRequest

INPUTS_MAX: Final = 2_048  # texts to be embedded with one request; the OpenAI API's own limit

_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", field=field)


def json_object(text: str, field: str) -> msgspec.Raw:
    """`text` to be written as it stands. Raises InvalidRequest that names `field` unless it is one JSON object."""
    try:
        _object_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise refused(field, "not a JSON object") from None
    return msgspec.Raw(text.encode())


def options(parameters: Parameters, max_tokens: str) -> dict[str, Any]:
    """The parameters that are given, and no others; `max_tokens` is the dialect's name for the longest answer."""
    named = {
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "top_k": parameters.top_k,
        max_tokens: parameters.max_tokens,
        "seed": parameters.seed,
        "stop": list(parameters.stop) or None,
        "min_p": parameters.min_p,
        "presence_penalty": parameters.presence_penalty,
        "frequency_penalty": parameters.frequency_penalty,
        "repeat_penalty": parameters.repeat_penalty,
    }
    return {name: value for name, value in named.items() if value is not None}


def gave_no_logprobs(model: str) -> InvalidRequest:
    return refused("logprobs", f"{model} gives none; leave them out, or use another model")


# ── chats ──


def turns(request: GenerationRequest) -> tuple[Message, ...]:
    """The request as a chat: a prompt is the message of a user, `system` a message before all others. Tool messages
    name their call and their tool where the calls before them tell. Raises InvalidRequest for what a chat has no place
    for."""
    if request.raw:
        raise refused("raw", "goes with a prompt, not with messages or tools")
    if request.suffix is not None:
        raise refused("suffix", "goes with a prompt, not with messages or tools")
    if request.messages and request.images:
        raise refused("images", "beside messages they belong to one of them")
    told = request.messages or (Message("user", request.prompt or "", request.images),)
    system = (Message("system", request.system),) if request.system else ()
    return (*system, *_paired(told))


def _paired(messages: Iterable[Message]) -> list[Message]:
    """Calls without an id get one. A tool message takes what it lacks from the call that it answers: the one with its
    id, else the first open one of its tool, or of any tool when it names none."""
    found: list[Message] = []
    calls: list[ToolCall] = []
    answered: set[str] = set()
    for message in messages:
        if message.tool_calls:
            named = tuple(
                call if call.id else attrs.evolve(call, id=f"call_{len(calls) + at}")
                for at, call in enumerate(message.tool_calls)
            )
            calls += named
            message = attrs.evolve(message, tool_calls=named)
        elif message.role == "tool":
            call = _answered(message, calls, answered)
            if call is not None:
                answered.add(call.id)
                name = message.tool_name or call.name
                message = attrs.evolve(message, tool_call_id=call.id, tool_name=name)
        found.append(message)
    return found


def _answered(message: Message, calls: Iterable[ToolCall], answered: set[str]) -> ToolCall | None:
    for call in calls:
        if message.tool_call_id:
            if call.id == message.tool_call_id:
                return call
        elif call.id not in answered and message.tool_name in ("", call.name):
            return call
    return None


# ── tools ──


def offered(request: GenerationRequest) -> tuple[tuple[Tool, ...], bool]:
    """The tools to offer, and whether one of them must be called. For `none` these are none; for the name of a tool it
    is that one alone: naming it beside others is ignored by some servers (llama.cpp)."""
    match request.tool_choice:
        case "auto":
            return request.tools, False
        case "none":
            return (), False
        case "required":
            if not request.tools:
                raise refused("tool_choice", "a call is required, but there are no tools")
            return request.tools, True
        case name:
            named = tuple(tool for tool in request.tools if tool.name == name)
            if not named:
                raise refused("tool_choice", "it is no tool of this request, nor auto, none or required")
            return named, True


def function(tool: Tool) -> dict[str, Any]:
    """A tool in the form that OpenAI and Ollama share."""
    described = {"description": tool.description} if tool.description else {}
    parameters = json_object(tool.parameters, "tools.parameters")
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": parameters}}


# ── runtimes that only answer a question in words ──


def refuse_all_but_words(request: GenerationRequest, runtime: str) -> None:
    """Raises InvalidRequest that names the first field which `runtime` could not follow."""
    asked = {
        "tools": bool(offered(request)[0]),
        "images": bool(request.images) or any(message.images for message in request.messages),
        "think": request.think not in (None, False),
        "format": request.format is not None,
        "suffix": request.suffix is not None,
        "raw": request.raw,
    }
    for field, given in asked.items():
        if given:
            raise refused(field, f"{runtime} models cannot do that; leave it out, or use another model")


def refuse_penalties(parameters: Parameters, runtime: str) -> None:
    """Raises InvalidRequest for a parameter that would change the sampling in a way `runtime` cannot."""
    neutral = {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "repeat_penalty": 1}
    for field, value in neutral.items():
        if getattr(parameters, field) not in (None, value):
            raise refused(field, f"{runtime} models do not sample that way; leave it out, or use another model")


# ── embeddings ──


def check_inputs(request: EmbedRequest) -> None:
    """Raises InvalidRequest when there is nothing to embed, or too much."""
    if not request.inputs:
        raise refused("input", "at least one text is needed")
    if len(request.inputs) > INPUTS_MAX:
        raise refused("input", f"at most {INPUTS_MAX} texts at a time")
