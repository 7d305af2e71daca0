"""Replies of a runtime that speaks the OpenAI dialect itself: its own records, stripped of what only our asking caused,
one body made from them, or its own whole body. Without IO.

A server hangs its own extras (`timings` of llama.cpp) on its last record: they move to the one before when the record
with the counts goes.
"""

from __future__ import annotations

from typing import Any, Final

import attrs
import msgspec

from engine.domain.errors import EngineError, UpstreamProtocolError
from engine.domain.generation import Chunk
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects.openai_asks import INCLUDE_USAGE
from transport.wire.dialects.openai_reply import head
from transport.wire.dialects.openai_requests import CHAT_PATH
from transport.wire.dialects.openai_shapes import BODY_TYPE, DONE_FRAME, STREAM_TYPE, frame
from transport.wire.dialects.openai_strip import (
    NOTHING,
    NULL,
    Fields,
    Stripper,
    fields_decoder,
    has,
    is_lean,
    logprobs_decoder,
    raw,
)
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts

_DONE: Final = b"[DONE]"
# The order of llama.cpp's whole bodies, which is not the one of its records; those begin with `choices`.
_ORDER: Final = ("choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings")
_CALL_ORDER: Final = ("type", "function", "id")

_text_decoder: Final = msgspec.json.Decoder(str)


class _Place(msgspec.Struct):
    """Where a piece of a call belongs, and its function's fields."""

    index: int = 0
    function: dict[str, str | None] | None = None


_pieces_decoder: Final = msgspec.json.Decoder(list[Fields])
_places_decoder: Final = msgspec.json.Decoder(list[_Place])


