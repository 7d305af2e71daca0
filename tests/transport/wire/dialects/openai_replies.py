"""Requests, chunks and replies of the OpenAI dialect, short to write and short to read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, TokenLogprob, ToolCallPart, TopEntry
from transport.wire.dialects import openai
from transport.wire.dialects.reply import Asked, Reply, ReplyEnd, ReplyFacts
from transport.wire.openai import ChunkStream

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
FACTS = ReplyFacts("4f", 1_795_170_586.9, "my/model")
DONE = "[DONE]"


def asked(path: str = CHAT, **fields: Any) -> Asked:
    needed: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": "hi"}]},
        COMPLETIONS: {"prompt": "hi"},
        RESPONSES: {"input": "hi"},
    }[path]
    return openai.parse(path, json.dumps({"model": "my/model"} | needed | fields).encode())


def reply(path: str = CHAT, native: bool = False, **fields: Any) -> Reply:
    return openai.reply_for(asked(path, **fields), native, FACTS)


def ended(reason: EndReason = EndReason.FINISHED, prompt: int | None = 5, generated: int | None = 3) -> ReplyEnd:
    return ReplyEnd(GenerationEnd(reason, prompt, generated), 7, 1000.0, None, 10.0, 20.0)


def logprob(token: str, value: float = -0.5, **top: float) -> TokenLogprob:
    return TokenLogprob(token, value, tuple(TopEntry(text, of) for text, of in top.items()))


def said(text: str, *tokens: TokenLogprob, kind: TokenKind = TokenKind.ANSWER) -> Chunk:
    return Chunk(text, 7, kind=kind, logprobs=tokens)


def thought(text: str, *tokens: TokenLogprob) -> Chunk:
    return said(text, *tokens, kind=TokenKind.THINKING)


def called(*parts: ToolCallPart) -> Chunk:
    return Chunk("", 7, kind=TokenKind.TOOL, tool_calls=parts)


def data_of(body: bytes) -> list[Any]:
    """The values of an event stream; `[DONE]` as text."""
    values = []
    for event in body.split(b"\n\n")[:-1]:
        (line,) = [line for line in event.split(b"\n") if line.startswith(b"data: ")]
        text = line.removeprefix(b"data: ").decode()
        values.append(text if text == DONE else json.loads(text))
    assert body.endswith(b"\n\n")
    return values


def streamed(reply: Reply, chunks: Iterable[Chunk], end: ReplyEnd | None = None) -> list[Any]:
    """The events of a whole reply."""
    return data_of(b"".join(map(reply.feed, chunks)) + reply.finish(end or ended()))


def whole(reply: Reply, chunks: Iterable[Chunk], end: ReplyEnd | None = None) -> Any:
    """The one body; nothing came before it."""
    assert b"".join(map(reply.feed, chunks)) == b""
    return json.loads(reply.finish(end or ended()))


def decoded(body: bytes) -> list[Chunk]:
    """The chunks of a runtime's own stream."""
    stream = ChunkStream()
    return [*stream.feed(body, 7), *stream.finish(7)]


def events(*values: Any) -> bytes:
    """A runtime's stream."""
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + b"data: [DONE]\n\n"


def deltas(values: Iterable[Any], name: str) -> str:
    """One kind of text of a stream of chats, joined."""
    choices = [choice for value in values if value != DONE for choice in value["choices"]]
    return "".join(choice["delta"].get(name) or "" for choice in choices)
