"""Replies of `/v1/chat/completions` and `/v1/completions` made from chunks, for any runtime. Without IO.

Thinking goes out under both names that clients know (`reasoning`, `reasoning_content`). Its log-probabilities, and
those of tool calls, stand beside `content` under names of their own, so that the entries of `content` spell the
content.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, TokenKind, TokenLogprob
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects.openai_asks import INCLUDE_USAGE
from transport.wire.dialects.openai_shapes import BODY_TYPE, DONE_FRAME, STREAM_TYPE, Call, Calls, frame
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts, refuse_in_vain

_LISTS: Final = {TokenKind.ANSWER: "content", TokenKind.THINKING: "reasoning", TokenKind.TOOL: "tool_calls"}


def head(facts: ReplyFacts, prefix: str, object_: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{facts.id}",
        "object": object_,
        "created": int(facts.created_s),
        "model": facts.model,
    }


# ── chats ──


@attrs.define(eq=False)
class ChatStream:
    """The role stands in the first chunk, how it ended in one of its own, the counts behind it when they were asked
    for."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _head: dict[str, Any] = attrs.field(init=False)
    _calls: Calls = attrs.field(init=False)
    _begun: bool = attrs.field(default=False, init=False)
    _thinking_tokens: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._head = head(self.facts, "chatcmpl", "chat.completion.chunk")
        self._calls = Calls(self.facts.id)

    def feed(self, chunk: Chunk) -> bytes:
        delta: dict[str, Any] = {}
        shown = chunk.logprobs if self.asked.logprobs else ()
        match chunk.kind:
            case TokenKind.THINKING if chunk.text:
                self._thinking_tokens += shapes.token_count(chunk)
                delta = {"content": "", "reasoning": chunk.text, "reasoning_content": chunk.text}
            case TokenKind.TOOL if chunk.tool_calls:
                delta = {"tool_calls": [call_delta(*taken) for taken in self._calls.take(chunk)]}
            case TokenKind.ANSWER if chunk.text:
                delta = {"content": chunk.text}
            case _ if shown:
                delta = {"content": ""}
        return self._frame(delta, _logprobs(chunk.kind, shown, self.asked) if shown else None) if delta else b""

    def finish(self, end: ReplyEnd) -> bytes:
        frames = [] if self._begun else [self._frame({"content": ""})]
        if empty := [call for call in self._calls if not call.arguments]:
            frames.append(self._frame({"tool_calls": [call_delta(call, call.whole(), False) for call in empty]}))
        reason = shapes.finish_reason(end.end.reason, bool(self._calls))
        frames.append(frame(self._head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        if INCLUDE_USAGE in self.asked.options:
            frames.append(frame(self._head | {"choices": [], "usage": shapes.usage(end, self._thinking_tokens)}))
        return b"".join([*frames, DONE_FRAME])

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_frame(error)

    def _frame(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> bytes:
        if not self._begun:
            self._begun, delta = True, {"role": "assistant"} | delta
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return frame(self._head | {"choices": [choice]})


def call_delta(call: Call, arguments: str, begins: bool) -> dict[str, Any]:
    if not begins:
        return {"index": call.position, "function": {"arguments": arguments}}
    function = {"name": call.name, "arguments": arguments}
    return {"index": call.position, "id": call.id, "type": "function", "function": function}


def _logprobs(kind: TokenKind, tokens: tuple[TokenLogprob, ...], asked: Asked) -> dict[str, Any]:
    shown: dict[str, Any] = {"content": []}
    shown[_LISTS[kind]] = shapes.entries(tokens, asked.top_logprobs)
    return shown


@attrs.define(eq=False)
class ChatWhole:
    """The same in one body."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=BODY_TYPE, init=False)
    _calls: Calls = attrs.field(init=False)
    _texts: dict[TokenKind, list[str]] = attrs.field(init=False)
    _logprobs: dict[TokenKind, list[dict[str, Any]]] = attrs.field(init=False)
    _thinking_tokens: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._calls = Calls(self.facts.id)
        self._texts = {kind: [] for kind in TokenKind}
        self._logprobs = {kind: [] for kind in TokenKind}

    def feed(self, chunk: Chunk) -> bytes:
        self._texts[chunk.kind].append(chunk.text)
        self._calls.take(chunk)
        if self.asked.logprobs:
            self._logprobs[chunk.kind] += shapes.entries(chunk.logprobs, self.asked.top_logprobs)
        if shapes.is_thinking(chunk):
            self._thinking_tokens += shapes.token_count(chunk)
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        answer, thinking = ("".join(self._texts[kind]) for kind in (TokenKind.ANSWER, TokenKind.THINKING))
        refuse_in_vain(self.asked, answer, len(self._logprobs[TokenKind.ANSWER]))
        message: dict[str, Any] = {"role": "assistant", "content": answer if answer or not self._calls else None}
        if thinking:
            message |= {"reasoning": thinking, "reasoning_content": thinking}
        if self._calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.whole()}}
                for call in self._calls
            ]
        choice: dict[str, Any] = {
            "index": 0,
            "message": message,
            "finish_reason": shapes.finish_reason(end.end.reason, bool(self._calls)),
            "logprobs": self._shown() if self.asked.logprobs else None,
        }
        whole = head(self.facts, "chatcmpl", "chat.completion")
        return shapes.encode(whole | {"choices": [choice], "usage": shapes.usage(end, self._thinking_tokens)})

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_body(error)

    def _shown(self) -> dict[str, Any]:
        return {
            name: self._logprobs[kind] for kind, name in _LISTS.items() if self._logprobs[kind] or name == "content"
        }


# ── text completions ──


@attrs.define(eq=False)
class CompletionStream:
    """The API has no place for thinking: it stands beside an empty text."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _head: dict[str, Any] = attrs.field(init=False)
    _offset: int = attrs.field(default=0, init=False)
    _thinking_tokens: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._head = head(self.facts, "cmpl", "text_completion")

    def feed(self, chunk: Chunk) -> bytes:
        if shapes.is_thinking(chunk):
            self._thinking_tokens += shapes.token_count(chunk)
            return self._frame("", None, None, reasoning=chunk.text) if chunk.text else b""
        if chunk.kind is not TokenKind.ANSWER:
            return b""
        shown = None
        if self.asked.logprobs and chunk.logprobs:
            shown = shapes.legacy_entries(chunk.logprobs, self.asked.top_logprobs, self._offset)
        if not chunk.text and shown is None:
            return b""
        self._offset += len(chunk.text)
        return self._frame(chunk.text, shown, None)

    def finish(self, end: ReplyEnd) -> bytes:
        frames = self._frame("", None, shapes.finish_reason(end.end.reason, False))
        if INCLUDE_USAGE in self.asked.options:
            frames += frame(self._head | {"choices": [], "usage": shapes.usage(end, self._thinking_tokens)})
        return frames + DONE_FRAME

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_frame(error)

    def _frame(self, text: str, logprobs: dict[str, Any] | None, reason: str | None, **more: str) -> bytes:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason, **more}
        return frame(self._head | {"choices": [choice]})


@attrs.define(eq=False)
class CompletionWhole:
    """The same in one body."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=BODY_TYPE, init=False)
    _text: list[str] = attrs.field(factory=list, init=False)
    _thinking: list[str] = attrs.field(factory=list, init=False)
    _shown: dict[str, Any] = attrs.field(init=False)
    _offset: int = attrs.field(default=0, init=False)
    _thinking_tokens: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._shown = shapes.legacy_entries((), self.asked.top_logprobs, 0)

    def feed(self, chunk: Chunk) -> bytes:
        if shapes.is_thinking(chunk):
            self._thinking.append(chunk.text)
            self._thinking_tokens += shapes.token_count(chunk)
        elif chunk.kind is TokenKind.ANSWER:
            more = shapes.legacy_entries(chunk.logprobs, self.asked.top_logprobs, self._offset)
            for name, values in more.items():
                if values is not None:
                    self._shown[name] += values
            self._text.append(chunk.text)
            self._offset += len(chunk.text)
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        shown = self._shown if self.asked.logprobs else None
        reason = shapes.finish_reason(end.end.reason, False)
        text = "".join(self._text)
        refuse_in_vain(self.asked, text, len(self._shown["tokens"]))
        choice = {"text": text, "index": 0, "logprobs": shown, "finish_reason": reason}
        if self._thinking:
            choice["reasoning"] = "".join(self._thinking)
        whole = head(self.facts, "cmpl", "text_completion")
        return shapes.encode(whole | {"choices": [choice], "usage": shapes.usage(end, self._thinking_tokens)})

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_body(error)
