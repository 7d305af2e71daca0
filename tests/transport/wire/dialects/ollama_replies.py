"""A reply of Ollama's dialect from beginning to end, for its tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from engine.domain.generation import Chunk, EndReason, GenerationEnd
from transport.wire.dialects import ollama
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts

CREATED_S = 1_795_170_586.25
CREATED = "2026-11-20T10:29:46.25Z"


def asked(path: str = "/api/chat", **fields: Any) -> Asked:
    begin = {"prompt": "hi"} if path == "/api/generate" else {"messages": [{"role": "user", "content": "hi"}]}
    return ollama.parse(path, json.dumps({"model": "alias"} | begin | fields).encode())


def facts() -> ReplyFacts:
    return ReplyFacts("abc", CREATED_S, "alias")


def end(reason: EndReason = EndReason.FINISHED, tokens: int = 2, **known: Any) -> ReplyEnd:
    return ReplyEnd(GenerationEnd(reason, **known), tokens, total_ms=9.5, load_ms=1.0, prompt_ms=2.0, generation_ms=4.0)


def replied(asked: Asked, chunks: Iterable[Chunk], end: ReplyEnd, *, native: bool) -> bytes:
    reply = ollama.reply_for(asked, native, facts())
    data = b"".join([reply.feed(chunk) for chunk in chunks])
    return data + reply.finish(end)


def records_of(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]
