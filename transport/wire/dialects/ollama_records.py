"""The records of Ollama's answers, as it writes them: order of fields, times, and zeros left out.

Durations are integer nanoseconds, times RFC 3339 in UTC. What stopped an answer is told only where the model or a limit
did; a stopped one ends without `done_reason`, as Ollama writes it when a connection closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import msgspec

from engine.domain.errors import EngineError, ModelNotFound, UpstreamTruncated
from engine.domain.generation import EndReason
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts

STREAM_TYPE: Final = "application/x-ndjson"
WHOLE_TYPE: Final = "application/json; charset=utf-8"
CHAT: Final = "/api/chat"
WHOLE_BYTES_MAX: Final = 128 * 1024 * 1024  # held for a client that does not stream

_REASONS: Final = {EndReason.FINISHED: "stop", EndReason.STOP: "stop", EndReason.LENGTH: "length"}
_BROKEN: Final = frozenset({EndReason.ERROR, EndReason.TRUNCATED})


class TokenProb(msgspec.Struct, omit_defaults=True):
    token: str
    logprob: float
    bytes: list[int] = []


class Prob(TokenProb):
    top_logprobs: list[TokenProb] = []


class CalledFunction(msgspec.Struct):
    index: int
    name: str
    arguments: msgspec.Raw  # an object


class Call(msgspec.Struct):
    id: str
    function: CalledFunction


class Said(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[Call | msgspec.Raw] = []


Probs = Sequence[Prob | msgspec.Raw]


class Metrics(msgspec.Struct, omit_defaults=True):
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


@attrs.frozen
class Piece:
    """What a record says: `thinking` and `text` of the answer, calls and log-probabilities."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[Call | msgspec.Raw] = ()
    probs: Probs = ()


@attrs.define(eq=False)
class Records:
    """Writes the records of one reply."""

    asked: Asked
    facts: ReplyFacts
    _first_us: int | None = attrs.field(default=None, init=False)
    _now_us: int = attrs.field(default=0, init=False)

    def tick(self, t_us: int) -> None:
        """A chunk came, at `t_us` of the engine clock. The first one came at `facts.created_s`."""
        if self._first_us is None:
            self._first_us = t_us
        self._now_us = max(self._now_us, t_us - self._first_us)

    def piece(self, piece: Piece) -> bytes:
        """A record under way, without its LF."""
        return self._record(piece, done=False, reason="", metrics=None)

    def last(self, end: ReplyEnd, piece: Piece) -> bytes:
        """The terminal record; a whole answer has `piece` in it. For an answer that broke off, an error."""
        reason = end.end.reason
        if reason in _BROKEN:
            return error_body(UpstreamTruncated("the runtime broke off before the end of the answer"))
        return self._record(piece, done=True, reason=_REASONS.get(reason, ""), metrics=_metrics(end))

    def loaded(self) -> bytes:
        """The answer to a request that only loads or unloads."""
        reason = "unload" if self.asked.request.keep_alive == 0 else "load"
        return self._record(Piece(), done=True, reason=reason, metrics=None)

    def _record(self, piece: Piece, *, done: bool, reason: str, metrics: Metrics | None) -> bytes:
        """Chat has the log-probabilities before the counts, generate after them."""
        record: dict[str, Any] = {"model": self.facts.model, "created_at": self._stamp()}
        chat = self.asked.path == CHAT
        if chat:
            record["message"] = Said("assistant", piece.text, piece.thinking, list(piece.calls))
        else:
            record["response"] = piece.text
            if piece.thinking:
                record["thinking"] = piece.thinking
        record["done"] = done
        if reason:
            record["done_reason"] = reason
        if chat and piece.probs:
            record["logprobs"] = piece.probs
        if metrics is not None:
            record |= {name: value for name, value in msgspec.structs.asdict(metrics).items() if value}
        if not chat and piece.calls:
            record["tool_calls"] = piece.calls
        if not chat and piece.probs:
            record["logprobs"] = piece.probs
        return msgspec.json.encode(record)

    def _stamp(self) -> str:
        return rfc3339(round(self.facts.created_s * 1e6) + self._now_us)


def rfc3339(unix_us: int) -> str:
    """As Go writes it: a fraction without zeros at its end, none when it is zero."""
    seconds, micros = divmod(unix_us, 1_000_000)
    fraction = f".{micros:06d}".rstrip("0") if micros else ""
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def nanoseconds(ms: float | None) -> int:
    return 0 if ms is None else max(0, round(ms * 1e6))


def _metrics(end: ReplyEnd) -> Metrics:
    load_ms = end.end.load_ms if end.load_ms is None else end.load_ms
    return Metrics(
        total_duration=nanoseconds(end.total_ms),
        load_duration=nanoseconds(load_ms),
        prompt_eval_count=end.end.prompt_tokens or 0,
        prompt_eval_duration=nanoseconds(end.prompt_ms),
        eval_count=end.tokens if end.end.eval_count is None else end.end.eval_count,
        eval_duration=nanoseconds(end.generation_ms),
    )


# ── errors, and answers without a generation ──


def error_body(error: EngineError) -> bytes:
    """`{"error": …}`. A model that is not there is told in Ollama's own words first: programs look for them."""
    message = error.message
    model = error.details.get("model")
    if isinstance(error, ModelNotFound) and isinstance(model, str):
        message = f"model '{model}' not found: {message}"
    return msgspec.json.encode({"error": message})


def load_body(asked: Asked, facts: ReplyFacts) -> bytes:
    """The answer to a request that only loads (`keep_alive` 0: unloads); one JSON object, also when streaming."""
    return Records(asked, facts).loaded()
