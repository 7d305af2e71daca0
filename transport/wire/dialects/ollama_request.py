"""The bodies of Ollama's dialect as they come from clients, and what they are as neutral requests."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeVar

import attrs
import msgspec

from engine.domain.errors import InvalidRequest
from engine.domain.generation import RUNNER_OPTIONS, TOP_K, GenerationRequest, Message, Parameters, Tool, ToolCall
from transport.wire import request_json

MODEL_CHARS_MAX: Final = 512
STOP_MAX: Final = 10  # of Parameters
REPEAT_LAST_N_DEFAULT: Final = 64  # of Ollama
INT_MAX: Final = 2**63 - 1
ROLES: Final = ("system", "user", "assistant", "tool")
THINK_LEVELS: Final = ("low", "medium", "high", "max")

_DURATION_CHARS_MAX: Final = 64
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = re.compile(rf"[-+]?(?:0|(?:{_PART.pattern})+)")  # as Go writes it
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

T = TypeVar("T")
ModelName = Annotated[str, msgspec.Meta(max_length=MODEL_CHARS_MAX)]
Number = (  # Go takes 4096.0 for an integer
    Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)] | Annotated[float, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)]
)
Text = str | None


class _Function(msgspec.Struct):
    name: str
    description: Text = None
    parameters: msgspec.Raw = msgspec.Raw()


class _Tool(msgspec.Struct):
    function: _Function


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()


class _Called(msgspec.Struct):
    function: _CalledFunction
    id: Text = None


class _Message(msgspec.Struct):
    role: str
    content: Text = None
    thinking: Text = None
    images: list[str] | None = None
    tool_calls: list[_Called] | None = None
    tool_name: Text = None
    tool_call_id: Text = None


class _Options(msgspec.Struct):
    """The options that Ollama heeds. Not here, since they change nothing of the answer's meaning: `num_keep` and
    `draft_num_predict`."""

    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    seed: Number | None = None
    num_predict: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: Number | None = None
    stop: list[str] | None = None
    num_ctx: Number | None = None
    num_batch: Number | None = None
    num_gpu: Number | None = None
    main_gpu: Number | None = None
    num_thread: Number | None = None
    use_mmap: bool | None = None


class AskedBody(msgspec.Struct):
    """What both calls have. `name` is what older clients write for `model`."""

    model: ModelName | None = None
    name: ModelName | None = None
    stream: bool | None = None
    format: msgspec.Raw = msgspec.Raw()
    options: _Options | None = None
    keep_alive: str | Number | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)] | None = None
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class Generate(AskedBody):
    prompt: Text = None
    suffix: Text = None
    system: Text = None
    template: Text = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class Chat(AskedBody):
    messages: list[_Message] | None = None
    tools: list[_Tool] | None = None


generate_decoder: Final = msgspec.json.Decoder(Generate)
chat_decoder: Final = msgspec.json.Decoder(Chat)
_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A client's body. Raises InvalidRequest with the place of the fault and without a word of the body."""
    if not body.strip():
        raise InvalidRequest("missing request body")
    return request_json.decode(body, decoder)


def model_name(model: str | None, name: str | None) -> str:
    """What is asked for: `model`, or `name` as older clients write it."""
    if not (model or name):
        raise InvalidRequest("model is required", field="model")
    return model or name or ""


