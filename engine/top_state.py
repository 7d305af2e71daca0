"""What `wf top` knows: a fold of the frames, typed as they are decoded. Pure; no text of a model is kept."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import attrs
import msgspec

SESSIONS_MAX: Final = 16  # newest ones; the older are forgotten
EVENTS_MAX: Final = 5
TRACE_CELLS: Final = 60
TRACE_STEP_MS: Final = 100.0


class Stream(msgspec.Struct):
    """A stream in `energy.update`; the fields that are shown."""

    stream_id: str
    model: str
    state: str
    energy: float | None
    tps: float
    delta_ms: float | None
    silence_ms: float
    stall: bool
    tokens: int
    certainty: float | None = None
    entropy_bits: float | None = None


class Token(msgspec.Struct):
    position: int
    t_us: int


class Tokens(msgspec.Struct):
    """`experience.token` without its text."""

    stream_id: str
    tokens: list[Token]


class Ensemble(msgspec.Struct):
    energy: float
    di: float | None
    gain: float | None = None
    sync_latency_ms: float | None = None


class Energy(msgspec.Struct):
    streams: list[Stream]
    ensemble: Ensemble | None = None


class Known(msgspec.Struct):
    """A session in `system.state_snapshot`."""

    session_id: str
    origin: str = ""
    synthetic: bool = False
    started_ms: float | None = None
    ttft_ms: float | None = None
    end: msgspec.Raw = msgspec.Raw(b"null")
    last_energy: Energy | None = None


class Snapshot(msgspec.Struct):
    sessions: list[Known]


class Told(msgspec.Struct):
    """The fields of any other event that a line about it needs."""

    model: str | None = None
    models: list[str] = []
    state: str | None = None
    reason: str | None = None
    phase: str | None = None
    pattern: str | None = None
    method: str | None = None
    origin: str | None = None
    synthetic: bool = False
    start_us: int | None = None
    ttft_ms: float | None = None
    version: str | None = None
    tier: str | None = None


class Event(msgspec.Struct):
    type: str
    payload: msgspec.Raw
    session_id: str | None = None


class Perf(msgspec.Struct):
    lateness_ms: float
    degrade: int


class Frame(msgspec.Struct):
    mono_ms: float
    events: list[Event]
    frame: int | None = None
    perf: Perf | None = None


@attrs.define(eq=False)
class Session:
    id: str
    origin: str = ""
    synthetic: bool = False
    ended: str | None = None  # its reason
    cue: str = ""
    ensemble: Ensemble | None = None
    streams: dict[str, Stream] = attrs.field(factory=dict)
    ttft_ms: dict[str, float] = attrs.field(factory=dict)
    traces: dict[str, deque[float | None]] = attrs.field(factory=dict)
    start_us: int | None = None
    traced_ms: float = float("-inf")


@attrs.define(eq=False)
class TopState:
    """`bad` counts messages that were not frames; they are skipped."""

    version: str = ""
    tier: str = ""
    frame: int = -1
    missed: int = 0
    frames: int = 0
    bad: int = 0
    perf: Perf | None = None
    now_ms: float = 0.0
    sessions: dict[str, Session] = attrs.field(factory=dict)
    events: deque[tuple[float, str]] = attrs.field(factory=lambda: deque(maxlen=EVENTS_MAX))

    def take(self, message: bytes | str) -> None:
        """One WebSocket message. Never raises: what is not a frame is counted."""
        try:
            frame = msgspec.json.decode(message, type=Frame)
            for event in frame.events:
                self._event(event, frame.mono_ms)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.bad += 1
            return
        self.now_ms = frame.mono_ms
        self.perf = frame.perf or self.perf
        if frame.frame is not None:
            self.missed += max(0, frame.frame - self.frame - 1) if self.frame >= 0 else 0
            self.frame = frame.frame
            self.frames += 1

    @property
    def shown(self) -> Session | None:
        """The newest session that runs, else the newest of all."""
        newest = list(self.sessions.values())[::-1]
        return next((session for session in newest if session.ended is None), newest[0] if newest else None)

    @property
    def running(self) -> int:
        return sum(session.ended is None for session in self.sessions.values())

    def _event(self, event: Event, now_ms: float) -> None:
        if event.type == "energy.update" and event.session_id:
            self._energy(self._session(event.session_id), event.payload, now_ms)
            return
        if event.type == "experience.token" and event.session_id:
            _first(self._session(event.session_id), msgspec.json.decode(event.payload, type=Tokens))
            return
        if event.type == "system.state_snapshot":
            for known in msgspec.json.decode(event.payload, type=Snapshot).sessions:
                if bytes(known.end) == b"null":  # what is over is not watched any more
                    _know(self._session(known.session_id), known)
            return
        if event.type in ("council.ensemble", "system.heartbeat"):
            return
        told = msgspec.json.decode(event.payload, type=Told)
        if event.type == "system.hello":
            self.version, self.tier = told.version or "", told.tier or ""
            return
        if event.session_id:
            _tell(self._session(event.session_id), event.type, told)
        words = told.reason or told.phase or told.pattern or told.method or told.state or ""
        model = told.model or " + ".join(told.models)
        self.events.append((now_ms, " ".join(part for part in (event.type, model, words) if part)))

    def _energy(self, session: Session, payload: msgspec.Raw, now_ms: float) -> None:
        energy = msgspec.json.decode(payload, type=Energy)
        session.ensemble = energy.ensemble
        step = now_ms - session.traced_ms >= TRACE_STEP_MS
        session.traced_ms = now_ms if step else session.traced_ms
        for stream in energy.streams:
            session.streams[stream.stream_id] = stream
            if step:
                session.traces.setdefault(stream.stream_id, deque(maxlen=TRACE_CELLS)).append(stream.energy)

    def _session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            self.sessions[session_id] = Session(session_id)
            if len(self.sessions) > SESSIONS_MAX:
                del self.sessions[next(iter(self.sessions))]
        return self.sessions[session_id]


def _know(session: Session, known: Known) -> None:
    session.origin, session.synthetic = known.origin, known.synthetic
    if known.started_ms is not None:
        session.start_us = round(known.started_ms * 1000)
    if known.last_energy is not None:
        session.ensemble = known.last_energy.ensemble
        session.streams = {stream.stream_id: stream for stream in known.last_energy.streams}
        if known.ttft_ms is not None and len(session.streams) == 1:
            session.ttft_ms = dict.fromkeys(session.streams, known.ttft_ms)


def _first(session: Session, arrived: Tokens) -> None:
    """Time to first token, from the engine's own stamps."""
    if session.start_us is not None and arrived.tokens and arrived.tokens[0].position == 0:
        session.ttft_ms[arrived.stream_id] = (arrived.tokens[0].t_us - session.start_us) / 1000


