"""Answers in the Anthropic dialect, made from the chunks of any runtime: event streams, whole messages, token counts.

What is particular to it:

- An answer is a list of content blocks (thinking, text, tool_use). In a stream one block is open at a time, its index
  rises by one from block to block, and a block that was closed cannot go on. So when a runtime mixes pieces of several
  tool calls, what comes after an unfinished call is held until the call is whole, or until the end.
- `message_start` holds the count of input tokens, which no runtime knows before the end. It says 0, and `message_delta`
  says the real one; clients take the later.
- A thinking block has a signature, by which its maker knows it again. We sign nothing: it is empty.
- There is no word for an answer that somebody stopped: its `stop_reason` is null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import attrs
import msgspec

from engine.domain.errors import EngineError, InvalidRequest, Overloaded, UpstreamProtocolError
from engine.domain.generation import Chunk, EndReason, TokenKind, ToolCallPart
from transport.wire.dialects.reply import ReplyEnd, ReplyFacts

ANSWER_CHARS_MAX: Final = 64 << 20  # far more than any context holds; whole answers and unfinished calls stay in memory
INVALID_JSON: Final = "INVALID_JSON"  # the dialect's own key for arguments that are no JSON object

_STOP_REASONS: Final = {
    EndReason.FINISHED: "end_turn",
    EndReason.LENGTH: "max_tokens",
    EndReason.STOP: "stop_sequence",
}
_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_BlockType = Literal["thinking", "text", "tool_use"]
_encode = msgspec.json.Encoder().encode
_object_decoder: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


@attrs.frozen
class Wanted:
    """What of the request the answer depends on. `prompt_only`: it asked for 0 tokens. `hide_thinking`: blocks
    of thinking are to be empty."""

    stop: tuple[str, ...] = ()
    prompt_only: bool = False
    hide_thinking: bool = False


@attrs.define(eq=False)
class _Block:
    """One content block. `waiting` is what came and was not sent or used yet; `arguments` all that a call has."""

    index: int
    type: _BlockType
    id: str = ""
    name: str = ""
    waiting: list[str] = attrs.field(factory=list)
    arguments: list[str] = attrs.field(factory=list)
    begun: bool = False
    closed: bool = False
    _checked: tuple[int, bool] = (0, False)

    @property
    def whole(self) -> bool:
        """Nothing more can belong to it, once something else came. Only a call can be in pieces."""
        if self.type != "tool_use":
            return True
        if self._checked[0] != len(self.arguments):
            self._checked = (len(self.arguments), is_object("".join(self.arguments)))
        return self._checked[1]

    def opening(self) -> dict[str, Any]:
        if self.type == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}
        if self.type == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def content(self) -> dict[str, Any]:
        """The block in a whole message."""
        text = "".join(self.waiting)
        if self.type == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": _input(text)}
        if self.type == "thinking":
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": text}


@attrs.define(eq=False)
class _Blocks:
    """The blocks of one answer, in the order in which they began."""

    reply_id: str
    wanted: Wanted
    all: list[_Block] = attrs.field(factory=list, init=False)
    _calls: dict[int, _Block] = attrs.field(factory=dict, init=False)
    _chars: int = attrs.field(default=0, init=False)

    @property
    def calls_any(self) -> bool:
        return bool(self._calls)

    def place(self, chunk: Chunk) -> None:
        """Puts each piece into its block. Raises UpstreamProtocolError for an answer beyond ANSWER_CHARS_MAX, and for
        a call without a name or that goes on after it was closed."""
        if self.wanted.prompt_only:
            return
        if chunk.kind is TokenKind.TOOL:
            for part in chunk.tool_calls:
                self._place_part(part)
        elif chunk.text:
            thinking = chunk.kind is TokenKind.THINKING
            type_: _BlockType = "thinking" if thinking else "text"
            block = self.all[-1] if self.all and self.all[-1].type == type_ else self._new(type_)
            if not (thinking and self.wanted.hide_thinking):
                self._count(chunk.text)
                block.waiting.append(chunk.text)

    def _place_part(self, part: ToolCallPart) -> None:
        block = self._calls.get(part.index)
        if block is None or _another(block, part):
            if not part.name:
                raise UpstreamProtocolError("the runtime began a tool call without its name")
            tool_id = part.id or f"toolu_{self.reply_id}_{len(self.all)}"
            block = self._calls[part.index] = self._new("tool_use", tool_id, part.name)
        if not part.arguments or (block.closed and part.arguments.isspace()):
            return
        if block.closed:
            raise UpstreamProtocolError("the runtime went on with a tool call that was whole")
        self._count(part.arguments)
        block.waiting.append(part.arguments)
        block.arguments.append(part.arguments)

    def _new(self, type_: _BlockType, id_: str = "", name: str = "") -> _Block:
        block = _Block(len(self.all), type_, id_, name)
        self.all.append(block)
        return block

    def _count(self, text: str) -> None:
        self._chars += len(text)
        if self._chars > ANSWER_CHARS_MAX:
            raise UpstreamProtocolError(f"the answer is longer than {ANSWER_CHARS_MAX} characters")


@attrs.define(eq=False)
class StreamReply:
    """An answer as server-sent events. `feed` raises UpstreamProtocolError where no legal stream can be made of what
    came; `fail` then ends it."""

    facts: ReplyFacts
    wanted: Wanted
    content_type: str = attrs.field(default="text/event-stream", init=False)
    _blocks: _Blocks = attrs.field(init=False)
    _live: int = attrs.field(default=0, init=False)  # the block that is open, or will be next
    _started: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._blocks = _Blocks(self.facts.id, self.wanted)

    def feed(self, chunk: Chunk) -> bytes:
        start = self._start()
        self._blocks.place(chunk)
        return start + b"".join(self._advance(last=False))

    def finish(self, end: ReplyEnd) -> bytes:
        stop_reason, stop_sequence = _stopped(self.wanted, end, calls_any=self._blocks.calls_any)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": _usage(self.wanted, end),
        }
        frames = [self._start(), *self._advance(last=True), _frame("message_delta", delta)]
        return b"".join(frames) + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def fail(self, error: EngineError) -> bytes:
        """The error event. Pieces that were held for an unfinished call are not sent: nobody may run half a call."""
        return b"event: error\ndata: " + error_body(error) + b"\n\n"

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        message = _message(self.facts, [], None, None, {"input_tokens": 0, "output_tokens": 0})
        return _frame("message_start", {"type": "message_start", "message": message})

    def _advance(self, *, last: bool) -> Iterator[bytes]:
        """What can be sent now: all of the open block, and the next ones as soon as it is over."""
        blocks = self._blocks.all
        while self._live < len(blocks):
            block = blocks[self._live]
            if not block.begun:
                block.begun = True
                opening = {"type": "content_block_start", "index": block.index, "content_block": block.opening()}
                yield _frame("content_block_start", opening)
            for text in block.waiting:
                yield _delta(block.index, block.type, text)
            block.waiting.clear()
            if not last and (self._live == len(blocks) - 1 or not block.whole):
                return
            if block.type == "thinking":
                yield _delta(block.index, "signature", "")
            yield b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % block.index
            block.closed = True
            self._live += 1


@attrs.define(eq=False)
class WholeReply:
    """An answer as one message. `feed` raises as of StreamReply; an unfinished call, or one whose arguments are no JSON
    object, has them as text under INVALID_JSON."""

    facts: ReplyFacts
    wanted: Wanted
    content_type: str = attrs.field(default="application/json", init=False)
    _blocks: _Blocks = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._blocks = _Blocks(self.facts.id, self.wanted)

    def feed(self, chunk: Chunk) -> bytes:
        self._blocks.place(chunk)
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        content = [block.content() for block in self._blocks.all]
        stopped = _stopped(self.wanted, end, calls_any=self._blocks.calls_any)
        return _encode(_message(self.facts, content, *stopped, {"input_tokens": 0} | _usage(self.wanted, end)))

    def fail(self, error: EngineError) -> bytes:
        return error_body(error)


@attrs.define(eq=False)
class CountReply:
    """A count of input tokens, for a request that was run for one token only. The answer itself is left out."""

    content_type: str = attrs.field(default="application/json", init=False)

    def feed(self, chunk: Chunk) -> bytes:
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        """Raises InvalidRequest when the runtime did not say how many there were."""
        count = end.end.prompt_tokens
        if count is None:
            raise InvalidRequest("this model's runtime does not count input tokens; ask for the answer instead")
        return count_body(count + (end.end.prompt_tokens_dropped or 0))

    def fail(self, error: EngineError) -> bytes:
        return error_body(error)


def count_body(input_tokens: int) -> bytes:
    """The answer to a count of tokens, from whoever can count."""
    return _encode({"input_tokens": input_tokens})


def error_body(error: EngineError, request_id: str | None = None) -> bytes:
    """An error as the dialect says it; goes with `error.status`. `request_id` is the one in the response's header."""
    if isinstance(error, Overloaded):
        type_ = "overloaded_error"
    else:
        type_ = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body: dict[str, Any] = {"type": "error", "error": {"type": type_, "message": error.message}}
    if request_id:
        body["request_id"] = request_id
    return _encode(body)


