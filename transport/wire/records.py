"""What the dialects of runtimes share, without IO: the limits of what is decoded, the way of a record from bytes to
chunks, the vectors of embeddings, and the part of refusals in which they agree."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from engine.domain.errors import EngineError, InvalidRequest, Overloaded, UpstreamProtocolError
from engine.domain.generation import (
    TOP_MAX,
    Chunk,
    GenerationEnd,
    TokenKind,
    TokenLogprob,
    TokenText,
    ToolCallPart,
    TopEntry,
)

ENTRIES_MAX: Final = 65_536  # log-probability entries in one record; a whole answer is one
TOP_ASKED_MAX: Final = 20  # the OpenAI API's own limit; Ollama answers 400 above it
COUNT_MAX: Final = 2**53
DIMENSIONS_MAX: Final = 65_536  # of an embedding
REPORTED_CHARS_MAX: Final = 200  # of the runtime's own error text
LOGPROB_ROUNDING: Final = 1e-3  # float32 sums can come out a little above zero

LogProb = Annotated[float, msgspec.Meta(le=LOGPROB_ROUNDING)]
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Entries = Annotated[tuple[TokenLogprob, ...], msgspec.Meta(max_length=ENTRIES_MAX)]
Part = tuple[TokenKind, str]
T = TypeVar("T")
Loose = TypeVar("Loose")

_BYTE: Final = re.compile(r" \(byte (\d+)\)")


class Top(msgspec.Struct, gc=False):
    token: TokenText
    logprob: LogProb | None


class Entry(msgspec.Struct):
    """The log-probability of one token, with the alternatives to it, where they are not what they should be: a little
    above zero, or null. llama.cpp goes on when a model's arithmetic overflows, and writes NaN as null."""

    token: TokenText
    logprob: LogProb | None
    top_logprobs: Annotated[list[Top], msgspec.Meta(max_length=TOP_MAX)] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"")


class _Call(msgspec.Struct):
    id: str | None = None
    index: Count | None = None
    function: _Function | None = None


_call_decoder: Final = msgspec.json.Decoder(_Call)
_Vector = Annotated[list[float], msgspec.Meta(min_length=1, max_length=DIMENSIONS_MAX)]
_vector_decoder: Final[msgspec.json.Decoder[list[float]]] = msgspec.json.Decoder(_Vector)


# ── from bytes ──


def decode(data: bytes, decoder: msgspec.json.Decoder[T], offset: int = 0) -> T:
    """One JSON value. Raises UpstreamProtocolError with the place of the fault and without a word of `data`, which
    starts at `offset` in the stream."""
    try:
        str(data, "utf-8")  # the decoder does not look into the strings it skips
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        reason, at = "it is not UTF-8", error.start
    except RecursionError:
        reason, at = "it is nested too deeply", 0
    except msgspec.DecodeError as error:  # its text names types and paths, never a value
        found = _BYTE.search(str(error))
        reason, at = _BYTE.sub("", str(error)), int(found[1]) if found else 0
    raise UpstreamProtocolError(
        f"the runtime sent a record that cannot be read at byte {offset + at}: {reason}", offset=offset + at
    )


def decode_either(
    data: bytes, strict: msgspec.json.Decoder[T], loose: msgspec.json.Decoder[Loose], offset: int = 0
) -> T | Loose:
    """As `decode`. Nearly every record is what it should be, and `strict` gives its entries as they are used; what it
    refuses, `loose` takes or finds wrong."""
    try:
        str(data, "utf-8")
        return strict.decode(data)
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError):
        return decode(data, loose, offset)


def vector(data: msgspec.Raw) -> tuple[float, ...]:
    """An embedding. Raises UpstreamProtocolError unless it is a list of finite numbers."""
    found: list[float] = decode(bytes(data), _vector_decoder)
    return tuple(found)


def printable(text: str, quotes: Iterable[str]) -> str:
    """A runtime's error text, safe to pass on: printable, short, and cut where one of `quotes` begins to repeat what
    was asked or answered."""
    for quote in quotes:
        text = text.partition(quote)[0]
    return "".join(char if char.isprintable() else "?" for char in text[:REPORTED_CHARS_MAX])


