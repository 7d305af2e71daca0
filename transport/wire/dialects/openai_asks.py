"""What the requests of the OpenAI dialect have in common: the fields of every kind of generation, parts
of messages, tools and formats. Without IO.

What a translated request cannot say is not refused here: a runtime that speaks the dialect itself may well understand
it. It is noted as `needs:<field>` in `Asked.options`, for whoever would have to translate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Final

import msgspec

from engine.domain.errors import InvalidRequest
from engine.domain.generation import TOP_K, Parameters, Tool
from transport.wire.commands import printable
from transport.wire.records import TOP_ASKED_MAX

STOPS_MAX: Final = 10
MODEL_CHARS_MAX: Final = 256
TOP_K_MAX: Final = 100
REPEAT_PENALTY_MAX: Final = 10.0
EFFORTS: Final[dict[str, bool | str]] = {  # → think; the neutral request knows three degrees
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
IMAGE_PARTS: Final = frozenset({"image_url", "input_image"})
INCLUDE_USAGE: Final = "include_usage"

Model = Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_CHARS_MAX)]
MaxTokens = Annotated[int, msgspec.Meta(ge=-2, le=2**31)]  # below zero: as many as it takes
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=TOP_ASKED_MAX)]
Stop = str | list[str]

_DATA_URL: Final = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")


class ImageUrl(msgspec.Struct):
    url: str


class Part(msgspec.Struct):
    """A part of a message: text, an image, or something else."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None


Content = str | list[Part]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    enabled: bool | None = None
    summary: str | None = None


class Sampled(msgspec.Struct):
    """The fields that every kind of generation has. `top_k`, `min_p` and the repeat penalty (which has two names) are
    no fields of the API itself, but of most servers that speak it."""

    model: Model
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=TOP_K_MAX)] | None = None
    min_p: Fraction | None = None
    seed: int | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0, le=REPEAT_PENALTY_MAX)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0, le=REPEAT_PENALTY_MAX)] | None = None
    logit_bias: msgspec.Raw = msgspec.Raw()
    grammar: msgspec.Raw = msgspec.Raw()
    guided_json: msgspec.Raw = msgspec.Raw()
    guided_regex: msgspec.Raw = msgspec.Raw()
    guided_choice: msgspec.Raw = msgspec.Raw()
    guided_grammar: msgspec.Raw = msgspec.Raw()
    structured_outputs: msgspec.Raw = msgspec.Raw()


NEEDED: Final = (  # fields that bend an answer and have no neutral name
    "logit_bias",
    "grammar",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
)


# ── refusals ──


def refused(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {why}", field=field)


def is_given(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() not in (b"", b"null", b"{}", b"[]", b'""')


def needs(fields: Iterable[str]) -> frozenset[str]:
    return frozenset(f"needs:{field}" for field in fields)


# ── parameters ──


def parameters(asked: Sampled, max_tokens: int | None, field: str) -> Parameters:
    """`field` is what the dialect calls the longest answer."""
    if max_tokens == 0:
        raise refused(field, "at least 1 (leave it out for the model's own end)")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) > STOPS_MAX:
        raise refused("stop", f"at most {STOPS_MAX} strings")
    if asked.seed is not None and not -(2**63) <= asked.seed < 2**64:
        raise refused("seed", "a whole number of 64 bits")
    repeat = asked.repeat_penalty if asked.repeat_penalty is not None else asked.repetition_penalty
    return Parameters(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        max_tokens=None if max_tokens is None or max_tokens < 0 else max_tokens,
        seed=asked.seed,
        stop=tuple(stop for stop in stops if stop),
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repeat_penalty=repeat,
    )


def options(asked: Sampled, more: Iterable[str] = ()) -> frozenset[str]:
    """`include_usage`, and what a translation would need."""
    wanted = [name for name in NEEDED if is_given(getattr(asked, name))]
    found = needs([*wanted, *more])
    if asked.stream_options is not None and asked.stream_options.include_usage:
        found |= {INCLUDE_USAGE}
    return found


AS_ONE: Final = "as_one"  # the whole answer is to be the runtime's own, not made from its stream
DEFAULT_TOP: Final = "default_top"  # log-probabilities without a number of alternatives: each server has its own


def top_asked(top_logprobs: int) -> int:
    """Alternatives to ask of a runtime for a client that wants `top_logprobs`."""
    return max(TOP_K, top_logprobs)


def think(effort: str | None, reasoning: Reasoning | None, field: str) -> bool | str | None:
    """What the efforts of both spellings mean. Raises InvalidRequest for a word that is none."""
    if effort is None and reasoning is not None:
        effort, field = reasoning.effort, "reasoning.effort"
    if effort is None:
        return reasoning.enabled if reasoning is not None else None
    if effort not in EFFORTS:
        raise refused(field, f"one of {', '.join(EFFORTS)}")
    return EFFORTS[effort]


# ── messages ──


def spoken(content: Content | None, field: str, wanted: set[str]) -> tuple[str, tuple[str, ...]]:
    """The text and the images of a message. Parts of other kinds are added to `wanted`."""
    if content is None or isinstance(content, str):
        return content or "", ()
    texts, images = [], []
    for index, part in enumerate(content):
        at = f"{field}[{index}]"
        if part.type in TEXT_PARTS:
            texts.append(part.text or part.refusal or "")
        elif part.type in IMAGE_PARTS:
            images.append(image(part.image_url, at))
        else:
            wanted.add(f"{at}.type")
    return "\n".join(texts), tuple(images)


def image(given: ImageUrl | str | None, at: str) -> str:
    """The base64 of a data URL. Raises InvalidRequest for any other URL: nothing is fetched."""
    url = given.url if isinstance(given, ImageUrl) else given
    if url is None:
        raise refused(f"{at}.image_url", "is missing")
    head = _DATA_URL.match(url)
    if head is None:
        raise refused(f"{at}.image_url", "a data URL of an image (data:image/png;base64,…); nothing is fetched")
    if _BASE64.fullmatch(url, head.end()) is None:
        raise refused(f"{at}.image_url", "is not base64")
    return url[head.end() :]


# ── tools and formats ──


def tool_choice(choice: str | None, tools: Sequence[Tool], wanted: Collection[str]) -> str:
    """`choice` is a word or the name of a tool. Raises InvalidRequest for neither; among tools of kinds that nobody
    here knows (in `wanted`) it cannot be told."""
    field = "tool_choice"
    if choice is None or any(of.startswith("tools[") for of in wanted):
        return "auto"
    if choice in ("auto", "none"):
        return choice
    if not tools:
        raise refused(field, "there are no tools to choose from")
    if choice in ("required", "any"):
        return "required"
    if all(choice != tool.name for tool in tools):
        raise refused(field, f"there is no tool {printable(choice, 64)}")
    return choice


def json_object(raw: msgspec.Raw, field: str) -> str:
    """The text of a JSON object. Raises InvalidRequest for another value."""
    text = str(bytes(raw), "utf-8").strip()
    if not text.startswith("{"):
        raise refused(field, "a JSON object")
    return text
