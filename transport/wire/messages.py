"""The shape of everything that goes out over frames and event streams: the system messages, and for each event type its
payload, whose it is and where it can stand. JSON Schemas are made from these; nothing is encoded through them."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs
import msgspec

from engine.domain.council import (
    ENSEMBLE,
    FORMED,
    INTERFERENCE,
    MEMBER_END,
    MEMBER_ERROR,
    MEMBER_START,
    RESONANCE,
    SYNTHESIS,
    FormedPayload,
    InterferencePayload,
    MemberEndPayload,
    MemberStartPayload,
    ResonancePayload,
    SynthesisPayload,
    WindowPayload,
)
from engine.domain.energy import EnergyParams
from engine.domain.events import (
    DEGRADE,
    ENERGY_UPDATE,
    HEARTBEAT,
    MODEL,
    SEAM,
    SESSION_END,
    SESSION_START,
    TOKEN,
    DegradePayload,
    EnergyUpdatePayload,
    HeartbeatPayload,
    ModelPayload,
    SessionEndPayload,
    SessionStartPayload,
)
from engine.domain.frames import Perf
from engine.domain.generation import Origin, Seam, TokenKind
from engine.domain.models import Tier
from transport.wire.frames import SCHEMA_VERSION, TokenEventPayload


class ErrorItem(msgspec.Struct):
    """`details` hold what is known: the limit that was met, the nearest name, `request_id`, `retry_after_s`."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Any]


class Hello(msgspec.Struct):
    """`boot` names this start of the engine; `limits` are the ones a client can run into. `resumed_after` is the frame
    after which the missed ones follow (`?since=`), null when a snapshot follows."""

    version: str
    schema_versions: list[str]
    boot: str
    tier: Tier
    level: int
    limits: dict[str, int]
    tick_hz: int
    connection_id: str
    resumed_after: int | None


class SnapshotStream(msgspec.Struct):
    """`text`: the last 64 KiB of each kind. `end` is of a council's member that is done."""

    stream_id: str
    model: str
    ttft_ms: float | None
    tokens: int
    end: MemberEndPayload | None
    text: dict[TokenKind, str]


class SnapshotCouncil(msgspec.Struct):
    """What was told of a council last; null: nothing yet."""

    formed: FormedPayload
    interference: InterferencePayload | None
    synthesis: SynthesisPayload | None


class SnapshotSession(msgspec.Struct):
    """What began before the snapshot's backlog did is null."""

    session_id: str
    state: Literal["active", "ended"]
    models: list[str]
    origin: Origin | None
    synthetic: bool | None
    energy_params: EnergyParams | None
    started_ms: float | None
    ttft_ms: float | None
    tokens: int
    eu_total: float | None
    last_energy: EnergyUpdatePayload | None
    end: SessionEndPayload | None
    council: SnapshotCouncil | None
    streams: list[SnapshotStream]


class Snapshot(msgspec.Struct):
    """All active sessions and the last ended ones. `id` is there when it answers a `resync`."""

    sessions: list[SnapshotSession]
    id: str | None | msgspec.UnsetType = msgspec.UNSET


class ErrorReply(ErrorItem):
    """An error with the `id` of the message at fault (absent on event streams)."""

    id: str | None | msgspec.UnsetType = msgspec.UNSET


class Subscribed(msgspec.Struct):
    """The whole subscription in force."""

    id: str | None
    patterns: list[str]
    session_id: str | None
    rate_hz: float
    top: bool


class Pong(msgspec.Struct):
    id: str | None


class Acknowledged(msgspec.Struct):
    id: str | None
    frame: int


class TruncatedBefore(msgspec.Struct):
    """`events_gone` events of the session are not kept any more."""

    events_gone: int


@attrs.frozen
class EventKind:
    """One event type. `session` is the type of its session_id: a session's, nobody's or either's. `within`: in frames,
    in replies outside the frame sequence, on event streams."""

    type: str
    payload: Any
    session: Any
    within: frozenset[Literal["frame", "reply", "line"]]
    doc: str


def _kind(type_: str, payload: Any, session: Any, within: str, doc: str) -> EventKind:
    return EventKind(type_, payload, session, frozenset(within.split()), doc)  # type: ignore[arg-type]


