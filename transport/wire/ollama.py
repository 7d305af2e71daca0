"""Ollama's native dialect, without IO: stream records to chunks, listings to values. Requests are in
`ollama_requests`.

What is particular to it:

- A record is not a token: it may hold several log-probability entries, or none, or entries without any text (while a
  parser for thinking or tool calls holds text back). Entries can be fewer than tokens.
- `done_reason` is `stop` both at the end of an answer and at a stop string, so a stop string ends as FINISHED.
- Go leaves zeros out. A terminal record with `eval_duration` and no `eval_count` generated nothing: 0. Any other
  absent count is unknown: None.
- A record holds tool calls whole, never pieces of one. They are numbered as they come: older servers number none.
- Whether a prompt was cut is not in the answer. It can only be made an error (`truncate: false`), see `context_excess`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import attrs
import msgspec

from engine.domain.errors import EngineError, ModelNotFound, RuntimeUnavailable, UpstreamProtocolError
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenLogprob
from transport.wire import records
from transport.wire.lines import LineSplitter
from transport.wire.records import ENTRIES_MAX, Count, Entries, Entry, T

_CONTEXT: Final = re.compile(r"context|too long", re.IGNORECASE)
_QUOTES: Final = (" raw=",)  # what the model wrote
_ABILITIES: Final = ("tools", "thinking", "insert", "vision")  # a model has them, whatever else is asked for


class _Message(msgspec.Struct, gc=False):
    content: str = ""
    thinking: str = ""
    tool_calls: list[msgspec.Raw] | None = None


class _RecordFields(msgspec.Struct, gc=False):
    """One line of `/api/generate` (`response`) or `/api/chat` (`message`), or `{"error": …}`."""

    response: str = ""
    thinking: str = ""
    tool_calls: list[msgspec.Raw] | None = None
    message: _Message | None = None
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None
    eval_duration: Count | None = None
    load_duration: Count | None = None
    remote_host: str = ""
    error: str | None = None


class _Record(_RecordFields, gc=False):
    logprobs: Entries | None = None


class _LooseRecord(_RecordFields):
    logprobs: Annotated[list[Entry], msgspec.Meta(max_length=ENTRIES_MAX)] | None = None


class ModelDetails(msgspec.Struct, omit_defaults=True):
    format: str = ""
    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: Count = 0
    embedding_length: Count = 0


class ListedModel(msgspec.Struct):
    """A model of `/api/tags`. `capabilities` is None on servers that do not state them."""

    name: str
    size: Count = 0
    modified_at: str | None = None
    digest: str | None = None
    details: ModelDetails = msgspec.field(default_factory=ModelDetails)
    capabilities: list[str] | None = None
    remote_host: str = ""
    remote_model: str = ""

    @property
    def remote(self) -> bool:
        """True when asking it sends the prompt to another machine."""
        return bool(self.remote_host or self.remote_model) or is_cloud_name(self.name)


class LoadedModel(msgspec.Struct):
    """A model of `/api/ps`: `size` is all the memory it takes in bytes, `size_vram` the part on a GPU."""

    name: str
    size: Count = 0
    size_vram: Count = 0
    context_length: Count = 0
    expires_at: str | None = None


class Tags(msgspec.Struct):
    models: list[ListedModel] | None = None


class Running(msgspec.Struct):
    models: list[LoadedModel] | None = None


class Version(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class PullProgress(msgspec.Struct):
    """One line of `/api/pull`: bytes done and in all, of the layer that `status` speaks of."""

    status: str = ""
    digest: str = ""
    completed: Count = 0
    total: Count | None = None
    error: str | None = None


class Embedded(msgspec.Struct):
    """The answer of `/api/embed`; the vectors are for `records.vector`, one at a time: together they can be large."""

    embeddings: list[msgspec.Raw]
    prompt_eval_count: Count | None = None


class Shown(msgspec.Struct):
    """The answer of `/api/show`, of which the engine reads only where the model runs."""

    remote_host: str = ""
    remote_model: str = ""


class Named(msgspec.Struct):
    """A request of a client, of which the engine reads only which model it is for."""

    model: str


class _Error(msgspec.Struct):
    error: str


class _ContextError(msgspec.Struct):
    """llama.cpp's refusal of a long prompt; Ollama passes it on as text inside its own error."""

    n_prompt_tokens: Count