def _tell(session: Session, type_: str, told: Told) -> None:
    match type_:
        case "experience.session_start":
            session.origin, session.synthetic, session.start_us = told.origin or "", told.synthetic, told.start_us
        case "experience.session_end":
            session.ended = told.reason
            if len(session.streams) == 1 and told.ttft_ms is not None:
                session.ttft_ms = dict.fromkeys(session.streams, told.ttft_ms)
        case "council.resonance":
            session.cue = "" if told.phase == "end" else "RESONANCE"
        case "council.interference":
            session.cue = {"destructive": "INTERFERENCE", "constructive": "CONSTRUCTIVE"}.get(told.pattern or "", "")


def summary(state: TopState) -> dict[str, Any]:
    """The same as the picture, for programs: one JSON object."""
    session = state.shown
    about = {"frame": state.frame, "tier": state.tier, "running": state.running, "missed": state.missed}
    if session is None:
        return about | {"session": None}
    streams = [msgspec.to_builtins(stream) for stream in session.streams.values()]
    ensemble = None if session.ensemble is None else msgspec.to_builtins(session.ensemble)
    told = {"session_id": session.id, "origin": session.origin, "synthetic": session.synthetic, "ended": session.ended}
    return about | {"session": told | {"cue": session.cue or None, "ensemble": ensemble, "streams": streams}}