def is_object(text: str) -> bool:
    """Whether `text` is one JSON object."""
    try:
        _object_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _another(block: _Block, part: ToolCallPart) -> bool:
    """Whether `part` begins a call of its own, though its index was used: some servers number every call 0."""
    if not part.name:
        return False
    return part.id != block.id if part.id else block.whole


def _input(arguments: str) -> dict[str, Any] | msgspec.Raw:
    if not arguments.strip():
        return {}
    return msgspec.Raw(arguments.encode()) if is_object(arguments) else {INVALID_JSON: arguments}


def _stopped(wanted: Wanted, end: ReplyEnd, *, calls_any: bool) -> tuple[str | None, str | None]:
    """`stop_reason` and `stop_sequence`. Runtimes do not say which stop string it was, so it is known when there was
    only one."""
    reason = end.end.reason
    if wanted.prompt_only:
        return ("max_tokens" if reason in _STOP_REASONS else None), None
    if reason is EndReason.FINISHED and calls_any:
        return "tool_use", None
    sequence = wanted.stop[0] if reason is EndReason.STOP and len(wanted.stop) == 1 else None
    return _STOP_REASONS.get(reason), sequence


def _usage(wanted: Wanted, end: ReplyEnd) -> dict[str, int]:
    """Counts of the runtime, and our own of the answer where it has none."""
    output_tokens = end.tokens if end.end.eval_count is None else end.end.eval_count
    if wanted.prompt_only:
        output_tokens = 0
    if end.end.prompt_tokens is None:
        return {"output_tokens": output_tokens}
    return {"input_tokens": end.end.prompt_tokens, "output_tokens": output_tokens}


def _message(
    facts: ReplyFacts,
    content: list[dict[str, Any]],
    stop_reason: str | None,
    stop_sequence: str | None,
    usage: dict[str, int],
) -> dict[str, Any]:
    return {
        "id": f"msg_{facts.id}",
        "type": "message",
        "role": "assistant",
        "model": facts.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage,
    }


_DELTAS: Final = {  # the type of a delta, and the field that has its text
    "thinking": (b"thinking_delta", b"thinking"),
    "text": (b"text_delta", b"text"),
    "tool_use": (b"input_json_delta", b"partial_json"),
    "signature": (b"signature_delta", b"signature"),
}


def _delta(index: int, type_: str, text: str) -> bytes:
    """One delta, put together by hand: there is one per token."""
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
        % (index, *_DELTAS[type_], _encode(text))
    )


def _frame(event: str, data: dict[str, Any]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + _encode(data) + b"\n\n"
