"""What every dialect of the lens has: a request understood, and a reply that is made chunk by chunk. Without IO.

A dialect is a module with four functions: `parse(path, body) -> Asked`, `reply_for(asked, native, facts) -> Reply`,
`forward_body(asked, model) -> bytes` and `error_body(error) -> bytes`.
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, Dialect, GenerationEnd, GenerationRequest
from transport.wire.requests import gave_no_logprobs

NEEDS: Final = "needs:"  # and a field: an option of a request that cannot be translated


@attrs.frozen
class Asked:
    """A client's request. `model` is as the client wrote it, `request.model` is empty until it is resolved.

    `logprobs` and `top_logprobs` are what the client wants to see, whatever we ask of the runtime. `load_only` asks for
    no answer: bring the model into memory, or take it out (`request.keep_alive` 0). `options` are switches of one
    dialect that only its reply needs."""

    dialect: Dialect
    path: str
    body: bytes
    model: str
    stream: bool
    request: GenerationRequest
    logprobs: bool = False
    top_logprobs: int = 0
    load_only: bool = False
    options: frozenset[str] = frozenset()


def refuse_in_vain(asked: Asked, text: str, given: int) -> None:
    """Raises InvalidRequest for an answer in words without any of the log-probabilities that the client wants: some
    servers pass over the question. A reply that is whole can still say so."""
    if asked.logprobs and text and not given:
        raise gave_no_logprobs(asked.model)


def needs(asked: Asked) -> tuple[str, ...]:
    """The fields of a request that only a runtime of its own dialect can heed."""
    return tuple(sorted(option.removeprefix(NEEDS) for option in asked.options if option.startswith(NEEDS)))


@attrs.frozen
class ReplyFacts:
    """What a reply says of itself: `id` is unique and URL-safe, `created_s` is Unix time, `model` is the name that the
    client used."""

    id: str
    created_s: float
    model: str


@attrs.frozen
class ReplyEnd:
    """How a generation went. `tokens` is our own count; times in ms, null where there was nothing to measure:
    `prompt_ms` from having the model to the first token, `generation_ms` from that to the last one."""

    end: GenerationEnd
    tokens: int
    total_ms: float
    load_ms: float | None
    prompt_ms: float | None
    generation_ms: float | None


class Reply(Protocol):
    """A reply under way. Streaming ones return bytes for the client as they come (perhaps none); a whole one returns
    everything from `finish`.

    `native`: the runtime spoke the dialect itself, so `feed` hands on `chunk.raw`, less what only our asking caused,
    and `finish` adds only what is missing. Otherwise everything is made from the chunks."""

    content_type: str

    def feed(self, chunk: Chunk) -> bytes:
        """The next chunk of the runtime."""

    def finish(self, end: ReplyEnd) -> bytes:
        """The terminal frame, or the whole body. Called once, after the last chunk."""

    def fail(self, error: EngineError) -> bytes:
        """The dialect's error frame, for a stream that began and cannot end well. Called instead of `finish`."""