@attrs.define(eq=False)
class NativeStream:
    """Record by record. Without counts asked for, the record that says how it ended waits for the next one: extras may
    have to move to it."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _stripper: Stripper = attrs.field(init=False)
    _last: Fields | None = attrs.field(default=None, init=False)
    _head: Fields = attrs.field(factory=dict, init=False)  # of the last record, for what has to be added

    def __attrs_post_init__(self) -> None:
        self._stripper = Stripper(self.asked, self.facts)

    def feed(self, chunk: Chunk) -> bytes:
        if not chunk.raw or chunk.raw == _DONE:  # the second part of a record, or the end, which `finish` tells
            return b""
        try:
            taken = self._stripper.take(chunk.raw)
        except UpstreamProtocolError:
            as_it_is = shapes.one_line(chunk.raw)  # the client may know what to do with it
            return self._flush() + b"data: " + as_it_is + b"\n\n"
        if taken is None:
            return b""
        record, choices = taken
        self._head = record
        if INCLUDE_USAGE in self.asked.options:
            return frame(_with(record, choices))
        if not choices and has(record, "usage"):
            return self._move(record)
        held = self._flush()
        if any(has(choice, "finish_reason") for choice in choices):
            self._last = _with(record, choices)
            return held
        return held + frame(_with(record, choices))

    def _move(self, counts: Fields) -> bytes:
        """The extras of the record with the counts go to the one before it."""
        if self._last is not None:
            extras = {name: value for name, value in counts.items() if name not in self._last and name != "usage"}
            self._last |= extras
        return self._flush()

    def _flush(self) -> bytes:
        held, self._last = self._last, None
        return b"" if held is None else frame(held)

    def finish(self, end: ReplyEnd) -> bytes:
        """What the runtime left unsaid: how it ended (it was stopped), the counts, the terminal frame."""
        data = self._flush()
        chat = self.asked.path == CHAT_PATH
        if not self._stripper.finished:
            reason = shapes.finish_reason(end.end.reason, False)
            said: dict[str, Any] = {"index": 0, "delta": {}} if chat else {"text": "", "index": 0, "logprobs": None}
            data += frame(self._like_the_last() | {"choices": [said | {"finish_reason": reason}]})
        if INCLUDE_USAGE in self.asked.options and not self._stripper.counted:
            data += frame(self._like_the_last() | {"choices": [], "usage": shapes.usage(end)})
        return data + DONE_FRAME

    def fail(self, error: EngineError) -> bytes:
        return self._flush() + shapes.error_frame(error)

    def _like_the_last(self) -> dict[str, Any]:
        if self._head:
            return {name: value for name, value in self._head.items() if name not in ("usage", "timings")}
        if self.asked.path == CHAT_PATH:
            return head(self.facts, "chatcmpl", "chat.completion.chunk")
        return head(self.facts, "cmpl", "text_completion")


def _with(record: Fields, choices: list[Fields]) -> Fields:
    if "choices" in record:
        record["choices"] = raw(choices)
    return record


@attrs.define(eq=False)
class NativeWhole:
    """One body from the records, as the runtime would have written it."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=BODY_TYPE, init=False)
    _stripper: Stripper = attrs.field(init=False)
    _record: Fields = attrs.field(factory=dict, init=False)
    _usage: msgspec.Raw | None = attrs.field(default=None, init=False)
    _choice: dict[str, Any] = attrs.field(factory=dict, init=False)
    _message: dict[str, Any] = attrs.field(factory=dict, init=False)
    _texts: dict[str, list[str]] = attrs.field(factory=dict, init=False)
    _calls: dict[int, dict[str, Any]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._stripper = Stripper(self.asked, self.facts)

    def feed(self, chunk: Chunk) -> bytes:
        taken = self._stripper.take(chunk.raw) if chunk.raw and chunk.raw != _DONE else None
        if taken is not None:
            record, choices = taken
            self._usage = record.pop("usage") if has(record, "usage") else self._usage
            self._record = {**self._record, **{k: v for k, v in record.items() if k not in self._record}}
            for choice in choices[:1]:
                try:
                    self._add(choice)
                except (msgspec.DecodeError, RecursionError):
                    raise UpstreamProtocolError("the runtime sent a record with parts that cannot be read") from None
        return b""

    def _add(self, choice: Fields) -> None:
        for name, value in choice.items():
            if name == "delta":
                self._choice.setdefault("message", None)
                self._add_delta(fields_decoder.decode(value) if bytes(value) not in NOTHING else {})
            elif name == "text":
                self._choice.setdefault("text", None)
                self._add_text("text", value)
            elif name == "logprobs" and bytes(value) not in NOTHING:
                self._choice[name] = _joined(self._choice.get(name), logprobs_decoder.decode(value))
            elif name not in self._choice or (bytes(value) not in NOTHING and name != "logprobs"):
                self._choice[name] = value if name != "logprobs" else None

    def _add_delta(self, delta: Fields) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                if bytes(value) not in NOTHING:
                    self._add_calls(value)
            elif name != "role" and bytes(value).startswith(b'"'):
                self._message.setdefault(name, None)
                self._add_text(name, value)
            elif name not in self._message or bytes(value) not in NOTHING:
                self._message[name] = value

    def _add_text(self, name: str, value: msgspec.Raw) -> None:
        if bytes(value).startswith(b'"'):
            self._texts.setdefault(name, []).append(_text_decoder.decode(value))

    def _add_calls(self, value: msgspec.Raw) -> None:
        for place, piece in zip(_places_decoder.decode(value), _pieces_decoder.decode(value), strict=True):
            call = self._calls.setdefault(place.index, {"function": {}})
            function: dict[str, str] = call["function"]
            for name, text in (place.function or {}).items():
                function[name] = function.get(name, "") + (text or "")
            for name, one in piece.items():
                call.setdefault(name, one)

    def finish(self, end: ReplyEnd) -> bytes:
        chat = self.asked.path == CHAT_PATH
        object_ = "chat.completion" if chat else "text_completion"
        whole: dict[str, Any] = dict(self._record) or head(self.facts, "chatcmpl" if chat else "cmpl", object_)
        whole["object"] = object_
        whole["choices"] = [self._ended(end, chat)]
        whole["usage"] = self._usage or shapes.usage(end)
        if "choices" in list(whole)[:1]:
            whole = _ordered(whole, _ORDER)
        return shapes.encode(whole)

    def _ended(self, end: ReplyEnd, chat: bool) -> dict[str, Any]:
        choice = {"index": 0} | self._choice if not self._choice else dict(self._choice)
        if not self._stripper.finished:
            choice["finish_reason"] = shapes.finish_reason(end.end.reason, bool(self._calls))
        if chat:
            choice["message"] = self._whole_message()
        else:
            choice["text"] = "".join(self._texts.get("text", ()))
        return choice

    def _whole_message(self) -> dict[str, Any]:
        """Texts that were empty all along are left out, but for the content."""
        named = {name: "".join(texts) for name, texts in self._texts.items()}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for name, value in self._message.items():
            text = named.get(name)
            if text or (text is not None and name == "content"):
                message[name] = text
            elif text is None:
                message[name] = value
        if self._calls:
            message["tool_calls"] = [self._whole_call(call) for _, call in sorted(self._calls.items())]
        elif message["content"] is None or message["content"] == NULL:
            message["content"] = ""
        return message

    def _whole_call(self, call: dict[str, Any]) -> dict[str, Any]:
        """Only Ollama's whole bodies number the calls."""
        if is_lean(self._record):
            return _ordered(call, ("id", "index", "type", "function"))
        call.pop("index", None)
        return _ordered(call, _CALL_ORDER if next(iter(self._record)) == "choices" else ("id", "type", "function"))

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_body(error)


@attrs.define(eq=False)
class NativeBody:
    """The runtime's own whole answer, less the alternatives that only we asked for."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=BODY_TYPE, init=False)
    _body: bytes = attrs.field(default=b"", init=False)

    def feed(self, chunk: Chunk) -> bytes:
        self._body = self._body or chunk.raw  # it is on the first of its chunks
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        taken = Stripper(self.asked, self.facts).take(self._body) if self._body else None
        if taken is None:  # it was stopped before there was one
            return NativeWhole(self.asked, self.facts).finish(end)
        return shapes.encode(_with(*taken))

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_body(error)


def _joined(known: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of two records: lists are joined."""
    if not isinstance(known, dict):
        return more
    for name, entries in more.items():
        old = known.get(name)
        known[name] = old + entries if isinstance(old, list) and isinstance(entries, list) else entries
    return known


def _ordered(fields: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    first = {name: fields[name] for name in order if name in fields}
    return first | {name: value for name, value in fields.items() if name not in first}