class _ContextRefusal(msgspec.Struct):
    error: _ContextError


_AnyRecord = _Record | _LooseRecord
_record_decoder: Final = msgspec.json.Decoder(_Record)
_loose_decoder: Final = msgspec.json.Decoder(_LooseRecord)


# ── the stream ──


def parse_record(line: bytes, t_us: int, offset: int = 0) -> tuple[Chunk, ...]:
    """One record as chunks: one, or one per kind of text it holds (thinking, then answer, then tool calls).

    `raw` is on the first of them, `end` on the last. The text of a tool call is its compact JSON. `offset` is where the
    line starts in the stream. Raises UpstreamProtocolError for a line that is no such record and for an error record.
    """
    return _chunks(_record(line, offset), line, t_us, offset)


def whole_answer(body: bytes, t_us: int) -> tuple[Chunk, ...]:
    """An answer that is no stream, as chunks; as `parse_record`. Without an end it is not complete."""
    return parse_record(body, t_us)


@attrs.define(eq=False)
class RecordStream:
    """The bytes of one answer to its chunks. `ended`: the terminal record was seen; what came after it is ignored and
    counted in `late_records`. `cut`: the stream ended inside a record. `reported`: the error that was raised is the
    runtime's own record of one."""

    ended: bool = attrs.field(default=False, init=False)
    late_records: int = attrs.field(default=0, init=False)
    cut: bool = attrs.field(default=False, init=False)
    reported: bool = attrs.field(default=False, init=False)
    _lines: LineSplitter = attrs.field(factory=LineSplitter, init=False)
    _calls: int = attrs.field(default=0, init=False)  # seen

    @property
    def finishing(self) -> bool:
        """True when the answer is whole although its terminal record is missing: never, in this dialect."""
        return False

    def feed(self, data: bytes, t_us: int) -> Iterator[Chunk]:
        """The chunks of one read, which all arrived at `t_us`. Consume it whole: an error of a record comes after the
        chunks before it."""
        lines = self._lines.feed(data)
        if self.ended:
            self._count_late(lines)
            return
        starts = self._lines.starts
        for index, line in enumerate(lines):
            if not line.strip():
                continue
            chunks = self._chunks(_record(line, starts[index]), line, t_us, starts[index])
            if chunks[-1].end is not None:
                self.ended = True
                self._count_late(lines[index + 1 :])  # now: a reader may leave at the end it was waiting for
                yield from chunks
                return
            yield from chunks

    def finish(self, t_us: int) -> Iterator[Chunk]:
        """At the end of the stream: a last record may come without its LF; half a record is `cut`, not an error."""
        rest = self._lines.finish()
        if self.ended:
            self._count_late([rest])
            return
        if not rest.strip():
            return
        try:
            record = _record(rest)
        except UpstreamProtocolError:
            self.cut = True
            return
        chunks = self._chunks(record, rest, t_us, 0)
        self.ended = chunks[-1].end is not None
        yield from chunks

    def _chunks(self, record: _AnyRecord, line: bytes, t_us: int, offset: int) -> tuple[Chunk, ...]:
        self.reported = record.error is not None
        chunks = _chunks(record, line, t_us, offset, self._calls)
        for chunk in chunks:
            self._calls += len(chunk.tool_calls)
        return chunks

    def _count_late(self, lines: Sequence[bytes]) -> None:
        self.late_records += sum(1 for line in lines if line.strip())


def _record(line: bytes, offset: int = 0) -> _AnyRecord:
    return records.decode_either(line, _record_decoder, _loose_decoder, offset)


def _chunks(record: _AnyRecord, line: bytes, t_us: int, offset: int, calls_before: int = 0) -> tuple[Chunk, ...]:
    if record.error is not None:
        raise UpstreamProtocolError(f"the runtime broke off with an error: {reported(record.error)}")
    if record.remote_host:
        raise UpstreamProtocolError("the runtime answered from another machine; only models that run here are used")
    message = record.message or record
    content = record.message.content if record.message else record.response
    entries = _entries(record)
    if not (record.done or message.thinking or message.tool_calls):  # as nearly all records of an answer
        return (Chunk(content, t_us, logprobs=entries, raw=line),)
    parts = records.parts(message.thinking, content, message.tool_calls)
    calls = records.call_parts(message.tool_calls or (), offset, calls_before)
    return records.chunks(parts, entries, t_us, line, _end(record) if record.done else None, calls)