EVENT_KINDS: Final = (
    _kind("system.hello", Hello, None, "reply", "first message on a connection: who is speaking, and its limits"),
    _kind("system.state_snapshot", Snapshot, None, "reply", "sessions as they stand; after hello and after `resync`"),
    _kind(HEARTBEAT, HeartbeatPayload, None, "frame", "once a second: measured fps, uptime, connections"),
    _kind(DEGRADE, DegradePayload, None, "frame", "under load the engine leaves out more visuals, or less again"),
    _kind("system.error", ErrorReply, str | None, "reply line", "what was wrong with a message, or ended a stream"),
    _kind("system.subscribed", Subscribed, None, "reply", "answer to `subscribe` and `unsubscribe`: the resulting set"),
    _kind("system.pong", Pong, None, "reply", "answer to `ping`"),
    _kind("system.acknowledged", Acknowledged, None, "reply", "answer to `ack_rendered`"),
    _kind("system.truncated_before", TruncatedBefore, str, "line", "an event stream lost its beginning"),
    _kind(ENERGY_UPDATE, EnergyUpdatePayload, str, "frame line", "every tick of an active session: energies and EU"),
    _kind(SESSION_START, SessionStartPayload, str, "frame line", "first event of a session, with all constants"),
    _kind(TOKEN, TokenEventPayload, str, "frame line", "tokens since the frame before; the only event with text"),
    _kind(MODEL, ModelPayload, str | None, "frame line", "a model was queued, loaded, unloaded or failed"),
    _kind(SEAM, Seam, str, "frame line", "a stream broke off and goes on, from this position and offset"),
    _kind(FORMED, FormedPayload, str, "frame line", "a council is formed: who speaks, together or in waves"),
    _kind(MEMBER_START, MemberStartPayload, str, "frame line", "a member has its model and is asked"),
    _kind(MEMBER_END, MemberEndPayload, str, "frame line", "a member is done, or was cut by its council"),
    _kind(MEMBER_ERROR, MemberEndPayload, str, "frame line", "a member failed; the others go on"),
    _kind(ENSEMBLE, WindowPayload, str, "frame line", "an aligned window: disagreement, energy, agreement in pairs"),
    _kind(INTERFERENCE, InterferencePayload, str, "frame line", "the council's band of agreement changed"),
    _kind(RESONANCE, ResonancePayload, str, "frame line", "members speak as one, in words and rhythm; start or end"),
    _kind(SYNTHESIS, SynthesisPayload, str, "frame line", "last of a council: whose answer it is, and the agreement"),
    _kind(SESSION_END, SessionEndPayload, str, "frame line", "last event of a session: why, totals, summary"),
)


def _struct(name: str, fields: list[tuple[str, Any]], tag: str | None = None) -> type[msgspec.Struct]:
    named = dict[str, Any](tag_field="type", tag=tag) if tag else {}
    return msgspec.defstruct(name, fields, **named)


def _camel(type_: str, suffix: str) -> str:
    return "".join(part.capitalize() for part in type_.replace(".", "_").split("_")) + suffix


_VERSION: Final = ("v", Literal[(SCHEMA_VERSION,)])
_STAMPS: Final = [("ts_ms", int), ("mono_ms", float)]


def event_type(kind: EventKind) -> type[msgspec.Struct]:
    """`{type, session_id, payload}` as it stands in `events` of a frame."""
    fields = [("session_id", kind.session), ("payload", kind.payload)]
    return _struct(_camel(kind.type, "Event"), fields, kind.type)


def line_type(kind: EventKind) -> type[msgspec.Struct]:
    """The event outside a frame, with the stamps of the frame it was in."""
    fields = [_VERSION, *_STAMPS, ("session_id", str), ("payload", kind.payload)]  # a stream is of one session
    return _struct(_camel(kind.type, "Line"), fields, kind.type)


def kinds_within(place: Literal["frame", "reply", "line"]) -> list[EventKind]:
    return [kind for kind in EVENT_KINDS if place in kind.within]


def message_types() -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
    """A frame of a tick, and a reply outside the frame sequence (`frame` and `perf` null)."""
    made = []
    for name, frame, perf, place in (("Frame", int, Perf, "frame"), ("Reply", None, None, "reply")):
        events = _union([event_type(kind) for kind in kinds_within(place)])  # type: ignore[arg-type]
        fields = [_VERSION, ("frame", frame), *_STAMPS, ("perf", perf), ("events", list[events])]  # type: ignore[valid-type]
        made.append(_struct(name, fields))
    return made[0], made[1]


def line_types() -> Any:
    return _union([line_type(kind) for kind in kinds_within("line")])


def _union(types: list[type[msgspec.Struct]]) -> Any:
    union: Any = types[0]
    for more in types[1:]:
        union = union | more
    return union
