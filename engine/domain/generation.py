"""One generation, from the request to the last token.

Times are integer microseconds on the engine clock (monotonic, zero when the engine started). Log-probabilities are
natural logarithms and ≤ 0. Text is what the runtime reported, never changed.

What is made for every token is a msgspec Struct: it costs a tenth of a frozen attrs class, takes part in no garbage
collection, and a record of a runtime can be decoded straight into it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import attrs
import msgspec

from engine.domain.synthesis import CouncilReport

TOP_K: Final = 10  # entries asked of a runtime per token; the certainty formula uses these, whatever the client asked

RUNNER_OPTIONS: Final = (  # of Ollama: a change of one makes it load the model again
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
)

TOKEN_CHARS_MAX: Final = 16 * 1024
TOP_MAX: Final = 64  # alternatives of one token; more than anybody may ask for

TokenText = Annotated[str, msgspec.Meta(max_length=TOKEN_CHARS_MAX)]
LogProb = Annotated[float, msgspec.Meta(le=0.0)]
Clock = Callable[[], int]  # microseconds on the engine clock; may be called from any thread


class Origin(enum.StrEnum):
    """Who asked for a session."""

    DASHBOARD = "dashboard"
    API = "api"
    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    SERVICE = "service"
    SATELLITE = "satellite"


@attrs.frozen
class StreamRef:
    """One model stream of a session; `model` is its public name."""

    session_id: str
    stream_id: str
    model: str


class Dialect(enum.StrEnum):
    """A way to ask for an answer over HTTP."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class TokenKind(enum.StrEnum):
    ANSWER = "answer"
    THINKING = "thinking"
    TOOL = "tool"


class EndReason(enum.StrEnum):
    """Why a session is over. FINISHED: the model ended its answer. LENGTH: max_tokens. STOP: a stop string.
    ABORTED: someone stopped it. TRUNCATED: the runtime broke off without its terminal record."""

    FINISHED = "finished"
    LENGTH = "length"
    STOP = "stop"
    ABORTED = "aborted"
    ERROR = "error"
    TRUNCATED = "truncated"
    SHUTDOWN = "shutdown"


@attrs.frozen
class ToolCall:
    """A call the model asked for. `arguments` is one JSON object as text; `id` pairs it with its result (empty where
    the dialect has none)."""

    name: str
    arguments: str
    id: str = ""


