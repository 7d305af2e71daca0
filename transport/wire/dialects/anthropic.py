"""The Anthropic dialect for clients, without IO: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

It is never forwarded: it has no log-probabilities, and the servers here that know it end a broken stream without a
word. So requests become neutral ones, and answers are made from chunks (anthropic_reply).

What becomes of the fields that a local model has no use for:

- Passed over, because no answer depends on them: metadata, service_tier, cache_control, betas, context_management,
  inference_geo, speed, citations, signatures, and unknown ones.
- `thinking.budget_tokens` is passed over too: no local runtime bounds the thinking by itself, `max_tokens` bounds both.
  `adaptive` leaves it to the model. `output_config.effort` says how much an enabled thinking thinks.
- Refused, because the answer would not be what was asked for: server tools, `disable_parallel_tool_use`, strict tools,
  containers, MCP servers, images by address, documents, and every other block that is not named here.
- `redacted_thinking` is encrypted for somebody else and left out of the turn it stands in.
- Several text blocks of a turn of the user, or of the system prompt, become one text with line breaks between; where an
  image stood among them is not kept. A failed tool result begins with `Error: `.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from engine.domain.errors import InternalError, InvalidRequest
from engine.domain.generation import Dialect, GenerationRequest, Message, Parameters, Tool, ToolCall
from transport.wire.commands import misfit
from transport.wire.dialects.anthropic_reply import (
    CountReply,
    StreamReply,
    Wanted,
    WholeReply,
    count_body,
    error_body,
    is_object,
)
from transport.wire.dialects.reply import Asked, Reply, ReplyFacts
from transport.wire.nesting import refuse_deep
from transport.wire.request_json import unfit

__all__ = [
    "COUNT_PATH",
    "MESSAGES_PATH",
    "NATIVE_PATHS",
    "count_body",
    "error_body",
    "forward_body",
    "parse",
    "reply_for",
]

MESSAGES_PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
NATIVE_PATHS: Final[tuple[str, ...]] = ()  # no runtime is asked in this dialect
HIDE_THINKING: Final = "hide_thinking"  # in Asked.options, as PROMPT_ONLY
PROMPT_ONLY: Final = "prompt_only"
MESSAGES_MAX: Final = 100_000
TOOLS_MAX: Final = 1024
NAME_CHARS_MAX: Final = 256
STOP_MAX: Final = 10
TOKENS_MAX: Final = 2**31 - 1
EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
FAILED: Final = "Error: "

_ABSENT: Final = msgspec.Raw(b"null")  # msgspec cannot say "raw or null"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]


class _Text(msgspec.Struct, tag="text"):
    text: str


class _Base64(msgspec.Struct, tag="base64"):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Annotated[str, msgspec.Meta(min_length=1)]


class _Image(msgspec.Struct, tag="image"):
    source: _Base64


class _ToolUse(msgspec.Struct, tag="tool_use"):
    id: _Name
    name: _Name
    input: msgspec.Raw


class _ToolResult(msgspec.Struct, tag="tool_result"):
    tool_use_id: _Name
    content: str | list[_Text | _Image] | None = None
    is_error: bool | None = None


class _Thinking(msgspec.Struct, tag="thinking"):
    thinking: str


class _RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    data: str


_Block = _Text | _Image | _ToolUse | _ToolResult | _Thinking | _RedactedThinking


class _Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: _Name
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = _ABSENT
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "none", "tool"]
    name: _Name | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingConfig(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: msgspec.Raw


class _OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _Countable(msgspec.Struct, kw_only=True):
    """What both paths take."""

    model: _Name
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    system: str | list[_Text] | None = None
    tools: Annotated[list[_Tool], msgspec.Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _ThinkingConfig | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None  # where older clients have output_config.format
    container: msgspec.Raw = _ABSENT
    mcp_servers: list[msgspec.Raw] | None = None


class _Body(_Countable, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(max_length=STOP_MAX)] | None
    ) = None


_body_decoder: msgspec.json.Decoder[_Body] = msgspec.json.Decoder(_Body)
_countable_decoder: msgspec.json.Decoder[_Countable] = msgspec.json.Decoder(_Countable)

_EXPECTED: Final = (  # what may stand where a value of a kind was not known; the first that fits
    (re.compile(r"\.source\.type`$"), "base64 (nothing is fetched from elsewhere)"),
    (re.compile(r"\.source\.media_type`$"), "image/jpeg, image/png, image/gif or image/webp"),
    (re.compile(r"\.content\[[^]]*]\.content\[[^]]*]\.type`$"), "text or image"),
    (re.compile(r"\.content\[[^]]*]\.type`$"), "text, image, tool_use, tool_result, thinking or redacted_thinking"),
    (re.compile(r"`\$\.system\[[^]]*]\.type`$"), "text"),
    (re.compile(r"\.role`$"), "user, assistant or system"),
    (re.compile(r"`\$\.thinking\.type`$"), "enabled, disabled or adaptive"),
    (re.compile(r"`\$\.tool_choice\.type`$"), "auto, any, none or tool"),
    (re.compile(r"format\.type`$"), "json_schema"),
)


def parse(path: str, body: bytes) -> Asked:
    """A client's request to MESSAGES_PATH or COUNT_PATH. A count is asked as an answer of one token, which any runtime
    that counts its prompt can give; so is `max_tokens` 0, which warms the model up for this prompt, and its one token
    is not shown. Raises InvalidRequest naming the field."""
    asked: _Countable
    try:
        refuse_deep(body)
        asked = _countable_decoder.decode(body) if path == COUNT_PATH else _body_decoder.decode(body)
        return _asked(path, body, asked)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not a JSON object in UTF-8") from None


def reply_for(asked: Asked, native: bool, facts: ReplyFacts) -> Reply:
    """A reply to what was asked. Raises InternalError for `native`: this dialect is never forwarded."""
    if native:
        raise _never_native()
    if asked.path == COUNT_PATH:
        return CountReply()
    wanted = Wanted(asked.request.parameters.stop, PROMPT_ONLY in asked.options, HIDE_THINKING in asked.options)
    return StreamReply(facts, wanted) if asked.stream else WholeReply(facts, wanted)


def forward_body(asked: Asked, model: str, *, logprobs: bool = True) -> bytes:
    """Raises InternalError: this dialect is never forwarded."""
    raise _never_native()


def _never_native() -> InternalError:
    return InternalError("requests in the Anthropic dialect are translated, never forwarded")


def _explained(error: msgspec.ValidationError) -> InvalidRequest:
    refusal, reason = unfit(error), misfit(error)
    if reason.startswith("Invalid "):
        for pattern, expected in _EXPECTED:
            if pattern.search(reason):
                field = refusal.details["field"]
                return InvalidRequest(f"{field}: use {expected}", field=field)
    return refusal


def _asked(path: str, body: bytes, asked: _Countable) -> Asked:
    for name, there in (("container", bytes(asked.container) != b"null"), ("mcp_servers", bool(asked.mcp_servers))):
        if there:
            raise InvalidRequest(f"{name}: nothing runs here but the model; leave it out")
    output = asked.output_config or _OutputConfig()
    format_ = output.format or asked.output_format
    tools = _tools(asked.tools or [])
    parameters, stream, options = Parameters(max_tokens=1), False, set[str]()
    if isinstance(asked, _Body):
        stream = asked.stream is True
        parameters = Parameters(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            max_tokens=asked.max_tokens or 1,
            stop=tuple(asked.stop_sequences or ()),
        )
        if asked.max_tokens == 0:
            options.add(PROMPT_ONLY)
    if asked.thinking is not None and asked.thinking.display == "omitted":
        options.add(HIDE_THINKING)
    return Asked(
        dialect=Dialect.ANTHROPIC,
        path=path,
        body=body,
        model=asked.model,
        stream=stream,
        request=GenerationRequest(
            model="",
            messages=tuple(_messages(asked)),
            parameters=parameters,
            tools=tools,
            tool_choice=_tool_choice(asked.tool_choice, tools),
            think=_think(asked.thinking, output.effort),
            format=None if format_ is None else _object(format_.schema, "output_config.format.schema"),
        ),
        options=frozenset(options),
    )


def _think(thinking: _ThinkingConfig | None, effort: str | None) -> bool | str | None:
    if thinking is None or thinking.type == "adaptive":
        return None
    if thinking.type == "disabled":
        return False
    return True if effort is None else EFFORTS[effort]


def _tools(asked: list[_Tool]) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for number, tool in enumerate(asked):
        where = f"tools[{number}]"
        if tool.type not in (None, "custom"):
            raise InvalidRequest(f"{where}.type: there are no server tools here; define it as a custom tool and run it")
        if tool.strict:
            raise InvalidRequest(f"{where}.strict: a local model cannot promise that; leave it out, check the input")
        if bytes(tool.input_schema) == b"null":
            raise InvalidRequest(f"{where}.input_schema is required")
        if tool.name in tools:
            raise InvalidRequest(f"{where}.name: another tool has the same name")
        schema = _object(tool.input_schema, f"{where}.input_schema")
        tools[tool.name] = Tool(tool.name, tool.description or "", schema)
    return tuple(tools.values())


def _tool_choice(asked: _ToolChoice | None, tools: tuple[Tool, ...]) -> str:
    if asked is None:
        return "auto"
    if asked.disable_parallel_tool_use:
        raise InvalidRequest("tool_choice.disable_parallel_tool_use: a local model cannot promise that; leave it out")
    if asked.type in ("auto", "none"):
        return asked.type
    if not tools:
        raise InvalidRequest(f"tool_choice.type {asked.type} needs `tools`")
    if asked.type == "any":
        return "required"
    if asked.name not in {tool.name for tool in tools}:
        raise InvalidRequest("tool_choice.name must be the name of one of the tools")
    if asked.name in ("auto", "none", "required"):
        raise InvalidRequest("tool_choice.name: a tool of this name cannot be demanded; give it another name")
    return asked.name or ""


def _messages(asked: _Countable) -> list[Message]:
    """The turns of the conversation; a turn with tool results becomes several."""
    messages: list[Message] = []
    if asked.system:
        system = asked.system if isinstance(asked.system, str) else "\n".join(block.text for block in asked.system)
        messages.append(Message("system", system))
    tool_names: dict[str, str] = {}
    for number, message in enumerate(asked.messages):
        where = f"messages[{number}].content"
        if isinstance(message.content, str):
            messages.append(Message(message.role, message.content))
        elif message.role == "assistant":
            turn = _assistant_turn(message.content, where)
            tool_names.update((call.id, call.name) for call in turn.tool_calls)
            messages.append(turn)
        else:
            messages.extend(_user_turns(message.role, message.content, tool_names, where))
    return messages


def _assistant_turn(blocks: list[_Block], where: str) -> Message:
    text: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    for number, block in enumerate(blocks):
        if isinstance(block, _Text):
            text.append(block.text)
        elif isinstance(block, _Thinking):
            thinking.append(block.thinking)
        elif isinstance(block, _ToolUse):
            calls.append(ToolCall(block.name, _object(block.input, f"{where}[{number}].input"), block.id))
        elif not isinstance(block, _RedactedThinking):
            raise _misplaced(block, "assistant", f"{where}[{number}]")
    return Message("assistant", "".join(text), thinking="".join(thinking), tool_calls=tuple(calls))


def _user_turns(role: str, blocks: list[_Block], tool_names: dict[str, str], where: str) -> list[Message]:
    turns: list[Message] = []
    shown: list[_Text | _Image] = []
    for number, block in enumerate(blocks):
        if isinstance(block, _Text) or (isinstance(block, _Image) and role == "user"):
            shown.append(block)
        elif isinstance(block, _ToolResult) and role == "user":
            if shown:
                turns.append(_turn(role, shown, f"{where}"))
                shown = []
            turns.append(_tool_turn(block, tool_names, f"{where}[{number}].content"))
        else:
            raise _misplaced(block, role, f"{where}[{number}]")
    if shown or not turns:
        turns.append(_turn(role, shown, where))
    return turns


def _tool_turn(result: _ToolResult, tool_names: dict[str, str], where: str) -> Message:
    content = result.content or ""
    turn = Message("tool", content) if isinstance(content, str) else _turn("tool", list(content), where)
    text = f"{FAILED}{turn.content}" if result.is_error else turn.content
    name = tool_names.get(result.tool_use_id, "")
    return Message("tool", text, turn.images, tool_call_id=result.tool_use_id, tool_name=name)


def _turn(role: str, blocks: list[_Text | _Image], where: str) -> Message:
    images = tuple(block.source.data for block in blocks if isinstance(block, _Image))
    if any(image.startswith("data:") for image in images):
        raise InvalidRequest(f"{where}: the data of an image is base64 alone, without `data:` before it")
    return Message(role, "\n".join(block.text for block in blocks if isinstance(block, _Text)), images)


def _misplaced(block: _Block, role: str, where: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: a {block.__struct_config__.tag} block cannot stand in a turn of the {role}")


def _object(raw: msgspec.Raw, where: str) -> str:
    """The JSON text of an object, as the client wrote it."""
    text = bytes(raw).decode()
    if not is_object(text):
        raise InvalidRequest(f"{where} must be an object")
    return text
