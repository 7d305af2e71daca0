"""The OpenAI dialect of local servers (llama.cpp, vLLM, LM Studio, …), without IO: stream events to chunks, listings to
values. Requests are in `openai_requests`.

What is particular to it:

- `finish_reason` comes with a chunk of its own, the counts (`usage`) after it, then `[DONE]`; counts and `[DONE]` may
  be missing. So the end is told at `[DONE]` or at the end of the body, and only when a `finish_reason` was seen.
- `stop` is both the end of an answer and a stop string; only vLLM tells them apart (`stop_reason`). `content_filter`
  and `tool_calls` end as FINISHED too: the server ended the answer on purpose and said so, and `raw` keeps its word.
  `error` (OpenRouter) and `abort` (vLLM, SGLang) are no ends of an answer but faults.
- The token of a log-probability entry can be part of a character; its `bytes` say which part.
- A very unlikely entry is -9999 (OpenAI, vLLM) or the lowest float (llama.cpp); both are passed on as reported.
- Asking for log-probabilities may be refused, or answered without any (LM Studio).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import attrs
import msgspec

from engine.domain.errors import EngineError, ModelNotFound, RuntimeUnavailable, UpstreamProtocolError
from engine.domain.generation import (
    TOKEN_CHARS_MAX,
    TOP_MAX,
    Chunk,
    EndReason,
    GenerationEnd,
    TokenKind,
    TokenLogprob,
    TokenText,
    ToolCallPart,
    TopEntry,
)
from transport.wire import records
from transport.wire.openai_requests import CHAT_PATH
from transport.wire.records import ENTRIES_MAX, Count, LogProb, Part
from transport.wire.sse import Event, EventStream

MODELS_PATH: Final = "/v1/models"
PROPS_PATH: Final = "/props"  # of llama.cpp
DONE: Final = b"[DONE]"
CHOICES_MAX: Final = 16  # one is asked for
_BROKEN: Final = frozenset({"error", "abort"})
# Servers that check requests with pydantic quote the request after `input`; llama.cpp quotes the answer that it cannot
# take apart.
_QUOTES: Final = (" raw=", "'input'", '"input"', "input_value=", " at pos ")
_UNABLE: Final = re.compile(r"input is not supported")  # llama.cpp's 500 for an image that the model cannot see

_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_TokenBytes = Annotated[list[_Byte], msgspec.Meta(max_length=4 * TOKEN_CHARS_MAX)]


class _Entry(records.Entry):
    bytes: _TokenBytes | None = None


class _LogProbs(msgspec.Struct):
    """`content` in chats; the three lists, one item per token, in text completions."""

    content: Annotated[list[_Entry], msgspec.Meta(max_length=ENTRIES_MAX)] | None = None
    tokens: Annotated[list[TokenText], msgspec.Meta(max_length=ENTRIES_MAX)] | None = None
    token_logprobs: Annotated[list[LogProb | None], msgspec.Meta(max_length=ENTRIES_MAX)] | None = None
    top_logprobs: (
        Annotated[
            list[Annotated[dict[TokenText, LogProb], msgspec.Meta(max_length=TOP_MAX)] | None],
            msgspec.Meta(max_length=ENTRIES_MAX),
        ]
        | None
    ) = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # in answers that are no streams
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _LogProbs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Error(msgspec.Struct):
    message: str | None = None


class _Record(msgspec.Struct):
    """One event of a stream: a `chat.completion.chunk`, a `text_completion`, or an error in one of its three forms."""

    choices: Annotated[list[_Choice], msgspec.Meta(max_length=CHOICES_MAX)] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None
    object: str | None = None
    message: str | None = None

    @property
    def fault(self) -> str | None:
        """What the server says about an error; empty when it only says that there is one."""
        if isinstance(self.error, _Error):
            return self.error.message or ""
        if self.error is None and self.object == "error":
            return self.message or ""
        return self.error


class _Embedding(msgspec.Struct):
    index: Count
    embedding: msgspec.Raw


class Embedded(msgspec.Struct):
    """The answer of `/v1/embeddings`; the vectors are for `records.vector`, one at a time: together they can be
    large."""

    data: list[_Embedding]
    usage: _Usage | None = None

    def in_order(self) -> list[msgspec.Raw]:
        """The vectors in the order of the texts. Raises UpstreamProtocolError when one is missing or is there twice."""
        found = sorted(self.data, key=lambda item: item.index)
        if [item.index for item in found] != list(range(len(found))):
            raise UpstreamProtocolError("the runtime sent embeddings that are not one per text")
        return [item.embedding for item in found]


class ListedModel(msgspec.Struct):
    """A model of `/v1/models`. `owned_by` names the software on local servers."""

    id: str
    owned_by: str | None = None


class _TemplateCaps(msgspec.Struct):
    supports_tools: bool = True


class _Props(msgspec.Struct):
    chat_template_caps: _TemplateCaps = msgspec.field(default_factory=_TemplateCaps)


class _Models(msgspec.Struct):
    data: list[ListedModel]


_record_decoder: Final = msgspec.json.Decoder(_Record)
_models_decoder: Final = msgspec.json.Decoder(_Models)
_props_decoder: Final = msgspec.json.Decoder(_Props)
_embedded_decoder: Final = msgspec.json.Decoder(Embedded)


# ── the stream ──


@attrs.define(eq=False)
class ChunkStream:
    """The bytes of one answer to its chunks; each event is the `raw` of one chunk.

    `finishing`: a `finish_reason` was seen, only counts and `[DONE]` can still come. `ended`: the last chunk was handed
    out; it carries the end, unless no `finish_reason` came before `[DONE]`. What comes after it is ignored and counted
    in `late_records`. `cut`: the stream ended inside an event. `reported`: the error that was raised is an event of the
    server's own. `logprobs`: entries seen; `unscored`: pieces of the answer without one. `secret` is kept out of error
    texts.
    """

    secret: str = attrs.field(default="", repr=False)
    ended: bool = attrs.field(default=False, init=False)
    late_records: int = attrs.field(default=0, init=False)
    cut: bool = attrs.field(default=False, init=False)
    reported: bool = attrs.field(default=False, init=False)
    logprobs: int = attrs.field(default=0, init=False)
    unscored: int = attrs.field(default=0, init=False)
    _events: EventStream = attrs.field(factory=EventStream, init=False)
    _reason: EndReason | None = attrs.field(default=None, init=False)
    _usage: _Usage = attrs.field(factory=_Usage, init=False)

    @property
    def finishing(self) -> bool:
        return self._reason is not None

    def feed(self, data: bytes, t_us: int) -> Iterator[Chunk]:
        """The chunks of one read, which all arrived at `t_us`. Consume it whole. Raises UpstreamProtocolError for an
        event that is no such record and for an error the server reports, after the chunks before it."""
        events = self._events.feed(data)
        if self.ended:
            self._count_late(events)
            return
        for event in events:
            if event.data == DONE:
                self.ended = True
                self._count_late(events)  # now: a reader may leave at the end it was waiting for
                yield Chunk("", t_us, end=self._end(), raw=event.data)
                return
            yield from self._chunks(records.decode(event.data, _record_decoder), event.data, t_us)

    def finish(self, t_us: int) -> Iterator[Chunk]:
        """At the end of the stream: a last event may come without its blank line; a part of one is `cut`, no error."""
        if self.ended:
            self._count_late(self._last_event())
            return
        event = self._events.finish()
        if event is not None and event.data != DONE:
            try:
                record = records.decode(event.data, _record_decoder)
            except UpstreamProtocolError:
                self.cut = True
            else:
                yield from self._chunks(record, event.data, t_us)
        if self._reason is not None:
            self.ended = True
            raw = DONE if event is not None and event.data == DONE else b""
            yield Chunk("", t_us, end=self._end(), raw=raw)

    def _chunks(self, record: _Record, data: bytes, t_us: int) -> Iterator[Chunk]:
        """One chunk, or one per kind of text in the record; `raw` is on the first."""
        fault = _fault(record, self.secret)
        if fault is not None:
            self.reported = True
            raise fault
        choice = _choice(record)
        self._usage = record.usage or self._usage
        self._reason = self._reason or _reason(choice)
        parts = _parts(choice)
        entries = _entries(choice.logprobs, "".join(text for _, text in parts))
        self.logprobs += len(entries)
        if not entries:
            self.unscored += any(text and kind is TokenKind.ANSWER for kind, text in parts)
        yield from records.chunks(parts, entries, t_us, data, calls=_calls(choice))

    def _last_event(self) -> Iterator[Event]:
        event = self._events.finish()
        if event is not None:
            yield event

    def _count_late(self, events: Iterator[Event]) -> None:
        """What cannot be read counts as one, with all that the read holds behind it."""
        try:
            for _ in events:
                self.late_records += 1
        except UpstreamProtocolError:
            self.late_records += 1

    def _end(self) -> GenerationEnd | None:
        if self._reason is None:
            return None
        return GenerationEnd(self._reason, self._usage.prompt_tokens, self._usage.completion_tokens)


def whole_answer(body: bytes, t_us: int, secret: str = "") -> tuple[Chunk, ...]:
    """An answer that is no stream (a `chat.completion` or `text_completion`) as chunks, one per kind of text; `raw` is
    on the first, the end on the last. Without an end it is not complete. Raises UpstreamProtocolError."""
    record = records.decode(body, _record_decoder)
    fault = _fault(record, secret)
    if fault is not None:
        raise fault
    choice, usage, end = _choice(record), record.usage or _Usage(), None
    reason = _reason(choice)
    if reason is not None:
        end = GenerationEnd(reason, usage.prompt_tokens, usage.completion_tokens)
    parts = _parts(choice)
    entries = _entries(choice.logprobs, "".join(text for _, text in parts))
    return records.chunks(parts, entries, t_us, body, end, _calls(choice))


def _fault(record: _Record, secret: str) -> UpstreamProtocolError | None:
    if record.fault is not None:
        return UpstreamProtocolError(f"the runtime broke off with an error: {reported(record.fault, secret)}")
    reason = _choice(record).finish_reason
    return UpstreamProtocolError(f"the runtime broke off its answer ({reason})") if reason in _BROKEN else None


def _choice(record: _Record) -> _Choice:
    """The first of the answers, the only one that is asked for."""
    return next((choice for choice in record.choices or () if choice.index == 0), _Choice())


def _reason(choice: _Choice) -> EndReason | None:
    if not choice.finish_reason:
        return None
    if choice.finish_reason == "stop" and isinstance(choice.stop_reason, str):
        return EndReason.STOP
    return EndReason.LENGTH if choice.finish_reason == "length" else EndReason.FINISHED


def _parts(choice: _Choice) -> list[Part]:
    """The texts of a choice by kind. Parts of tool calls are compact JSON, so that index, id and name are kept."""
    delta = _said(choice)
    thinking = delta.reasoning_content or delta.reasoning  # some servers send the same text under both names
    answer = (delta.content or "") + (delta.refusal or "") + (choice.text or "")
    return records.parts(thinking, answer, delta.tool_calls)


def _calls(choice: _Choice) -> tuple[ToolCallPart, ...]:
    return records.call_parts(_said(choice).tool_calls or (), 0)


def _said(choice: _Choice) -> _Delta:
    return choice.delta or choice.message or _Delta()


# ── log-probabilities ──


def _entries(logprobs: _LogProbs | None, text: str) -> tuple[TokenLogprob, ...]:
    if logprobs is None:
        return ()
    if logprobs.content is None:
        return _completion_entries(logprobs)
    return records.token_logprobs(logprobs.content, _spelled(logprobs.content, text))


def _spelled(entries: Sequence[_Entry], text: str) -> list[str]:
    """The text of each entry. Tokens that do not add up to `text` may be parts of characters: their bytes then do, and
    a character belongs to the token that completes it."""
    tokens = [entry.token for entry in entries]
    parts = [bytes(entry.bytes) for entry in entries if entry.bytes is not None]
    if not text or "".join(tokens) == text or len(parts) < len(tokens):
        return tokens
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        spelled = [decoder.decode(part) for part in parts]
    except UnicodeDecodeError:
        return tokens
    return spelled if "".join(spelled) == text else tokens


def _completion_entries(logprobs: _LogProbs) -> tuple[TokenLogprob, ...]:
    """None at all when the lists disagree or a token has no value."""
    tokens, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        return ()
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ()
    return tuple(
        TokenLogprob(token, min(0.0, value), tuple(TopEntry(text, min(0.0, of)) for text, of in (top or {}).items()))
        for token, value, top in zip(tokens, known, tops, strict=True)
    )


# ── answers that are not streams ──


def listed_models(body: bytes) -> list[ListedModel]:
    """The answer to `MODELS_PATH`. Raises UpstreamProtocolError."""
    return records.decode(body, _models_decoder).data


def takes_tools(body: bytes) -> bool:
    """False when llama.cpp's answer to `PROPS_PATH` says that the chat template leaves tools out. Raises
    UpstreamProtocolError."""
    return records.decode(body, _props_decoder).chat_template_caps.supports_tools


def embedded(body: bytes) -> Embedded:
    """The answer to a request for embeddings. Raises UpstreamProtocolError."""
    return records.decode(body, _embedded_decoder)


def error_text(body: bytes) -> str:
    """The server's own error text, or an empty string when the body has none."""
    try:
        return records.decode(body, _record_decoder).fault or ""
    except UpstreamProtocolError:
        return ""


