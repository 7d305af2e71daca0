"""Frames and events as bytes. Every event is encoded once for all clients and event streams, and once more for each
distinct subscription with top-K lists; frames and lines are put together from these pieces."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from engine.domain.energy import EnergySample
from engine.domain.events import Event, TokensPayload
from engine.domain.frames import Frame

SCHEMA_VERSION: Final = "1.0"
SCHEMA_VERSIONS: Final = ("1.0",)

_OPCODE_TEXT: Final = 0x81  # FIN + text (RFC 6455 §5.2); a server's frames are not masked

_encoder = msgspec.json.Encoder()


class TokenItem(msgspec.Struct, gc=False):
    """One token of `experience.token`. `top` is absent unless subscribed with it; log-probabilities are natural
    logs."""

    text: str
    kind: str
    position: int
    offset: int
    t_us: int
    delta_ms: float | None
    logprob: float | None
    energy: float | None
    energy_base: float | None
    coalesced: bool
    throttled: bool
    top: list[TopItem] | msgspec.UnsetType = msgspec.UNSET


class TopItem(msgspec.Struct, gc=False):
    token: str
    logprob: float | None  # null: the runtime reported minus infinity


class TokenEventPayload(msgspec.Struct, gc=False):
    stream_id: str
    model: str
    tokens: list[TokenItem]


class EventItem(msgspec.Struct, gc=False):
    type: str
    session_id: str | None
    payload: Any


class EventLine(msgspec.Struct, gc=False):
    """One line of NDJSON, or one `data:` of SSE: an event outside a frame, with the stamps of the frame it was in."""

    v: str
    ts_ms: int
    mono_ms: float
    type: str
    session_id: str | None
    payload: Any


def _token(sample: EnergySample, with_top: bool) -> TokenItem:
    token, delta_us = sample.token, sample.token.delta_us
    item = TokenItem(
        text=token.text,
        kind=token.kind,
        position=token.position,
        offset=token.offset,
        t_us=token.t_us,
        delta_ms=None if delta_us is None else delta_us / 1000,
        logprob=token.logprob,  # JSON has no infinities: the encoder writes null for what is not finite
        energy=sample.energy,
        energy_base=sample.energy_base,
        coalesced=token.coalesced,
        throttled=token.throttled,
    )
    if with_top:
        item.top = [TopItem(entry.token, entry.logprob) for entry in token.top]
    return item


def _text_only(sample: EnergySample) -> TokenItem:
    """A token under the heaviest load: what it said, where and when. The rest was dropped, and counted."""
    token = sample.token
    return TokenItem(
        text=token.text,
        kind=token.kind,
        position=token.position,
        offset=token.offset,
        t_us=token.t_us,
        delta_ms=None,
        logprob=None,
        energy=None,
        energy_base=None,
        coalesced=token.coalesced,
        throttled=token.throttled,
    )


def encode_event(event: Event, *, with_top: bool) -> bytes:
    """`{"type","session_id","payload"}`; tokens with their top-K lists or without."""
    payload: Any = event.payload
    if isinstance(payload, TokensPayload):
        older, with_top = payload.text_only, with_top and payload.with_top
        tokens = [_text_only(sample) for sample in payload.samples[:older]]
        tokens += [_token(sample, with_top) for sample in payload.samples[older:]]
        payload = TokenEventPayload(payload.stream_id, payload.model, tokens)
    return _encoder.encode(EventItem(event.type, event.session_id, payload))


def line_head(frame: Frame) -> bytes:
    """The stamps of a frame, with which the lines of its events begin."""
    return f'{{"v":"{SCHEMA_VERSION}","ts_ms":{frame.ts_ms},"mono_ms":{frame.mono_us / 1000!r},'.encode()


def line_of(head: bytes, event: bytes) -> bytes:
    """An encoded event as an `EventLine`: the stamps in place of its opening brace."""
    return head + event[1:]


def encode_notice(type_: str, session_id: str, payload: Any, ts_ms: int, mono_ms: float) -> bytes:
    """A line about an event stream itself: what is gone, or that it is cut."""
    return _encoder.encode(EventLine(SCHEMA_VERSION, ts_ms, mono_ms, type_, session_id, payload))


def encode_frame(frame: Frame, events: Iterable[bytes]) -> bytes:
    """A frame message with already encoded events."""
    stamps = f'"ts_ms":{frame.ts_ms},"mono_ms":{frame.mono_us / 1000!r}'
    head = f'{{"v":"{SCHEMA_VERSION}","frame":{frame.frame},{stamps},"perf":'
    return b"".join((head.encode(), _encoder.encode(frame.perf), b',"events":[', b",".join(events), b"]}"))


def encode_system(type_: str, payload: Any, ts_ms: int, mono_ms: float) -> bytes:
    """A message outside the frame sequence (`frame: null`): hello, snapshot, answers to commands."""
    event = _encoder.encode(EventItem(type_, None, payload))
    head = f'{{"v":"{SCHEMA_VERSION}","frame":null,"ts_ms":{ts_ms},"mono_ms":{mono_ms!r},"perf":null,"events":['
    return b"".join((head.encode(), event, b"]}"))


def sse(line: bytes, type_: str, id_: int) -> bytes:
    """One Server-Sent Event. JSON text has no raw line breaks, so one `data:` is enough."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (type_.encode(), id_, line)


def text_frame(payload: bytes) -> bytes:
    """`payload` as one unmasked, final WebSocket text frame."""
    size = len(payload)
    if size < 126:
        head = bytes((_OPCODE_TEXT, size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", _OPCODE_TEXT, 126, size)
    else:
        head = struct.pack("!BBQ", _OPCODE_TEXT, 127, size)
    return head + payload