def refusal(status: int, said: str, model: str, runtime: str, invalid: Collection[int]) -> EngineError:
    """The error for a status that no dialect has a word of its own for. `said` goes behind the sentence; `invalid` are
    the statuses by which the request is at fault."""
    if status in (429, 503):
        return Overloaded(f"{runtime} is busy{said}", runtime=runtime, retry_after_s=1)
    if status in invalid:
        return InvalidRequest(f"{runtime} refused the request for {model}{said}", model=model)
    return UpstreamProtocolError(f"{runtime} answered {status}{said}", status=status)


# ── to chunks ──


def parts(thinking: str | None, answer: str | None, calls: Iterable[msgspec.Raw] | None) -> list[Part]:
    """The texts of a record by kind, in the order in which a model writes them; an empty answer when it has none. The
    text of tool calls is their compact JSON, one after the other."""
    found = [(TokenKind.THINKING, thinking)] if thinking else []
    if answer:
        found.append((TokenKind.ANSWER, answer))
    if calls:
        found.append((TokenKind.TOOL, "".join(str(msgspec.json.format(bytes(c), indent=-1), "utf-8") for c in calls)))
    return found or [(TokenKind.ANSWER, "")]


def call_parts(calls: Iterable[msgspec.Raw], offset: int, begin: int | None = None) -> tuple[ToolCallPart, ...]:
    """The calls, or pieces of them, that a record holds. With `begin` they are whole, and numbered from there; else
    their index is what the record says, or their place in it. Arguments may be an object or its text. `offset` is where
    the record starts in the stream. Raises UpstreamProtocolError for what is no call."""
    found = []
    for place, data in enumerate(calls):
        try:
            call = _call_decoder.decode(bytes(data))
            function = call.function or _Function()
            arguments = _arguments(function.arguments)
        except (msgspec.DecodeError, RecursionError):
            raise UpstreamProtocolError(
                f"the runtime sent a record that cannot be read at byte {offset}: one of its tool calls is none",
                offset=offset,
            ) from None
        index = place if call.index is None else call.index
        found.append(
            ToolCallPart(index if begin is None else begin + place, function.name or "", arguments, call.id or "")
        )
    return tuple(found)


def _arguments(data: msgspec.Raw) -> str:
    text = bytes(data)
    if text in (b"", b"null"):
        return ""
    if text.startswith(b'"'):
        return msgspec.json.decode(text, type=str)
    return str(msgspec.json.format(text, indent=-1), "utf-8")


def token_logprobs(entries: Sequence[Entry], tokens: Iterable[str]) -> tuple[TokenLogprob, ...]:
    """The `entries` for what `tokens` say their texts are. None at all when one of them has no value."""
    found = []
    for entry, token in zip(entries, tokens, strict=True):
        if entry.logprob is None:
            return ()
        top = ((top.token, top.logprob) for top in entry.top_logprobs or ())
        known = tuple(TopEntry(text, min(0.0, value)) for text, value in top if value is not None)
        found.append(TokenLogprob(token, min(0.0, entry.logprob), known))
    return tuple(found)


def chunks(
    parts: Sequence[Part],
    entries: tuple[TokenLogprob, ...],
    t_us: int,
    raw: bytes,
    end: GenerationEnd | None = None,
    calls: tuple[ToolCallPart, ...] = (),
) -> tuple[Chunk, ...]:
    """The chunks of one record, one per part. `raw` is on the first of them, `end` on the last, `calls` are those of
    the part that is of tool calls."""
    if len(parts) == 1:
        ((kind, text),) = parts
        return (Chunk(text, t_us, kind, entries, end, raw, calls if kind is TokenKind.TOOL else ()),)
    last = len(parts) - 1
    return tuple(
        Chunk(
            text=text,
            t_us=t_us,
            kind=kind,
            logprobs=logprobs,
            end=end if index == last else None,
            raw=b"" if index else raw,
            tool_calls=calls if kind is TokenKind.TOOL else (),
        )
        for index, ((kind, text), logprobs) in enumerate(zip(parts, _dealt(parts, entries), strict=True))
    )


def _dealt(parts: Sequence[Part], entries: tuple[TokenLogprob, ...]) -> list[tuple[TokenLogprob, ...]]:
    """The entries per part: each part takes the next ones that spell it, none when they do not, and the last takes what
    is left."""
    dealt: list[tuple[TokenLogprob, ...]] = []
    for _, text in parts[:-1]:
        spelled, count = "", 0
        while count < len(entries) and len(spelled) < len(text):
            spelled += entries[count].token
            count += 1
        taken = count if spelled == text else 0
        dealt.append(entries[:taken])
        entries = entries[taken:]
    return [*dealt, entries]
