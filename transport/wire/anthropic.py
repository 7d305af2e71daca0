"""The answers of Anthropic's Messages API, without IO: stream events to chunks, refusals to errors.

What is particular to it:

- There are no log-probabilities: the energy of these streams comes from their cadence alone.
- A delta is no token; how many tokens there were is told at the end, cumulative.
- The end comes in two events: `message_delta` with the reason and the counts, then `message_stop`. Only the second one
  is the end of a whole answer.
- Unknown events, blocks and deltas are to be ignored: new ones may come at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs
import msgspec

from engine.domain.errors import EngineError, ModelNotFound, Overloaded, RuntimeUnavailable, UpstreamProtocolError
from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, ToolCallPart
from transport.wire import records
from transport.wire.records import Count
from transport.wire.sse import Event, EventStream

_BUSY: Final = frozenset({"overloaded_error", "rate_limit_error"})
_QUOTES: Final = ("'input'", '"input"', "input_value=")
_INVALID: Final = (400, 413, 422)
_REASONS: Final = {
    "max_tokens": EndReason.LENGTH,
    "model_context_window_exceeded": EndReason.LENGTH,
    "stop_sequence": EndReason.STOP,
}


class _Usage(msgspec.Struct):
    input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    output_tokens: Count | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""


class _Delta(msgspec.Struct):
    """Of a block, or (`stop_reason`) of the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Record(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_record_decoder: Final = msgspec.json.Decoder(_Record)


@attrs.define(eq=False)
class ChunkStream:
    """The bytes of one answer to its chunks. `finishing`: why it ends was told, only `message_stop` can still come.
    `ended`: it came; the last chunk carried the end. What comes later is counted in `late_records`. `cut`: the stream
    ended inside an event. `reported`: the error that was raised is an event of the server's own. `secret` is kept out
    of error texts."""

    secret: str = attrs.field(default="", repr=False)
    ended: bool = attrs.field(default=False, init=False)
    late_records: int = attrs.field(default=0, init=False)
    cut: bool = attrs.field(default=False, init=False)
    reported: bool = attrs.field(default=False, init=False)
    _events: EventStream = attrs.field(factory=EventStream, init=False)
    _reason: EndReason | None = attrs.field(default=None, init=False)
    _prompt_tokens: int | None = attrs.field(default=None, init=False)
    _output_tokens: int | None = attrs.field(default=None, init=False)
    _calls: int = attrs.field(default=0, init=False)  # begun so far

    @property
    def finishing(self) -> bool:
        return self._reason is not None

    def feed(self, data: bytes, t_us: int) -> Iterator[Chunk]:
        """The chunks of one read, which all arrived at `t_us`. Consume it whole. Raises UpstreamProtocolError for an
        event that cannot be read and for an error the server reports, Overloaded when it reports that it is busy."""
        events = self._events.feed(data)
        for event in events:
            if self.ended:
                self.late_records += 1
            else:
                yield from self._chunks(event, t_us)

    def finish(self, t_us: int) -> Iterator[Chunk]:
        """At the end of the stream: an event that lacks its blank line still counts; a part of one is `cut`."""
        event = self._events.finish()
        if event is None or self.ended:
            self.late_records += event is not None
            return
        try:
            yield from self._chunks(event, t_us)
        except UpstreamProtocolError:
            if self.reported:
                raise
            self.cut = True

    def _chunks(self, event: Event, t_us: int) -> Iterator[Chunk]:
        record = records.decode(event.data, _record_decoder)
        match record.type:
            case "message_start":
                usage = record.message.usage if record.message is not None else None
                self._count(usage)
            case "content_block_start" if record.content_block is not None:
                yield from self._begun(record.content_block, event.data, t_us)
            case "content_block_delta" if record.delta is not None:
                yield from self._grown(record.delta, event.data, t_us)
            case "message_delta":
                self._count(record.usage)
                if record.delta is not None and record.delta.stop_reason is not None:
                    self._reason = _REASONS.get(record.delta.stop_reason, EndReason.FINISHED)
            case "message_stop":
                self.ended = True
                yield Chunk("", t_us, end=self._end(), raw=event.data)
            case "error":
                self.reported = True
                raise _fault(record.error or _Error(), self.secret)
            case _:
                pass

    def _begun(self, block: _Block, raw: bytes, t_us: int) -> Iterator[Chunk]:
        if block.type == "tool_use":
            call = ToolCallPart(self._calls, block.name, "", block.id)
            self._calls += 1
            yield Chunk("", t_us, TokenKind.TOOL, raw=raw, tool_calls=(call,))
        elif block.text or block.thinking:
            kind = TokenKind.THINKING if block.thinking else TokenKind.ANSWER
            yield Chunk(block.thinking or block.text, t_us, kind, raw=raw)

    def _grown(self, delta: _Delta, raw: bytes, t_us: int) -> Iterator[Chunk]:
        match delta.type:
            case "text_delta":
                yield Chunk(delta.text, t_us, raw=raw)
            case "thinking_delta":
                yield Chunk(delta.thinking, t_us, TokenKind.THINKING, raw=raw)
            case "input_json_delta" if self._calls:
                call = ToolCallPart(self._calls - 1, arguments=delta.partial_json)
                yield Chunk(delta.partial_json, t_us, TokenKind.TOOL, raw=raw, tool_calls=(call,))

    def _count(self, usage: _Usage | None) -> None:
        if usage is None:
            return
        if usage.input_tokens is not None:
            cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
            self._prompt_tokens = usage.input_tokens + cached
        if usage.output_tokens is not None:
            self._output_tokens = usage.output_tokens

    def _end(self) -> GenerationEnd | None:
        """None where no reason was told: then nobody knows that the answer is whole."""
        if self._reason is None:
            return None
        return GenerationEnd(self._reason, self._prompt_tokens, self._output_tokens)


def _fault(error: _Error, secret: str) -> EngineError:
    said = reported(error.message, secret)
    if error.type in _BUSY:
        return Overloaded(f"the runtime broke off, it is busy: {said}", retry_after_s=1)
    return UpstreamProtocolError(f"the runtime broke off with an error: {said}")


# ── refusals ──


def error_text(body: bytes) -> str:
    """The server's own error text, or an empty string when the body has none."""
    try:
        error = records.decode(body, _record_decoder).error
    except UpstreamProtocolError:
        return ""
    return error.message if error is not None else ""


def reported(text: str, secret: str = "") -> str:
    """The server's error text, safe to pass on: printable, short, without `secret` and without what was asked."""
    return records.printable(text.replace(secret, "…") if secret else text, _QUOTES)


def refusal(status: int, text: str, model: str, runtime: str, secret: str = "") -> EngineError:
    """The error for an answer whose status is not 200. What a server says about a key it does not take is not
    repeated: it may quote part of it."""
    said = f": {reported(text, secret)}" if text else ""
    if status in (401, 402, 403):
        return RuntimeUnavailable(f"{runtime} refuses to be used ({status}); is its API key right?", status=status)
    if status == 404:
        return ModelNotFound(f"{runtime} has no model {model}{said}", model=model)
    if status == 529:
        return Overloaded(f"{runtime} is busy{said}", runtime=runtime, retry_after_s=1)
    return records.refusal(status, said, model, runtime, _INVALID)