def _entries(record: _AnyRecord) -> tuple[TokenLogprob, ...]:
    if isinstance(record, _LooseRecord):
        found = record.logprobs or ()
        return records.token_logprobs(found, [entry.token for entry in found])
    return record.logprobs or ()


def _end(record: _AnyRecord) -> GenerationEnd:
    eval_count = record.eval_count
    if eval_count is None and record.eval_duration is not None:
        eval_count = 0
    reason = EndReason.LENGTH if record.done_reason == "length" else EndReason.FINISHED
    load_ms = None if record.load_duration is None else record.load_duration / 1e6
    return GenerationEnd(reason, prompt_tokens=record.prompt_eval_count, eval_count=eval_count, load_ms=load_ms)


# ── answers that are not streams ──


def decode(body: bytes, type_: type[T]) -> T:
    """A whole JSON answer. Raises UpstreamProtocolError without a word of the body."""
    return records.decode(body, msgspec.json.Decoder(type_))


def load_done(body: bytes) -> bool:
    """True when the answer to `load_body` is terminal. Raises UpstreamProtocolError."""
    chunks = parse_record(body, 0)
    return chunks[-1].end is not None


def error_text(body: bytes) -> str:
    """The runtime's own error text, or an empty string when the body has none."""
    try:
        return decode(body, _Error).error
    except UpstreamProtocolError:
        return ""


def reported(text: str) -> str:
    """The runtime's error text, safe to pass on: printable, short, and without what the model wrote."""
    return records.printable(text, _QUOTES)


def refusal(status: int, text: str, model: str, runtime: str) -> EngineError:
    """The error for an answer whose status is not 200. `text` is `error_text` of its body."""
    said = f": {reported(text)}" if text else ""
    if status == 404:
        return ModelNotFound(f"{runtime} has no model {model}; get it with `ollama pull {model}`", model=model)
    if status in (401, 403):
        return RuntimeUnavailable(f"{runtime} refuses to be used ({status}){said}", status=status)
    return records.refusal(status, said, model, runtime, invalid=(400, 501))  # 501: it cannot embed


def about_logprobs(status: int, text: str) -> bool:
    """True when a request may go through without log-probabilities."""
    return status == 400 and ("logprobs" in text or ("does not support" in text and not text.endswith(_ABILITIES)))


def context_excess(status: int, text: str) -> int | None:
    """The length in tokens of a prompt refused because of `truncate: false`; 0 when the refusal does not say it; None
    when it is about something else."""
    if status != 400 or not _CONTEXT.search(text):
        return None
    try:
        return decode(text[text.index("{") :].encode(), _ContextRefusal).error.n_prompt_tokens
    except (UpstreamProtocolError, ValueError):
        return 0


# ── names ──


def names_only(body: bytes, model: str) -> bool:
    """True when a request is for `model` whoever reads it: Ollama takes keys in any case, and the last of them."""
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        named = msgspec.json.decode(body, type=Named).model
    except (msgspec.DecodeError, RecursionError):
        return False
    return named == model and [key for key in keys if key.casefold() == "model"] == ["model"]


def is_cloud_name(name: str) -> bool:
    """True for names that Ollama passes on to ollama.com: the tag is `cloud` or ends with `-cloud`."""
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    return tag == "cloud" or tag.endswith("-cloud")


def full_name(name: str) -> str:
    """`name` with the tag that Ollama adds when there is none."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def pull_refusal(text: str, model: str, runtime: str) -> EngineError:
    """The error for an error line of `/api/pull`, which has no status: `text` is all there is."""
    message = f"{runtime} cannot pull {model}: {reported(text)}"
    if "does not exist" in text or "not found" in text:
        return ModelNotFound(message, model=model)
    return UpstreamProtocolError(message)