def keep_alive(value: str | int | float | None) -> str | int | None:
    """How long a model is to stay, as the neutral request has it. Less than a second is 0, which is "leave now"; less
    than nothing is -1, which is "for ever". Raises InvalidRequest for what is no duration."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > _DURATION_CHARS_MAX or not _DURATION.fullmatch(value):
            raise InvalidRequest(
                "keep_alive must be a duration such as `30m`, or a number of seconds", field="keep_alive"
            )
        size_s = sum(float(part[1]) * _UNITS_S[part[2]] for part in _PART.finditer(value))
        kept: str | int = value
        seconds = -size_s if value.startswith("-") else size_s
    else:
        seconds = value
        kept = int(value) if value == int(value) else f"{value}s"
    if seconds < 0:
        return -1
    return 0 if seconds < 1 else kept


# ── the neutral request ──


def generate_request(asked: Generate, found: set[str]) -> GenerationRequest:
    if asked.raw and (asked.template or asked.system or asked.context):
        raise InvalidRequest("raw mode does not support template, system, or context", field="raw")
    if asked.template:
        found.add("template")
    if asked.context:
        found.add("context")
    return GenerationRequest(
        "",
        prompt=asked.prompt or "",
        system=asked.system or None,
        suffix=asked.suffix or None,
        images=_images(asked.images, "images"),
        raw=bool(asked.raw),
    )


def chat_request(asked: Chat, found: set[str]) -> GenerationRequest:
    messages = tuple(_message(message, index, found) for index, message in enumerate(asked.messages or ()))
    tools = (tool.function for tool in asked.tools or ())
    return GenerationRequest(
        "",
        messages=messages,
        tools=tuple(
            Tool(function.name, function.description or "", _json_text(function.parameters)) for function in tools
        ),
    )


def _message(message: _Message, index: int, found: set[str]) -> Message:
    role = message.role.lower()
    if role not in ROLES:
        found.add(f"messages[{index}].role")
    calls = []
    for called in message.tool_calls or ():
        arguments = _arguments(called.function.arguments, f"messages[{index}].tool_calls")
        calls.append(ToolCall(called.function.name, arguments, called.id or ""))
    return Message(
        role,
        message.content or "",
        images=_images(message.images, f"messages[{index}].images"),
        thinking=message.thinking or "",
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id or "",
        tool_name=message.tool_name or "",
    )


def with_shared(request: GenerationRequest, asked: AskedBody, found: set[str], top_logprobs: int) -> GenerationRequest:
    if asked.truncate is False:
        found.add("truncate")
    if asked.shift is False:
        found.add("shift")
    if isinstance(asked.think, str) and asked.think not in THINK_LEVELS:
        raise InvalidRequest(f"think must be true, false or one of {', '.join(THINK_LEVELS)}", field="think")
    options = asked.options or _Options()
    return attrs.evolve(
        request,
        parameters=_parameters(options, found),
        think=asked.think,
        format=_format(asked.format),
        keep_alive=keep_alive(asked.keep_alive),
        top_logprobs=max(TOP_K, top_logprobs),
        runner_options=_runner_options(options),
    )


def _parameters(options: _Options, found: set[str]) -> Parameters:
    def within(name: str, low: float, high: float) -> float | None:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            found.add(f"options.{name}")
            return None
        return None if value is None else float(value)

    def whole(name: str, low: float, high: float) -> int | None:
        value = within(name, low, high)
        return None if value is None else int(getattr(options, name))

    stop = tuple(text for text in options.stop or () if text)
    if len(stop) > STOP_MAX:
        found.add("options.stop")
        stop = ()
    if options.typical_p not in (None, 1):
        found.add("options.typical_p")
    penalties = (options.presence_penalty, options.frequency_penalty)
    penalised = options.repeat_penalty not in (None, 1) or any(penalties)
    if penalised and options.repeat_last_n not in (None, REPEAT_LAST_N_DEFAULT):
        found.add("options.repeat_last_n")
    unlimited = options.num_predict is not None and options.num_predict < 0
    any_seed = options.seed is not None and options.seed < 0
    return Parameters(
        temperature=within("temperature", 0, 2),
        top_p=within("top_p", 0, 1),
        top_k=whole("top_k", 1, 100),
        max_tokens=None if unlimited else whole("num_predict", 1, INT_MAX),
        seed=None if any_seed else whole("seed", 0, INT_MAX),
        stop=stop,
        min_p=within("min_p", 0, 1),
        presence_penalty=within("presence_penalty", -2, 2),
        frequency_penalty=within("frequency_penalty", -2, 2),
        repeat_penalty=within("repeat_penalty", 0, INT_MAX),
    )


def _runner_options(options: _Options) -> dict[str, int | bool]:
    given = {name: getattr(options, name) for name in RUNNER_OPTIONS}
    return {
        name: value if isinstance(value, bool) else int(value) for name, value in given.items() if value is not None
    }


def _format(raw: msgspec.Raw) -> str | None:
    text = str(bytes(raw), "utf-8")
    if text in ("", "null", '""'):
        return None
    if text == '"json"':
        return "json"
    if not text.startswith("{"):
        raise InvalidRequest('format must be "json" or a JSON Schema', field="format")
    return text


def _arguments(raw: msgspec.Raw, field: str) -> str:
    """The arguments of an earlier call: an object, or as other dialects have it an object as text."""
    text = _json_text(raw)
    if text.startswith('"'):
        text = msgspec.json.decode(text, type=str).strip() or "{}"
    try:
        _object_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"{field}: the arguments of a call must be a JSON object", field=field) from None
    return text


def _json_text(raw: msgspec.Raw) -> str:
    text = str(bytes(raw), "utf-8")
    return "{}" if text in ("", "null") else text


def _images(images: list[str] | None, field: str) -> tuple[str, ...]:
    for image in images or ():
        if image.startswith("data:") or not image.isascii():
            raise InvalidRequest(f"{field} must be base64 without a prefix", field=field)
    return tuple(images or ())