@attrs.frozen
class Tool:
    """A function the model may call. `parameters` is its JSON Schema as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


@attrs.frozen
class Message:
    """One turn. `images` are base64 without a prefix. A `tool` message answers the call `tool_call_id` of the tool
    `tool_name` (either may be empty, as the caller's dialect has it)."""

    role: str  # system | user | assistant | tool
    content: str
    images: tuple[str, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""


@attrs.frozen
class Parameters:
    """Sampling parameters; None means the runtime's own default."""

    temperature: float | None = None  # 0–2
    top_p: float | None = None  # 0–1
    top_k: int | None = None  # 1–100
    max_tokens: int | None = None  # ≥ 1
    seed: int | None = None
    stop: tuple[str, ...] = ()  # ≤ 10
    min_p: float | None = None  # 0–1
    presence_penalty: float | None = None  # -2–2
    frequency_penalty: float | None = None  # -2–2
    repeat_penalty: float | None = None  # ≥ 0


@attrs.frozen
class ResumeRules:
    """What may be done when an answer breaks off after its first token: ask the `same` model again, or the next of
    `models` (public names) for `other`, with the text so far as the beginning of its answer. `attempts_max` counts per
    answer; before the n-th there is a pause of n times `pause_s` seconds. `refused`: why not, for this very request."""

    attempts_max: int = 1
    who: Literal["same", "other"] = "same"
    models: tuple[str, ...] = ()
    pause_s: float = 1.0
    refused: str | None = None


@attrs.frozen
class Seam:
    """Where an answer broke off and goes on: `position` and `offset` are those of the first token behind it, `model` is
    the public name of who goes on, `reason` the code of what broke it, `attempt` counts from 1. At position 0 nothing
    had been said yet: the whole answer is that model's, in place of the one that was asked. `origin` is satellite where
    it is outside this machine, null otherwise."""

    stream_id: str
    model: str
    position: int
    offset: int
    reason: str
    attempt: int
    origin: Origin | None = None


@attrs.frozen
class GenerationRequest:
    """What a runtime is asked for: `model` is its own name for the model; exactly one of prompt and messages is set.

    A runtime that cannot do what is asked here raises InvalidRequest naming the field; it never leaves it out in
    silence. `think`: None is the model's own way, else off, on, or how much (low, medium, high). `format` is `json` or
    a JSON Schema as text. `tool_choice` is auto, none, required or the name of a tool. `raw` prompts go to the model
    without its template. With `continues` the last message is the beginning of the answer, to be gone on with. `resume`
    is for whoever reads the answer, not for the runtime. Log-probabilities are always asked for and may be missing,
    unless `logprobs_wanted`: then the caller asked for them too, and a runtime that refuses them refuses the
    request."""

    model: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    parameters: Parameters = attrs.field(factory=Parameters)
    system: str | None = None  # beside a prompt
    suffix: str | None = None  # what comes after the answer to a prompt
    images: tuple[str, ...] = ()  # beside a prompt
    raw: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    think: bool | str | None = None
    format: str | None = None
    keep_alive: str | int | None = None  # a duration such as 30m, or seconds; negative: for ever
    top_logprobs: int = TOP_K
    logprobs_wanted: bool = False
    runner_options: Mapping[str, int | bool] = attrs.field(factory=dict)  # `num_ctx` and the like; see RUNNER_OPTIONS
    continues: bool = False
    resume: ResumeRules | None = None  # None: a broken answer stays broken


class TopEntry(msgspec.Struct, frozen=True, gc=False):
    """One candidate for a position: its text and its natural log-probability. The bounds hold for what is decoded."""

    token: TokenText
    logprob: LogProb


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """What the runtime reported of one generated token. `top` may be empty, shorter than asked, or unsorted; runtimes
    call it `top_logprobs`."""

    token: TokenText
    logprob: LogProb
    top: Annotated[tuple[TopEntry, ...], msgspec.Meta(max_length=TOP_MAX)] = msgspec.field(
        default=(), name="top_logprobs"
    )


@attrs.frozen
class GenerationEnd:
    """The runtime's terminal record. `eval_count` is its own token count, `prompt_tokens` its prompt count, if it
    said so. `prompt_tokens_dropped` > 0 means that it cut the prompt,
    None that nobody can tell."""

    reason: EndReason
    prompt_tokens: int | None = None
    eval_count: int | None = None
    prompt_tokens_dropped: int | None = 0
    load_ms: float | None = None  # what the runtime says it spent on getting the model ready for this request
    resumed: int = 0  # seams in the answer; the runtime's counts are then of nobody's whole, and null
    report: CouncilReport | None = None


@attrs.frozen
class ToolCallPart:
    """A call, or the next piece of one: pieces of the same `index` belong together, `arguments` are to be joined. The
    first piece has the name."""

    index: int
    name: str = ""
    arguments: str = ""
    id: str = ""


class Chunk(msgspec.Struct, frozen=True):
    """One record of a runtime's stream: zero or more tokens, and perhaps the end.

    A chunk is not a token: `logprobs` has one entry per token the runtime reported for it (none: count it as one token
    if it has text). `t_us` is the arrival, stamped when the bytes were read and before any queue. `raw` is the record
    verbatim where there is a wire.
    """

    text: str
    t_us: int
    kind: TokenKind = TokenKind.ANSWER
    logprobs: tuple[TokenLogprob, ...] = ()
    end: GenerationEnd | None = None
    raw: bytes = b""
    tool_calls: tuple[ToolCallPart, ...] = ()  # with kind TOOL
    seam: Seam | None = None  # the answer broke off before this chunk and goes on with it


class Token(msgspec.Struct, frozen=True, gc=False):
    """One token of one stream.

    `position` counts tokens from 0, `offset` is the UTF-8 byte offset of `text` within the stream's text of the same
    kind. `delta_us` is the time since the previous token of the stream (None for the first; 0 with `coalesced` when it
    shared a chunk). `throttled`: our own queue was full before it, so its timing says nothing about the model.
    """

    text: str
    kind: TokenKind
    position: int
    offset: int
    t_us: int
    delta_us: int | None
    logprob: float | None = None
    top: tuple[TopEntry, ...] = ()
    coalesced: bool = False
    throttled: bool = False
