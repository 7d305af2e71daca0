"""`/chat/completions` and `/generate` of a service: two dialects of the lens, under the paths of a service.

Requests go the way of the lens (web/lens/flow), always translated, so the answers look the same whatever runtime is
behind them. The service says which model answers; a request may name it, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Any, Final

import attrs
import msgspec
from quart import Response, g, request

from engine.domain.errors import EngineError, InvalidRequest
from engine.domain.generation import Chunk, Origin
from transport.wire.dialects import ollama, openai
from transport.wire.dialects.ollama_records import nanoseconds
from transport.wire.dialects.openai_asks import refused
from transport.wire.dialects.reply import Asked, Reply, ReplyEnd, ReplyFacts, needs
from transport.wire.request_json import decode
from web.handles import on_leave
from web.lens.flow import DialectModule, answer
from web.services.service import Chosen, Service

CHAT: Final = (openai, "/v1/chat/completions")
GENERATE: Final = (ollama, "/api/generate")

RANGES: Final = {  # of options that Ollama takes beyond them, in ways of its own
    "options.temperature": "0–2",
    "options.top_p": "0–1",
    "options.top_k": "1–100",
    "options.min_p": "0–1",
    "options.seed": "a whole number from 0, or below 0 for any",
    "options.num_predict": "at least 1, or below 0 for no limit",
    "options.presence_penalty": "-2–2",
    "options.frequency_penalty": "-2–2",
    "options.repeat_penalty": "at least 0",
    "options.stop": "at most 10 strings",
}
_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_name: Final = msgspec.json.Decoder(str | None)


async def completion(service: Service, kind: tuple[DialectModule, str]) -> Response:
    """The answer to the request at hand. Leaving before its end stops the model."""
    began_us = service.engine.clock()
    chosen = await service.choose()
    dialect = ServiceDialect(*kind, chosen.model.name, accepted_names(service, chosen))
    response = await answer(service.engine, dialect, Origin.SERVICE)
    response.headers.update(chosen.headers())
    session_id = response.headers.get("x-wf-session")
    if session_id is not None and response.status_code == 200:
        on_leave(request.scope, partial(service.ended, session_id, began_us))
    return response


def accepted_names(service: Service, chosen: Chosen) -> frozenset[str]:
    """What a caller may write in `model`: the model the service is for, the one that answers, and the service."""
    names = {chosen.wanted, chosen.model.name, chosen.model.info.name, service.name, *service.entry.aliases}
    return frozenset(names | ({service.entry.agent_id} if service.entry.agent_id else set()))


@attrs.frozen
class ServiceDialect:
    """A dialect whose requests name the service's own model, and whose refusals are native. Nothing is forwarded as it
    is: NATIVE_PATHS is empty."""

    inner: DialectModule
    path: str  # of the dialect
    model: str
    accepted: frozenset[str]
    NATIVE_PATHS: Collection[str] = ()

    def parse(self, path: str, body: bytes) -> Asked:
        """Raises InvalidRequest, always with the field in its details."""
        try:
            return self._parsed(body)
        except InvalidRequest as error:
            place = _PLACE.search(error.message)
            error.details.setdefault("field", "body" if place is None else place[1])
            raise

    def _parsed(self, body: bytes) -> Asked:
        fields = decode(body, _fields)
        try:
            given = _name.decode(fields.get("model", b"null"))
        except msgspec.MsgspecError:
            raise refused("model", "a text") from None
        if given is not None and given not in self.accepted:
            raise refused(
                "model", f"this service answers with {self.model}; leave it out, or ask the engine's own API for others"
            )
        fields["model"] = msgspec.Raw(msgspec.json.encode(self.model))
        asked = self.inner.parse(self.path, msgspec.json.encode(fields))
        if asked.load_only:
            raise refused("prompt", "is missing")
        for field in needs(asked):
            if field in RANGES:
                raise refused(field, RANGES[field])
        return asked

    def reply_for(self, asked: Asked, native: bool, facts: ReplyFacts) -> Reply:
        reply = self.inner.reply_for(asked, native, facts)
        return WithAllCounts(reply) if self.inner is ollama else WithChatId(reply, facts.id)

    def forward_body(self, asked: Asked, model: str, *, logprobs: bool = True) -> bytes:
        raise AssertionError("nothing is forwarded")

    def error_body(self, error: EngineError) -> bytes:
        error.details.setdefault("request_id", g.get("request_id"))
        return msgspec.json.encode(error.body())


@attrs.define(eq=False)
class WithChatId:
    """Services call an answer `chat-…`, where OpenAI says `chatcmpl-…`."""

    inner: Reply
    id: str  # without its prefix
    content_type: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.content_type = self.inner.content_type

    def feed(self, chunk: Chunk) -> bytes:
        return self._named(self.inner.feed(chunk))

    def finish(self, end: ReplyEnd) -> bytes:
        return self._named(self.inner.finish(end))

    def fail(self, error: EngineError) -> bytes:
        return self.inner.fail(error)

    def _named(self, data: bytes) -> bytes:
        """No text of an answer has this in it: a quotation mark within a text is escaped."""
        return data.replace(f'{{"id":"chatcmpl-{self.id}"'.encode(), f'{{"id":"chat-{self.id}"'.encode())


@attrs.define(eq=False)
class WithAllCounts:
    """Ollama leaves out of its last record what is zero. Here every count is there, null where nothing was measured."""

    inner: Reply
    content_type: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.content_type = self.inner.content_type

    def feed(self, chunk: Chunk) -> bytes:
        return self.inner.feed(chunk)

    def finish(self, end: ReplyEnd) -> bytes:
        data = self.inner.finish(end)
        *before, last = data.rstrip(b"\n").split(b"\n")
        record: dict[str, Any] = _fields.decode(last)
        if "error" not in record:
            counts = {name: record.pop(name, count) for name, count in _counts(end).items()}
            record |= counts  # as the document of the services has them: all there, in this order, and last
        line_end = b"\n" if data.endswith(b"\n") else b""
        return b"\n".join([*before, msgspec.json.encode(record)]) + line_end

    def fail(self, error: EngineError) -> bytes:
        return self.inner.fail(error)


def _counts(end: ReplyEnd) -> dict[str, int | None]:
    """The counts of a last record; the record's own say the same where it has them."""
    load_ms = end.end.load_ms if end.load_ms is None else end.load_ms
    times = {
        "total_duration": end.total_ms,
        "load_duration": load_ms,
        "prompt_eval_duration": end.prompt_ms,
        "eval_duration": end.generation_ms,
    }
    spent = {name: None if ms is None else nanoseconds(ms) for name, ms in times.items()}
    eval_count = end.tokens if end.end.eval_count is None else end.end.eval_count
    return {
        "total_duration": spent["total_duration"],
        "load_duration": spent["load_duration"],
        "prompt_eval_count": end.end.prompt_tokens,
        "eval_count": eval_count,
        "prompt_eval_duration": spent["prompt_eval_duration"],
        "eval_duration": spent["eval_duration"],
    }
