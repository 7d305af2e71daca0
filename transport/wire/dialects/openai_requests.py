"""Requests of `/v1/chat/completions` and `/v1/completions`, without IO.

Fields that only say something about the caller or how to bill it (`user`, `metadata`, `store`, `service_tier`, …) and
hints that change no meaning (`verbosity`, `parallel_tool_calls`) are passed over; a runtime that speaks the dialect
gets them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import attrs
import msgspec

from engine.domain.generation import Dialect, GenerationRequest, Message, Tool, ToolCall
from transport.wire.dialects import openai_asks as asks
from transport.wire.dialects.openai_asks import refused
from transport.wire.dialects.reply import Asked
from transport.wire.request_json import decode

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
LEGACY_TOP_MAX: Final = 5  # of the API itself
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_THINKING_SWITCHES: Final = frozenset({"enable_thinking", "thinking"})


class _Called(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Called | None = None


class _Message(msgspec.Struct):
    role: str
    content: asks.Content | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Called | None = None
    tool_call_id: str | None = None


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Function | None = None


class _Chosen(msgspec.Struct):
    type: str = "function"
    function: _Called | None = None
    name: str | None = None


class _JsonSchema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw()


class _Format(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None
    schema: msgspec.Raw = msgspec.Raw()  # llama.cpp's place for it


class _Chat(asks.Sampled):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=list)
    max_tokens: asks.MaxTokens | None = None
    max_completion_tokens: asks.MaxTokens | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: asks.TopLogprobs | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Chosen | None = None
    functions: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    response_format: _Format | None = None
    reasoning_effort: str | None = None
    reasoning: asks.Reasoning | None = None
    chat_template_kwargs: dict[str, msgspec.Raw] | None = None
    modalities: list[str] | None = None
    audio: msgspec.Raw = msgspec.Raw()
    prediction: msgspec.Raw = msgspec.Raw()
    web_search_options: msgspec.Raw = msgspec.Raw()


class _Completion(asks.Sampled):
    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    max_tokens: asks.MaxTokens | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=LEGACY_TOP_MAX)] | None = None


_chat_decoder: Final = msgspec.json.Decoder(_Chat)
_completion_decoder: Final = msgspec.json.Decoder(_Completion)
_text_decoder: Final = msgspec.json.Decoder(str)
_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


# ── chats ──


def parse_chat(body: bytes) -> Asked:
    """Raises InvalidRequest naming the field."""
    chat = decode(body, _chat_decoder)
    if not chat.messages:
        raise refused("messages", "is missing")
    _one("n", chat.n)
    for field in ("functions", "function_call"):
        if asks.is_given(getattr(chat, field)):
            raise refused(field, "no longer taken; use tools and tool_choice")
    if chat.top_logprobs and not chat.logprobs:
        raise refused("top_logprobs", "needs logprobs: true")
    wanted: set[str] = {
        field for field in ("audio", "prediction", "web_search_options") if asks.is_given(getattr(chat, field))
    }
    if set(chat.modalities or ()) - {"text"}:
        wanted.add("modalities")
    tools = _tools(chat.tools or [], wanted)
    named = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    default_top = {asks.DEFAULT_TOP} if chat.logprobs and chat.top_logprobs is None else set()
    request = GenerationRequest(
        model="",
        messages=_messages(chat.messages, wanted),
        parameters=asks.parameters(chat, getattr(chat, named), named),
        tools=tools,
        tool_choice=asks.tool_choice(_choice(chat.tool_choice, wanted), tools, wanted),
        think=_think(chat, wanted),
        format=_format(chat.response_format, wanted),
        top_logprobs=asks.top_asked(chat.top_logprobs or 0),
    )
    return Asked(
        Dialect.OPENAI,
        CHAT_PATH,
        body,
        chat.model,
        bool(chat.stream),
        request,
        logprobs=bool(chat.logprobs),
        top_logprobs=chat.top_logprobs or 0,
        options=asks.options(chat, wanted) | default_top,
    )


def _one(field: str, count: int | None) -> None:
    if count not in (None, 1):
        raise refused(field, "only 1: there is one answer to a request")


def _messages(given: list[_Message], wanted: set[str]) -> tuple[Message, ...]:
    names: dict[str, str] = {}  # of tools, by the id of the call
    return tuple(_message(message, f"messages[{index}]", names, wanted) for index, message in enumerate(given))


def _message(message: _Message, at: str, names: dict[str, str], wanted: set[str]) -> Message:
    role = _ROLES.get(message.role.lower())
    if role is None:
        raise refused(f"{at}.role", f"one of {', '.join(_ROLES)}")
    text, images = asks.spoken(message.content, f"{at}.content", wanted)
    calls = [
        called(call.id or "", call.function.name, call.function.arguments, f"{at}.tool_calls[{index}]", wanted)
        for index, call in enumerate(message.tool_calls or ())
        if call.function is not None
    ]
    if message.function_call is not None:
        legacy = message.function_call
        calls.append(called("", legacy.name, legacy.arguments, f"{at}.function_call", wanted))
    names.update({call.id: call.name for call in calls if call.id})
    found = Message(
        role, text, images, thinking=message.reasoning_content or message.reasoning or "", tool_calls=tuple(calls)
    )
    if role != "tool":
        return found
    id_ = message.tool_call_id or ""
    return attrs.evolve(found, tool_call_id=id_, tool_name=message.name or names.get(id_, ""))


def called(id_: str, name: str, arguments: msgspec.Raw, at: str, wanted: set[str]) -> ToolCall:
    """A call of the past. Arguments are JSON in a string (some clients send the object itself). A model can have
    written ones that are no object: only a runtime that takes the conversation as it is gets them."""
    raw = bytes(arguments).strip() or b"null"
    text = raw if raw.startswith(b"{") else b"{}"
    if raw.startswith(b'"'):
        text = _text_decoder.decode(raw).strip().encode() or b"{}"
        try:
            _object_decoder.decode(text)
        except msgspec.DecodeError:
            wanted.add(f"{at}.function.arguments")
            text = b"{}"
    return ToolCall(name, str(text, "utf-8"), id_)


def _tools(given: list[_Tool], wanted: set[str]) -> tuple[Tool, ...]:
    tools = []
    for index, tool in enumerate(given):
        if tool.type != "function":
            wanted.add(f"tools[{index}].type")
        elif tool.function is None:
            raise refused(f"tools[{index}].function", "is missing")
        else:
            tools.append(declared(tool.function, f"tools[{index}].function.parameters"))
    return tuple(tools)


def declared(tool: Any, field: str) -> Tool:
    """A tool from what has `name`, `description` and `parameters`."""
    schema = asks.json_object(tool.parameters, field) if asks.is_given(tool.parameters) else "{}"
    return Tool(tool.name, tool.description or "", schema)


def _choice(given: str | _Chosen | None, wanted: set[str]) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if given.type != "function":
        wanted.add("tool_choice.type")
        return None
    name = given.function.name if given.function is not None else given.name
    if not name:
        raise refused("tool_choice.function.name", "is missing")
    return name


def _think(chat: _Chat, wanted: set[str]) -> bool | str | None:
    """The effort; without one, the switch that chat templates have."""
    switches = chat.chat_template_kwargs or {}
    if any(
        name not in _THINKING_SWITCHES or bytes(value) not in (b"true", b"false") for name, value in switches.items()
    ):
        wanted.add("chat_template_kwargs")
    effort = asks.think(chat.reasoning_effort, chat.reasoning, "reasoning_effort")
    if effort is not None or not switches:
        return effort
    return next((bytes(value) == b"true" for name, value in switches.items() if name in _THINKING_SWITCHES), None)


def _format(given: _Format | None, wanted: set[str]) -> str | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return asks.json_object(given.schema, "response_format.schema") if asks.is_given(given.schema) else "json"
    if given.type == "json_schema":
        schema = given.json_schema.schema if given.json_schema is not None else given.schema
        return asks.json_object(schema, "response_format.json_schema.schema")
    wanted.add("response_format.type")
    return None


# ── text completions ──


def parse_completion(body: bytes) -> Asked:
    """Raises InvalidRequest naming the field."""
    asked = decode(body, _completion_decoder)
    _one("n", asked.n)
    _one("best_of", asked.best_of)
    if asked.echo:
        raise refused("echo", "the prompt is not repeated; put it before the answer yourself")
    wanted: set[str] = set()
    request = GenerationRequest(
        model="",
        prompt=_prompt(asked, wanted),
        suffix=asked.suffix or None,
        parameters=asks.parameters(asked, asked.max_tokens, "max_tokens"),
        top_logprobs=asks.top_asked(asked.logprobs or 0),
    )
    return Asked(
        Dialect.OPENAI,
        COMPLETIONS_PATH,
        body,
        asked.model,
        bool(asked.stream),
        request,
        logprobs=asked.logprobs is not None,
        top_logprobs=asked.logprobs or 0,
        options=asks.options(asked, wanted),
    )


def _prompt(asked: _Completion, wanted: set[str]) -> str:
    """The one prompt; of token ids only a runtime that takes them knows the text."""
    match asked.prompt:
        case None:
            raise refused("prompt", "is missing")
        case str(text) | [str(text)]:
            return text
        case [int(), *_] | [[*_]]:
            wanted.add("prompt (token ids)")
            return ""
    raise refused("prompt", "one prompt to a request")