def reported(text: str, secret: str = "") -> str:
    """The server's error text, safe to pass on: printable, short, without `secret` and without what was asked."""
    if secret:
        text = text.replace(secret, "…")
    return records.printable(text, _QUOTES)


def refusal(status: int, text: str, model: str, runtime: str, secret: str = "") -> EngineError:
    """The error for an answer whose status is not 200. `text` is `error_text` of its body. What a server says about a
    key it does not take is not repeated: it may quote part of it."""
    said = f": {reported(text, secret)}" if text else ""
    if status == 404 and text:
        return ModelNotFound(f"{runtime} has no model {model}{said}", model=model)
    if status == 404:
        return UpstreamProtocolError(f"{runtime} has no {CHAT_PATH}; is its URL right?", status=status)
    if status in (401, 403):
        return RuntimeUnavailable(f"{runtime} refuses to be used ({status}); is its API key right?", status=status)
    if status == 402:  # OpenRouter
        return RuntimeUnavailable(f"{runtime} refuses to be used (402): its account has no credit", status=status)
    invalid = [400, 413, 422, 501]  # 501: it cannot embed
    if _UNABLE.search(text):
        invalid.append(500)
    return records.refusal(status, said, model, runtime, invalid)


def about_logprobs(status: int, text: str) -> bool:
    """True when a request may go through without log-probabilities."""
    return status in (400, 403, 422) and "logprob" in text.lower()
