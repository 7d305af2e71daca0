"""Ollama's answers to `/api/generate` and `/api/chat`, made from the chunks of a runtime of any other dialect.

- A tool call is given whole, so its pieces are held until text follows or the answer ends. Ollama has arguments as an
  object; a call whose arguments are none (a model's mistake, or the length ran out) is no call that anybody should
  carry out, so it is given as text in `content`: `{"name": …, "arguments": "<as the model wrote them>"}`.
- `created_at` of a record is `ReplyFacts.created_s` for the first chunk, and later by the chunks' own clock.
"""

from __future__ import annotations

import hashlib
from base64 import b32encode
from typing import Final

import attrs
import msgspec

from engine.domain.errors import EngineError, UpstreamProtocolError
from engine.domain.generation import Chunk, TokenKind, TokenLogprob, ToolCallPart
from transport.wire.dialects.ollama_native import NativeStream, NativeWhole, within_bounds
from transport.wire.dialects.ollama_records import (
    STREAM_TYPE,
    WHOLE_TYPE,
    Call,
    CalledFunction,
    Piece,
    Prob,
    Records,
    TokenProb,
    error_body,
)
from transport.wire.dialects.reply import Asked, Reply, ReplyEnd, ReplyFacts, refuse_in_vain

CALLS_MAX: Final = 256  # of one answer
ARGUMENTS_CHARS_MAX: Final = 16 * 1024 * 1024  # of all calls that are not whole yet
_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def reply_for(asked: Asked, native: bool, facts: ReplyFacts) -> Reply:
    """The reply to `asked`. One that only loads is whole, whatever `stream` says."""
    records = Records(asked, facts)
    whole = asked.load_only or not asked.stream
    if native:
        return NativeWhole(records) if whole else NativeStream(records)
    return _MadeWhole(records) if whole else _MadeStream(records)


@attrs.define(eq=False)
class _MadeStream:
    """Feeding raises UpstreamProtocolError for more calls than anybody can mean."""

    _records: Records
    content_type: str = attrs.field(default=STREAM_TYPE, init=False)
    _pieces: _Pieces = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pieces = _Pieces(self._records)

    def feed(self, chunk: Chunk) -> bytes:
        return self._lines(self._pieces.take(chunk))

    def finish(self, end: ReplyEnd) -> bytes:
        return self._lines(self._pieces.rest()) + self._records.last(end, Piece()) + b"\n"

    def fail(self, error: EngineError) -> bytes:
        return error_body(error) + b"\n"

    def _lines(self, pieces: list[Piece]) -> bytes:
        return b"".join(self._records.piece(piece) + b"\n" for piece in pieces)


@attrs.define(eq=False)
class _MadeWhole:
    """Feeding raises UpstreamProtocolError also for more than 128 MiB."""

    _records: Records
    content_type: str = attrs.field(default=WHOLE_TYPE, init=False)
    _pieces: _Pieces = attrs.field(init=False)
    _texts: list[str] = attrs.field(factory=list, init=False)
    _thinking: list[str] = attrs.field(factory=list, init=False)
    _calls: list[Call | msgspec.Raw] = attrs.field(factory=list, init=False)
    _probs: list[msgspec.Raw] = attrs.field(factory=list, init=False)
    _size_bytes: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._pieces = _Pieces(self._records)

    def feed(self, chunk: Chunk) -> bytes:
        self._gather(self._pieces.take(chunk))
        return b""

    def finish(self, end: ReplyEnd) -> bytes:
        if self._records.asked.load_only:
            return self._records.loaded()
        self._gather(self._pieces.rest())
        text = "".join(self._texts)
        refuse_in_vain(self._records.asked, text, len(self._probs))
        return self._records.last(end, Piece(text, "".join(self._thinking), self._calls, self._probs))

    def fail(self, error: EngineError) -> bytes:
        return error_body(error)

    def _gather(self, pieces: list[Piece]) -> None:
        """Log-probabilities are held encoded: as objects they take ten times the room."""
        for piece in pieces:
            probs = [msgspec.json.encode(prob) for prob in piece.probs]
            self._texts.append(piece.text)
            self._thinking.append(piece.thinking)
            self._calls.extend(piece.calls)
            self._probs.extend(msgspec.Raw(prob) for prob in probs)
            self._size_bytes += len(piece.text) + len(piece.thinking) + sum(map(len, probs))
        within_bounds(self._size_bytes)


