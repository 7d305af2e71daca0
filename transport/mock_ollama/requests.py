"""What a client asks: bodies of /api/generate, /api/chat, /api/show and /api/pull as typed values, or why not. Those of
/api/embed are in `embedding`.

Unknown fields and options are ignored and null counts as absent, as in Ollama. No message repeats what was sent.
"""

from __future__ import annotations

import enum
import re
from typing import Any, Final, TypeVar

import attrs
import msgspec

from transport.mock_ollama.script import Fail

TOP_LOGPROBS_MAX: Final = 20
STOPS_MAX: Final = 64
FOREVER_S: Final = 292 * 365.25 * 86_400.0  # the longest duration Go knows, about
_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_DURATION: Final = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+)")
_GO_PART: Final = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")


class Kind(enum.Enum):
    """Which of the two calls an answer is shaped for."""

    GENERATE = "generate"
    CHAT = "chat"


class Property(msgspec.Struct):
    type: str | list[str] | None = None


class ToolParameters(msgspec.Struct):
    properties: dict[str, Property] | None = None


class ToolFunction(msgspec.Struct):
    name: str = ""
    parameters: ToolParameters | None = None


class Tool(msgspec.Struct):
    function: ToolFunction = msgspec.field(default_factory=ToolFunction)


@attrs.frozen
class Ask:
    """One question, the same for both calls. `top_logprobs`: alternatives per token, None when log-probabilities were
    not asked for. `think`: None when the client did not say. `load_only`: nothing to answer, only load or unload."""

    kind: Kind = Kind.GENERATE
    model: str = ""
    prompt: str = attrs.field(default="", repr=False)
    load_only: bool = False
    stream: bool = True
    raw: bool = False
    truncate: bool = True
    num_predict: int | None = None
    seed: int | None = None
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    think: bool | None = None
    tools: tuple[Tool, ...] = ()
    keep_alive_s: float | None = None


class _Options(msgspec.Struct):
    num_predict: int | float | None = None
    seed: int | float | None = None
    stop: list[str] | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    options: msgspec.Raw = msgspec.Raw(b"null")
    keep_alive: float | str | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _GenerateBody(_Body):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _ChatBody(_Body):
    messages: list[_Message] | None = None
    tools: list[Tool] | None = None


class NameBody(msgspec.Struct):
    """/api/show and /api/pull; `name` is the old word for `model`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None

    @property
    def named(self) -> str:
        return self.model or self.name or ""


T = TypeVar("T")


def parse_ask(kind: Kind, body: bytes) -> Ask | Fail:
    """The body of a generate or chat call."""
    parsed = decode(body, _GenerateBody if kind is Kind.GENERATE else _ChatBody)
    if isinstance(parsed, Fail):
        return parsed
    options = _decode_options(parsed.options)
    if isinstance(options, Fail):
        return options
    if not 0 <= (parsed.top_logprobs or 0) <= TOP_LOGPROBS_MAX:
        return Fail(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}", 400)
    keep_alive_s = seconds(parsed.keep_alive)
    if isinstance(keep_alive_s, Fail):
        return keep_alive_s
    return Ask(
        kind=kind,
        model=parsed.model or "",
        stream=parsed.stream is not False,
        truncate=parsed.truncate is not False,
        num_predict=_positive(options.num_predict),
        seed=None if options.seed is None else int(options.seed),
        stops=tuple(stop for stop in options.stop or () if stop),
        top_logprobs=(parsed.top_logprobs or 0) if parsed.logprobs else None,
        think=None if parsed.think is None else bool(parsed.think),
        keep_alive_s=keep_alive_s,
        **_of_kind(parsed),
    )


def decode(body: bytes, shape: type[T]) -> T | Fail:
    """A JSON object as `shape`."""
    if not body.strip():
        return Fail("missing request body", 400)
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        return Fail(f"json: {error}", 400)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Fail("invalid character in the request body: it is not JSON", 400)


def _of_kind(parsed: Any) -> dict[str, Any]:
    if isinstance(parsed, _GenerateBody):
        prompt = parsed.prompt or ""
        text = f"{parsed.system} {prompt}" if parsed.system else prompt
        return {"prompt": text, "load_only": not prompt, "raw": bool(parsed.raw)}
    messages = parsed.messages or []
    return {
        "prompt": " ".join(message.content or "" for message in messages),
        "load_only": not messages,
        "tools": tuple(parsed.tools or ()),
    }


def _decode_options(raw: msgspec.Raw) -> _Options | Fail:
    """Ollama looks at the options later than at the rest, and answers 500."""
    try:
        options = msgspec.json.decode(raw, type=_Options | None) or _Options()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Fail("an option has the wrong type", 500)
    if len(options.stop or ()) > STOPS_MAX:
        return Fail(f"more than {STOPS_MAX} stop sequences", 400)
    return options


def _positive(count: float | None) -> int | None:
    """num_predict ≤ 0 sets no limit."""
    return int(count) if count is not None and count >= 1 else None


def seconds(keep_alive: float | str | None) -> float | None | Fail:
    """A `keep_alive`: a number of seconds or a Go duration; negative is for ever."""
    if isinstance(keep_alive, str):
        match = _GO_DURATION.fullmatch(keep_alive)
        if match is None and keep_alive != "0":
            return Fail("time: invalid duration in keep_alive", 400)
        size_s = sum(float(n) * _UNIT_S[unit] for n, unit in _GO_PART.findall(keep_alive))
        keep_alive = -size_s if match is not None and match[1] == "-" else size_s
    if keep_alive is None:
        return None
    return FOREVER_S if keep_alive < 0 else min(float(keep_alive), FOREVER_S)
