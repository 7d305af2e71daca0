"""Answers of a runtime that speaks this dialect itself, handed on as the client would have got them without us.

We ask for log-probabilities that the client did not: they are taken out again, whole or beyond the number asked for,
and with them the records that exist only because of them (no text, no call, no end). Everything else stays as it is,
also fields that nobody here knows, and their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import msgspec

from engine.domain.errors import EngineError, UpstreamProtocolError
from engine.domain.generation import TOP_K, Chunk
from transport.wire import records
from transport.wire.dialects.ollama_records import (
    STREAM_TYPE,
    WHOLE_BYTES_MAX,
    WHOLE_TYPE,
    Piece,
    Records,
    error_body,
)
from transport.wire.dialects.reply import Asked, ReplyEnd

Fields = dict[str, msgspec.Raw]


class _Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Record(_Said):
    response: str | None = None
    message: _Said | None = None
    logprobs: list[msgspec.Raw] | None = None
    done: bool = False


_record_decoder: Final = msgspec.json.Decoder(_Record)
_fields_decoder: Final = msgspec.json.Decoder(Fields)
_entries_decoder: Final = msgspec.json.Decoder(list[Fields])
_list_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_BLANK: Final = frozenset({b'""', b"null", b"[]"})
_ALWAYS: Final = frozenset({"model", "remote_model", "remote_host", "created_at", "role", "done"})
_TRUE: Final = b"true"


@attrs.define(eq=False)
class NativeStream:
    """Hands on record by record."""

    _records: Records
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _model: msgspec.Raw = attrs.field(init=False)
    _done: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._model = _raw(self._records.facts.model)

    def feed(self, chunk: Chunk) -> bytes:
        """A record has its bytes on the first of its chunks."""
        if not chunk.raw or self._done:
            return b""
        self._records.tick(chunk.t_us)
        fields = records.decode(chunk.raw, _fields_decoder)
        self._done = _is(fields, "done", _TRUE)
        if not _stripped(fields, self._records.asked) and not self._done and _blank(fields):
            return b""
        if "model" in fields:
            fields["model"] = self._model
        return msgspec.json.encode(fields) + b"\n"

    def finish(self, end: ReplyEnd) -> bytes:
        """Nothing when the runtime's own terminal record went out."""
        return b"" if self._done else self._records.last(end, Piece()) + b"\n"

    def fail(self, error: EngineError) -> bytes:
        return error_body(error) + b"\n"


@attrs.define(eq=False)
class NativeWhole:
    """Gathers the records to the one answer that the runtime gives when it does not stream: its last record, with the
    text, the calls and the log-probabilities of all. Feeding more than 128 MiB raises UpstreamProtocolError."""

    _records: Records
    content_type: str = attrs.field(default=WHOLE_TYPE, init=False)
    _texts: list[str] = attrs.field(factory=list, init=False)
    _thinking: list[str] = attrs.field(factory=list, init=False)
    _calls: list[msgspec.Raw] = attrs.field(factory=list, init=False)
    _probs: list[msgspec.Raw] = attrs.field(factory=list, init=False)
    _last: bytes = attrs.field(default=b"", init=False)
    _size_bytes: int = attrs.field(default=0, init=False)

    def feed(self, chunk: Chunk) -> bytes:
        if not chunk.raw or self._last:
            return b""
        self._records.tick(chunk.t_us)
        record = records.decode(chunk.raw, _record_decoder)
        said = record.message or record
        text = (record.message.content if record.message else record.response) or ""
        self._texts.append(text)
        self._thinking.append(said.thinking or "")
        self._calls.extend(call.copy() for call in said.tool_calls or ())
        asked = self._records.asked
        self._size_bytes += len(text) + len(said.thinking or "")
        if asked.logprobs and record.logprobs:
            cut = _list_decoder.decode(_cut(msgspec.json.encode(record.logprobs), asked.top_logprobs))
            self._probs.extend(entry.copy() for entry in cut)
            self._size_bytes += sum(len(memoryview(entry)) for entry in cut)
        within_bounds(self._size_bytes)
        if record.done:
            self._last = chunk.raw
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        texts, thinking = "".join(self._texts), "".join(self._thinking)
        if not self._last:
            return self._records.last(end, Piece(texts, thinking, self._calls, self._probs))
        fields = records.decode(self._last, _fields_decoder)
        if "model" in fields:
            fields["model"] = _raw(self._records.facts.model)
        calls = _raw(self._calls) if self._calls else None
        probs = _raw(self._probs) if self._probs else None
        if "message" in fields:
            message = records.decode(bytes(fields["message"]), _fields_decoder)
            message["content"] = _raw(texts)
            fields["message"] = _raw(_after(message, "content", thinking=_text(thinking), tool_calls=calls))
            fields = _after(fields, "done_reason" if "done_reason" in fields else "done", logprobs=probs)
        else:
            fields["response"] = _raw(texts)
            fields = _after(fields, "response", thinking=_text(thinking))
            fields = _after(fields, "", tool_calls=calls, logprobs=probs)
        return msgspec.json.encode(fields)

    def fail(self, error: EngineError) -> bytes:
        return error_body(error)


def within_bounds(size_bytes: int) -> None:
    """Raises UpstreamProtocolError when an answer became too long to be held."""
    if size_bytes > WHOLE_BYTES_MAX:
        raise UpstreamProtocolError(
            f"the answer is longer than {WHOLE_BYTES_MAX} bytes, too long for one piece; ask with `stream`: true",
            limit=WHOLE_BYTES_MAX,
        )


def _stripped(fields: Fields, asked: Asked) -> bool:
    """Take out what the client did not ask for. False when log-probabilities went, so that without our asking the
    record might not have been."""
    entries = fields.get("logprobs")
    if entries is None:
        return True
    if not asked.logprobs:
        del fields["logprobs"]
        return False
    fields["logprobs"] = msgspec.Raw(_cut(bytes(entries), asked.top_logprobs))
    return True


def _cut(entries: bytes, top: int) -> bytes:
    """Log-probabilities with no more alternatives than asked for; none asked for: without the field."""
    if top >= TOP_K:
        return entries
    found = records.decode(entries, _entries_decoder)
    for entry in found:
        if "top_logprobs" not in entry:
            continue
        kept = records.decode(bytes(entry["top_logprobs"]), _list_decoder)[:top]
        if kept:
            entry["top_logprobs"] = _raw(kept)
        else:
            del entry["top_logprobs"]
    return msgspec.json.encode(found)


def _blank(fields: Fields) -> bool:
    """No text, no call, and nothing unknown."""
    for name, value in fields.items():
        if name == "message":
            if not _blank(records.decode(bytes(value), _fields_decoder)):
                return False
        elif name not in _ALWAYS and bytes(value) not in _BLANK:
            return False
    return True


def _is(fields: Mapping[str, msgspec.Raw], name: str, value: bytes) -> bool:
    return name in fields and bytes(fields[name]) == value


def _after(fields: Fields, name: str, **added: msgspec.Raw | None) -> Fields:
    """`fields` with `added` behind `name` (at the end when it is not there), less those that are None."""
    rest = {key: value for key, value in fields.items() if key not in added}
    new = {key: value for key, value in added.items() if value is not None}
    if name not in rest:
        return rest | new
    made: Fields = {}
    for key, value in rest.items():
        made[key] = value
        if key == name:
            made |= new
    return made


def _text(text: str) -> msgspec.Raw | None:
    return _raw(text) if text else None


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