@attrs.define(eq=False)
class _Pieces:
    """From chunks to what the records say."""

    _records: Records
    _held: dict[int, list[ToolCallPart]] = attrs.field(factory=dict, init=False)
    _held_chars: int = attrs.field(default=0, init=False)
    _calls_made: int = attrs.field(default=0, init=False)

    def take(self, chunk: Chunk) -> list[Piece]:
        self._records.tick(chunk.t_us)
        asked = self._records.asked
        probs = [_prob(entry, asked.top_logprobs) for entry in chunk.logprobs] if asked.logprobs else []
        for part in chunk.tool_calls:
            self._hold(part)
        called = chunk.kind is TokenKind.TOOL and chunk.tool_calls
        text = "" if called else chunk.text  # the text of a call is the call
        if not text:
            return [Piece(probs=probs)] if probs else []
        pieces = self.rest()
        if chunk.kind is TokenKind.THINKING:
            return [*pieces, Piece(thinking=text, probs=probs)]
        return [*pieces, Piece(text=text, probs=probs)]

    def rest(self) -> list[Piece]:
        """The calls that are held, in their order: those that are calls in one piece, the others as text before it."""
        calls: list[Call] = []
        texts: list[str] = []
        for _, parts in sorted(self._held.items()):
            name = "".join(part.name for part in parts[:1]) or next((part.name for part in parts if part.name), "")
            arguments = "".join(part.arguments for part in parts)
            written = _object(arguments)
            if name and written is not None:
                id_ = next((part.id for part in parts if part.id), "") or self._call_id()
                calls.append(Call(id_, CalledFunction(self._calls_made, name, written)))
                self._calls_made += 1
            else:
                texts.append(str(msgspec.json.encode({"name": name, "arguments": arguments}), "utf-8"))
        self._held.clear()
        self._held_chars = 0
        pieces = [Piece(text=text) for text in texts]
        return [*pieces, Piece(calls=calls)] if calls else pieces

    def _hold(self, part: ToolCallPart) -> None:
        self._held.setdefault(part.index, []).append(part)
        self._held_chars += len(part.arguments) + len(part.name) + len(part.id)
        if len(self._held) + self._calls_made > CALLS_MAX or self._held_chars > ARGUMENTS_CHARS_MAX:
            raise UpstreamProtocolError(
                f"the model called more than {CALLS_MAX} tools, or with more than {ARGUMENTS_CHARS_MAX} characters",
                limit=CALLS_MAX,
            )

    def _call_id(self) -> str:
        """For runtimes that give none; unique within the engine as the reply's own id is."""
        seed = f"{self._records.facts.id}/{self._calls_made}".encode()
        return f"call_{b32encode(hashlib.blake2s(seed, digest_size=5).digest()).decode().lower()}"


def _object(arguments: str) -> msgspec.Raw | None:
    """The arguments of a call without any are an empty object."""
    if arguments.strip() in ("", "null"):
        return msgspec.Raw(b"{}")
    try:
        return msgspec.Raw(msgspec.json.encode(_object_decoder.decode(arguments)))
    except (msgspec.DecodeError, RecursionError):
        return None


def _prob(entry: TokenLogprob, top: int) -> Prob:
    best = sorted(entry.top, key=lambda found: -found.logprob)[:top] if top else []
    return Prob(
        entry.token,
        entry.logprob,
        list(entry.token.encode()),
        [TokenProb(found.token, found.logprob, list(found.token.encode())) for found in best],
    )
