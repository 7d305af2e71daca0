"""Replies of `/v1/responses`, made from chunks. Without IO.

A response is a list of items: thinking (as the summary that clients show), messages, calls of tools. One is open at a
time; what is of another kind closes it and opens the next. Calls stay open to the end: their pieces may alternate.
"""

from __future__ import annotations

from typing import Any

import attrs

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, TokenKind
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects.openai_shapes import BODY_TYPE, STREAM_TYPE, Call, Calls
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts, refuse_in_vain
from transport.wire.dialects.responses import Echo, echo_decoder

_NULL = b"null"


@attrs.define(eq=False)
class _Text:
    """A message, or thinking, under way."""

    id: str
    index: int
    kind: TokenKind
    texts: list[str] = attrs.field(factory=list)
    logprobs: list[dict[str, Any]] = attrs.field(factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def part(self) -> dict[str, Any]:
        if self.kind is TokenKind.THINKING:
            return {"type": "summary_text", "text": self.text}
        return {"type": "output_text", "annotations": [], "logprobs": self.logprobs, "text": self.text}

    def item(self, status: str) -> dict[str, Any]:
        parts = [] if status == "in_progress" else [self.part()]
        if self.kind is TokenKind.THINKING:
            return {"id": self.id, "type": "reasoning", "status": status, "summary": parts}
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": parts}


@attrs.define(eq=False)
class _Call:
    index: int
    id: str
    call: Call

    def item(self, status: str) -> dict[str, Any]:
        arguments = "" if status == "in_progress" else self.call.whole()
        named = {"call_id": self.call.id, "name": self.call.name, "arguments": arguments}
        return {"id": self.id, "type": "function_call", "status": status, **named}


@attrs.define(eq=False)
class ResponseStream:
    """Named events, numbered from 0; the last is `response.completed`, `.incomplete` or `.failed`."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _echo: Echo = attrs.field(init=False)
    _calls: Calls = attrs.field(init=False)
    _number: int = attrs.field(default=0, init=False)
    _items: list[_Text | _Call] = attrs.field(factory=list, init=False)
    _open: _Text | None = attrs.field(default=None, init=False)
    _thinking_tokens: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._echo = echo_decoder.decode(self.asked.body)
        self._calls = Calls(self.facts.id)

    # ── events ──

    def feed(self, chunk: Chunk) -> bytes:
        if not chunk.text and not chunk.tool_calls:
            return b""
        begun = self._begun()
        if chunk.kind is TokenKind.TOOL:
            return begun + self._called(chunk)
        if shapes.is_thinking(chunk):
            self._thinking_tokens += shapes.token_count(chunk)
        return begun + self._said(chunk)

    def finish(self, end: ReplyEnd) -> bytes:
        data = self._begun()
        if not self._items:
            data += self._opened(TokenKind.ANSWER)
        reason = shapes.finish_reason(end.end.reason, False)
        status = "incomplete" if reason == "length" else "completed"
        data += self._closed(status) + self._calls_closed(status)
        return data + self._event(f"response.{status}", response=self.response(status, end))

    def answered(self) -> tuple[str, int]:
        """The answer's words, and how many log-probabilities stand beside them."""
        said = [item for item in self._items if isinstance(item, _Text) and item.kind is TokenKind.ANSWER]
        return "".join(text.text for text in said), sum(len(text.logprobs) for text in said)

    def fail(self, error: EngineError) -> bytes:
        """What came so far is closed as incomplete, then the failure is told."""
        data = self._begun() + self._closed("incomplete") + self._calls_closed("incomplete")
        return data + self._event("response.failed", response=self.response("failed", error=error))

    def _event(self, type_: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return shapes.named_frame(type_, {"type": type_, "sequence_number": number, **fields})

    def _begun(self) -> bytes:
        if self._number:
            return b""
        response = self.response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    # ── texts ──

    def _said(self, chunk: Chunk) -> bytes:
        data = b""
        if self._open is None or self._open.kind is not chunk.kind:
            data = self._closed("completed") + self._opened(chunk.kind)
        text = self._open
        assert text is not None
        text.texts.append(chunk.text)
        where: dict[str, Any] = {"item_id": text.id, "output_index": text.index}
        if text.kind is TokenKind.THINKING:
            where["summary_index"] = 0
            return data + self._event("response.reasoning_summary_text.delta", **where, delta=chunk.text)
        shown = shapes.entries(chunk.logprobs, self.asked.top_logprobs) if self.asked.logprobs else []
        text.logprobs += shown
        where |= {"content_index": 0, "delta": chunk.text, "logprobs": shown}
        return data + self._event("response.output_text.delta", **where)

    def _opened(self, kind: TokenKind) -> bytes:
        index, thinking = len(self._items), kind is TokenKind.THINKING
        text = self._open = _Text(f"{'rs' if thinking else 'msg'}_{self.facts.id}_{index}", index, kind)
        self._items.append(text)
        data = self._event("response.output_item.added", output_index=index, item=text.item("in_progress"))
        return data + self._part_event("added", text)

    def _closed(self, status: str) -> bytes:
        text, self._open = self._open, None
        if text is None:
            return b""
        where = {"item_id": text.id, "output_index": text.index}
        if text.kind is TokenKind.THINKING:
            done = self._event("response.reasoning_summary_text.done", **where, summary_index=0, text=text.text)
        else:
            shown = {"text": text.text, "logprobs": text.logprobs}
            done = self._event("response.output_text.done", **where, content_index=0, **shown)
        done += self._part_event("done", text)
        return done + self._event("response.output_item.done", output_index=text.index, item=text.item(status))

    def _part_event(self, what: str, text: _Text) -> bytes:
        where = {"item_id": text.id, "output_index": text.index}
        if text.kind is TokenKind.THINKING:
            type_, place = f"response.reasoning_summary_part.{what}", "summary_index"
        else:
            type_, place = f"response.content_part.{what}", "content_index"
        return self._event(type_, **where, **{place: 0}, part=text.part())

    # ── calls ──

    def _called(self, chunk: Chunk) -> bytes:
        data = self._closed("completed")
        for call, arguments, begins in self._calls.take(chunk):
            if begins:
                index = len(self._items)
                item = _Call(index, f"fc_{self.facts.id}_{index}", call)
                self._items.append(item)
                data += self._event("response.output_item.added", output_index=index, item=item.item("in_progress"))
            item = next(one for one in self._items if isinstance(one, _Call) and one.call is call)
            if arguments:
                data += self._event(
                    "response.function_call_arguments.delta",
                    item_id=item.id,
                    output_index=item.index,
                    delta=arguments,
                )
        return data

    def _calls_closed(self, status: str) -> bytes:
        data = b""
        for item in self._items:
            if isinstance(item, _Call):
                where: dict[str, Any] = {"item_id": item.id, "output_index": item.index, "name": item.call.name}
                done = "response.function_call_arguments.done"
                data += self._event(done, **where, arguments=item.call.whole())
                data += self._event("response.output_item.done", output_index=item.index, item=item.item(status))
        return data

    # ── the whole ──

    def response(self, status: str, end: ReplyEnd | None = None, error: EngineError | None = None) -> dict[str, Any]:
        """The response as it stands, with what it repeats of the request."""
        over = status != "in_progress"
        item_status = "completed" if status == "completed" else "incomplete"
        echo = self._echo
        text = echo.text if bytes(echo.text) != _NULL else {"format": {"type": "text"}}
        return {
            "id": f"resp_{self.facts.id}",
            "object": "response",
            "created_at": int(self.facts.created_s),
            "completed_at": int(self.facts.created_s + end.total_ms / 1000) if end and status == "completed" else None,
            "status": status,
            "background": False,
            "error": _error(error),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": echo.instructions,
            "max_output_tokens": echo.max_output_tokens,
            "max_tool_calls": None,
            "metadata": echo.metadata if bytes(echo.metadata) != _NULL else {},
            "model": self.facts.model,
            "output": [self._final(item, item_status) for item in self._items] if over else [],
            "parallel_tool_calls": bytes(echo.parallel_tool_calls) != b"false",
            "presence_penalty": echo.presence_penalty or 0,
            "frequency_penalty": echo.frequency_penalty or 0,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": _reasoning(echo),
            "safety_identifier": None,
            "service_tier": "default",
            "store": False,
            "temperature": 1 if echo.temperature is None else echo.temperature,
            "text": text,
            "tool_choice": echo.tool_choice if bytes(echo.tool_choice) != _NULL else "auto",
            "tools": echo.tools if bytes(echo.tools) != _NULL else [],
            "top_logprobs": self.asked.top_logprobs,
            "top_p": 1 if echo.top_p is None else echo.top_p,
            "truncation": "disabled",
            "usage": self._usage(end) if end is not None else None,
        }

    def _final(self, item: _Text | _Call, status: str) -> dict[str, Any]:
        """Only the last item can have been cut short; of calls, all may."""
        cut = isinstance(item, _Call) or item is self._items[-1]
        return item.item(status if cut else "completed")

    def _usage(self, end: ReplyEnd) -> dict[str, Any]:
        prompt, generated = shapes.counts(end)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": min(self._thinking_tokens, generated)},
            "total_tokens": prompt + generated,
        }


@attrs.define(eq=False)
class ResponseWhole:
    """The same in one body."""

    asked: Asked
    facts: ReplyFacts
    content_type: str = attrs.field(default=BODY_TYPE, init=False)
    _stream: ResponseStream = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stream = ResponseStream(self.asked, self.facts)

    def feed(self, chunk: Chunk) -> bytes:
        self._stream.feed(chunk)
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        self._stream.finish(end)
        refuse_in_vain(self.asked, *self._stream.answered())
        reason = shapes.finish_reason(end.end.reason, False)
        return shapes.encode(self._stream.response("incomplete" if reason == "length" else "completed", end))

    def fail(self, error: EngineError) -> bytes:
        return shapes.error_body(error)


def _error(error: EngineError | None) -> dict[str, str] | None:
    if error is None:
        return None
    code = "server_error" if error.status >= 500 else "invalid_prompt"
    return {"code": "rate_limit_exceeded" if error.status == 429 else code, "message": error.message}


def _reasoning(echo: Echo) -> dict[str, Any] | None:
    given = echo.reasoning
    return None if given is None else {"effort": given.effort, "summary": given.summary}
