"""Requests of `/v1/responses`, without IO. Nothing is stored: each request has the whole conversation in it.

A reply is always made from chunks, never handed on: servers that speak this dialect report no log-probabilities in it,
and there would be nothing to measure.
"""

from __future__ import annotations

from typing import Any, Final

import attrs
import msgspec

from engine.domain.generation import Dialect, GenerationRequest, Message, Tool
from transport.wire.dialects import openai_asks as asks
from transport.wire.dialects.openai_asks import refused
from transport.wire.dialects.openai_requests import called, declared
from transport.wire.dialects.reply import Asked
from transport.wire.request_json import decode

PATH: Final = "/v1/responses"
ALWAYS_TRANSLATED: Final = "always_translated"
LOGPROBS_INCLUDED: Final = "message.output_text.logprobs"
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_EMPTY: Final = msgspec.Raw()


class _Summary(msgspec.Struct):
    text: str = ""


class _Item(msgspec.Struct):
    """A message, a call, the result of one, or thinking."""

    type: str = "message"
    role: str | None = None
    content: asks.Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: msgspec.Raw = _EMPTY
    output: asks.Content | None = None
    summary: list[_Summary] | None = None


class _Tool(msgspec.Struct):
    type: str
    name: str = ""
    description: str | None = None
    parameters: msgspec.Raw = _EMPTY
    strict: bool | None = None


class _Chosen(msgspec.Struct):
    type: str
    name: str = ""


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = _EMPTY


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Conversation(asks.Sampled):
    input: str | list[_Item] | None = None
    instructions: str | None = None
    max_output_tokens: asks.MaxTokens | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Chosen | None = None
    text: _Text | None = None
    reasoning: asks.Reasoning | None = None
    top_logprobs: asks.TopLogprobs | None = None
    include: list[str] | None = None
    background: bool | None = None
    previous_response_id: msgspec.Raw = _EMPTY
    conversation: msgspec.Raw = _EMPTY
    prompt: msgspec.Raw = _EMPTY


class Echo(msgspec.Struct):
    """What a response repeats of its request."""

    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    parallel_tool_calls: msgspec.Raw = msgspec.Raw(b"true")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning: asks.Reasoning | None = None
    temperature: float | None = None
    text: msgspec.Raw = msgspec.Raw(b"null")
    tool_choice: msgspec.Raw = msgspec.Raw(b'"auto"')
    tools: msgspec.Raw = msgspec.Raw(b"[]")
    top_p: float | None = None


_decoder: Final = msgspec.json.Decoder(_Conversation)
echo_decoder: Final = msgspec.json.Decoder(Echo)


def parse(body: bytes) -> Asked:
    """Raises InvalidRequest naming the field."""
    asked = decode(body, _decoder)
    for field in ("previous_response_id", "conversation", "prompt"):
        if asks.is_given(getattr(asked, field)):
            raise refused(field, "nothing is stored here; send the whole conversation as input")
    if asked.background:
        raise refused("background", "only false: an answer lives as long as its request")
    wanted: set[str] = set()
    tools = _tools(asked.tools or [], wanted)
    top = asked.top_logprobs or 0
    request = GenerationRequest(
        model="",
        messages=_messages(asked, wanted),
        parameters=asks.parameters(asked, asked.max_output_tokens, "max_output_tokens"),
        tools=tools,
        tool_choice=asks.tool_choice(_choice(asked.tool_choice, wanted), tools, wanted),
        think=asks.think(None, asked.reasoning, "reasoning.effort"),
        format=_format(asked.text, wanted),
        top_logprobs=asks.top_asked(top),
    )
    return Asked(
        Dialect.OPENAI,
        PATH,
        body,
        asked.model,
        bool(asked.stream),
        request,
        logprobs=top > 0 or LOGPROBS_INCLUDED in (asked.include or ()),
        top_logprobs=top,
        options=asks.options(asked, wanted) | {ALWAYS_TRANSLATED},
    )


def _messages(asked: _Conversation, wanted: set[str]) -> tuple[Message, ...]:
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    match asked.input:
        case None | "" | []:
            raise refused("input", "is missing")
        case str(text):
            messages.append(Message("user", text))
        case items:
            _add_items(items, messages, wanted)
    return tuple(messages)


def _add_items(items: list[_Item], messages: list[Message], wanted: set[str]) -> None:
    """Thinking and calls are items of their own here, and parts of the assistant's turn everywhere else."""
    thinking = ""
    names: dict[str, str] = {}
    for index, item in enumerate(items):
        at = f"input[{index}]"
        match item.type:
            case "message":
                message = _message(item, at, wanted)
                if message.role == "assistant" and thinking:
                    message, thinking = attrs.evolve(message, thinking=thinking), ""
                messages.append(message)
            case "reasoning":
                thinking += "".join(part.text for part in item.summary or ())
            case "function_call":
                call = called(item.call_id or "", item.name or "", item.arguments, at, wanted)
                names[call.id] = call.name
                if not messages or messages[-1].role != "assistant" or thinking:
                    messages.append(Message("assistant", "", thinking=thinking))
                    thinking = ""
                messages[-1] = attrs.evolve(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
            case "function_call_output":
                text, images = asks.spoken(item.output, f"{at}.output", wanted)
                id_ = item.call_id or ""
                messages.append(Message("tool", text, images, tool_call_id=id_, tool_name=names.get(id_, "")))
            case _:
                wanted.add(f"{at}.type")


def _message(item: _Item, at: str, wanted: set[str]) -> Message:
    role = _ROLES.get((item.role or "").lower())
    if role is None:
        raise refused(f"{at}.role", f"one of {', '.join(_ROLES)}")
    return Message(role, *asks.spoken(item.content, f"{at}.content", wanted))


def _tools(given: list[_Tool], wanted: set[str]) -> tuple[Tool, ...]:
    tools = []
    for index, tool in enumerate(given):
        if tool.type != "function":
            wanted.add(f"tools[{index}].type")
        elif not tool.name:
            raise refused(f"tools[{index}].name", "is missing")
        else:
            tools.append(declared(tool, f"tools[{index}].parameters"))
    return tuple(tools)


def _choice(given: str | _Chosen | None, wanted: set[str]) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if given.type != "function":
        wanted.add("tool_choice.type")
        return None
    return given.name


def _format(text: _Text | None, wanted: set[str]) -> str | None:
    given: Any = text.format if text is not None else None
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return "json"
    if given.type == "json_schema":
        return asks.json_object(given.schema, "text.format.schema")
    wanted.add("text.format.type")
    return None
