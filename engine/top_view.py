"""What `wf top` shows: a pure fold of frames into a picture, and the picture as JSON.

A picture holds the engine's own numbers, nothing smoothed; what was not measured is None. No text of an answer is kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import attrs
import msgspec

from engine.console import HARMFUL

SESSIONS_MAX: Final = 256  # kept; the oldest make room, `forgotten` counts them
ENDED_MAX: Final = 4  # shown of those that are over
MODELS_MAX: Final = 256
WORDS_MAX: Final = 400  # characters of an error
COUNCIL_MODES: Final = ("council", "turbo")
NONE: Final = "—"
EIGHTHS: Final = " ▏▎▍▌▋▊▉"
UP, DOWN = dict.fromkeys((b"\x1b[A", b"\x1bOA", b"k"), "up"), dict.fromkeys((b"\x1b[B", b"\x1bOB", b"j"), "down")
KEYS: Final = UP | DOWN | {b"q": "quit", b"Q": "quit", b"s": "stop"}
CUES: Final = {"destructive": "INTERFERENCE", "constructive": "CONSTRUCTIVE"}
NOBODY: Final = "no member has an energy"


# ── what comes: the fields of messages that are used ──


class Stream(msgspec.Struct, frozen=True):
    """Of `energy.update`, `experience.session_start` and the snapshot; in a picture with its time to first token."""

    stream_id: str
    model: str
    state: str | None = None
    energy: float | None = None
    tps: float | None = None
    delta_ms: float | None = None
    silence_ms: float | None = None
    stall: bool = False
    tokens: int | None = None
    certainty: float | None = None
    ttft_ms: float | None = None


class Ensemble(msgspec.Struct):
    energy: float | None
    di: float | None
    reason: str | None = None
    gain: float | None = None
    sync_latency_ms: float | None = None


class Energy(msgspec.Struct):
    streams: list[Stream]
    ensemble: Ensemble | None = None


class Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class Totals(msgspec.Struct):
    tokens: int | None = None


class End(msgspec.Struct):
    reason: str
    error: Problem | None = None
    totals: Totals | None = None
    ttft_ms: float | None = None


class Start(msgspec.Struct):
    streams: list[Stream] = []
    mode: str = ""
    origin: str | None = None
    synthetic: bool | None = None


class Known(msgspec.Struct):
    """A session in `system.state_snapshot`; its text is skipped."""

    session_id: str
    streams: list[Stream] = []
    origin: str | None = None
    synthetic: bool | None = None
    ttft_ms: float | None = None
    tokens: int | None = None
    last_energy: Energy | None = None
    end: End | None = None


class Snapshot(msgspec.Struct):
    sessions: list[Known]


class ModelTold(msgspec.Struct):
    """`experience.model`, and a row of `GET /models`."""

    model: str = ""
    name: str = ""
    state: str = ""
    resident_bytes: int | None = None
    progress: float | None = None
    position: int | None = None
    reason: str | None = None


class Member(msgspec.Struct):
    """`council.model_end`, `council.model_error`."""

    stream_id: str
    ttft_ms: float | None = None
    error: Problem | None = None


class Cue(msgspec.Struct):
    phase: str = ""
    pattern: str = ""


class System(msgspec.Struct):
    """hello, heartbeat, degrade and error: what each of them has of these."""

    version: str | None = None
    tier: str | None = None
    fps: float | None = None
    uptime_ms: float | None = None
    code: str = ""
    message: str = ""


class Perf(msgspec.Struct):
    lateness_ms: float
    degrade: int


class Event(msgspec.Struct):
    type: str
    payload: msgspec.Raw
    session_id: str | None = None


class Frame(msgspec.Struct):
    mono_ms: float
    events: list[Event]
    frame: int | None = None
    perf: Perf | None = None


class Counted(msgspec.Struct):
    frames_missed: int | None = None
    bytes_out: int | None = None
    fps_current: float | None = None


class Stats(msgspec.Struct):
    system: Counted


class Models(msgspec.Struct):
    models: list[ModelTold]


# ── what is shown ──


@attrs.frozen
class CouncilPicture:
    """`di` is None for `di_reason`. `cue` is the engine's: RESONANCE, INTERFERENCE, CONSTRUCTIVE or none."""

    energy: float | None
    di: float | None
    di_reason: str | None
    gain: float | None
    sync_latency_ms: float | None
    cue: str | None


@attrs.frozen
class SessionPicture:
    """`ended` is the reason of its end, None while it runs. `ttft_ms` is the first token of any of its streams."""

    session_id: str
    origin: str | None
    synthetic: bool | None
    ended: str | None
    ttft_ms: float | None
    tokens: int | None
    council: CouncilPicture | None
    streams: tuple[Stream, ...]


@attrs.frozen
class ModelPicture:
    name: str
    state: str
    resident_bytes: int | None
    progress: float | None
    reason: str | None


@attrs.frozen
class EnginePicture:
    version: str | None
    tier: str | None
    frame: int | None
    fps: float | None
    lateness_ms: float | None
    missed: int | None
    degrade: int | None
    bytes_out: int | None
    uptime_ms: float | None


@attrs.frozen
class ErrorPicture:
    at_ms: float
    session_id: str | None
    code: str
    message: str


@attrs.frozen
class Picture:
    """`models` is None until they have been asked for. `forgotten` counts sessions beyond the bound, `bad`
    messages that were no frames."""

    engine: EnginePicture
    sessions: tuple[SessionPicture, ...]
    models: tuple[ModelPicture, ...] | None
    last_error: ErrorPicture | None
    forgotten: int
    bad: int


# ── the fold ──


@attrs.define(eq=False)
class _Session:
    streams: dict[str, Stream] = attrs.field(factory=dict)
    ttft_of: dict[str, float | None] = attrs.field(factory=dict)  # by stream, of members that have ended
    waits: dict[str, ModelTold] = attrs.field(factory=dict)  # by model, as told within this session
    origin: str | None = None
    synthetic: bool | None = None
    council: bool = False
    ensemble: Ensemble | None = None
    resonance: bool = False
    pattern: str = ""
    ttft_ms: float | None = None
    ttft_asked: bool = False
    tokens: int | None = None
    ended: str | None = None

    def measured(self, energy: Energy) -> None:
        self.ensemble = energy.ensemble
        self.streams.update((stream.stream_id, stream) for stream in energy.streams)
        counts = [stream.tokens for stream in self.streams.values() if stream.tokens is not None]
        self.tokens = sum(counts) if counts else None

    def closed(self, end: End) -> None:
        self.ended, self.resonance, self.pattern = end.reason, False, ""
        self.ttft_ms = end.ttft_ms
        if end.totals is not None:
            self.tokens = end.totals.tokens


@attrs.define(eq=False)
class TopFold:
    """Frames in, a picture out. `take` never raises: what is not a frame is counted."""

    ready: bool = False  # the snapshot and a frame are here
    bad: int = 0
    forgotten: int = 0
    _sessions: dict[str, _Session] = attrs.field(factory=dict)
    _models: dict[str, ModelTold] | None = None
    _system: System = attrs.field(factory=System)
    _perf: Perf | None = None
    _frame: int | None = None
    _counted: Counted = attrs.field(factory=Counted)
    _error: ErrorPicture | None = None
    _synced: bool = False

    def take(self, message: bytes | str) -> None:
        """One message of the WebSocket."""
        try:
            frame = msgspec.json.decode(message, type=Frame)
            for event in frame.events:
                self._event(event, frame.mono_ms)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self.bad += 1
            return
        self._perf = frame.perf or self._perf
        if frame.frame is not None:
            self._frame = frame.frame
            self.ready = self._synced

    def polled(self, stats: Any, models: Any) -> None:
        """Bodies of `GET /stats` and `GET /models`: what frames do not carry."""
        try:
            counted, listed = msgspec.convert(stats, Stats).system, msgspec.convert(models, Models).models
        except msgspec.ValidationError:
            self.bad += 1
            return
        self._counted = counted
        self._models = {model.name: model for model in listed[:MODELS_MAX]}

    def unpolled(self) -> None:
        """They were not answered; what is not known any more is not shown."""
        self._counted, self._models = Counted(), None

    def asks_for_snapshot(self) -> bool:
        """Once for each session that has tokens and whose time to first token is not known: a snapshot has it."""
        unknown = [
            s for s in self._sessions.values() if s.tokens and s.ttft_ms is None and not s.ended and not s.ttft_asked
        ]
        for session in unknown:
            session.ttft_asked = True
        return bool(unknown)

    def _event(self, event: Event, now_ms: float) -> None:
        payload = partial(msgspec.json.decode, event.payload)
        match event.type:
            case "system.state_snapshot":
                self._snapshot(payload(type=Snapshot), now_ms)
            case "system.hello" | "system.heartbeat":
                told = {
                    name: value
                    for name, value in msgspec.structs.asdict(payload(type=System)).items()
                    if value is not None
                }
                self._system = msgspec.structs.replace(self._system, **told)
            case "system.error":
                self._failed(payload(type=System), None, now_ms)
            case "experience.model":
                self._model(payload(type=ModelTold), event.session_id, now_ms)
            case _ if event.session_id:
                self._of_session(event.type, payload, self._session(event.session_id), event.session_id, now_ms)

    def _of_session(self, type_: str, payload: Any, session: _Session, id_: str, now_ms: float) -> None:
        match type_:
            case "energy.update":
                session.measured(payload(type=Energy))
            case "experience.session_start":
                start: Start = payload(type=Start)
                session.origin, session.synthetic = start.origin, start.synthetic
                session.council = start.mode in COUNCIL_MODES
                session.streams = {stream.stream_id: stream for stream in start.streams}
            case "experience.session_end":
                end: End = payload(type=End)
                session.closed(end)
                self._failed(end.error, id_, now_ms)
            case "council.formed":
                session.council = True
            case "council.model_end" | "council.model_error":
                member: Member = payload(type=Member)
                session.ttft_of[member.stream_id] = member.ttft_ms
                self._failed(member.error, id_, now_ms)
            case "council.resonance":
                session.resonance = payload(type=Cue).phase == "start"
            case "council.interference":
                session.pattern = payload(type=Cue).pattern

    def _snapshot(self, snapshot: Snapshot, now_ms: float) -> None:
        """What it does not name is gone; what it names keeps what only events told."""
        self._synced = True
        self._sessions = {
            known.session_id: self._sessions.get(known.session_id, _Session()) for known in snapshot.sessions
        }
        for known in snapshot.sessions:
            session = self._session(known.session_id)
            session.origin, session.synthetic, session.ttft_ms = known.origin, known.synthetic, known.ttft_ms
            session.council = session.council or len(known.streams) > 1
            session.streams = {s.stream_id: session.streams.get(s.stream_id, s) for s in known.streams}
            session.tokens = known.tokens
            if known.last_energy is not None:
                session.measured(known.last_energy)
            if known.end is not None:
                session.closed(known.end)
        self._bound()

    def _model(self, told: ModelTold, session_id: str | None, now_ms: float) -> None:
        if session_id:
            self._session(session_id).waits[told.model] = told
        if self._models is not None and (told.model in self._models or len(self._models) < MODELS_MAX):
            before = self._models.get(told.model, ModelTold(name=told.model))
            self._models[told.model] = msgspec.structs.replace(
                before, state=told.state, progress=told.progress, position=told.position, reason=told.reason
            )
        if told.state == "failed":
            self._failed(Problem("failed", f"{told.model}: {told.reason or 'no reason given'}"), session_id, now_ms)

    def _failed(self, problem: Problem | System | None, session_id: str | None, now_ms: float) -> None:
        if problem is not None:
            self._error = ErrorPicture(now_ms, session_id, problem.code[:WORDS_MAX], problem.message[:WORDS_MAX])

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.setdefault(session_id, _Session())
        self._bound()
        return session

    def _bound(self) -> None:
        while len(self._sessions) > SESSIONS_MAX:
            over = next((id_ for id_, session in self._sessions.items() if session.ended), next(iter(self._sessions)))
            del self._sessions[over]
            self.forgotten += 1

    def picture(self) -> Picture:
        """Running sessions first, then the last ones that ended; the newest first in both."""
        newest = [_session_picture(id_, session) for id_, session in reversed(self._sessions.items())]
        running, ended = [s for s in newest if s.ended is None], [s for s in newest if s.ended is not None]
        told, counted = self._system, self._counted
        late_ms, degrade = (None, None) if self._perf is None else (self._perf.lateness_ms, self._perf.degrade)
        fps = counted.fps_current if told.fps is None else told.fps
        missed, out = counted.frames_missed, counted.bytes_out
        known = (told.version, told.tier, self._frame, fps, late_ms, missed, degrade, out, told.uptime_ms)
        shown = tuple(running + ended[:ENDED_MAX])
        return Picture(EnginePicture(*known), shown, self._in_memory(), self._error, self.forgotten, self.bad)

    def _in_memory(self) -> tuple[ModelPicture, ...] | None:
        if self._models is None:
            return None
        return tuple(
            ModelPicture(model.name, model.state, model.resident_bytes, model.progress, model.reason)
            for model in self._models.values()
            if model.resident_bytes or model.state not in ("absent", "evicted")
        )


def _session_picture(id_: str, session: _Session) -> SessionPicture:
    alone = session.ttft_ms if len(session.streams) == 1 else None
    streams = tuple(_stream_picture(s, session, session.ttft_of.get(key, alone)) for key, s in session.streams.items())
    about = (id_, session.origin, session.synthetic, session.ended, session.ttft_ms, session.tokens)
    return SessionPicture(*about, _council(session), streams)


def _stream_picture(stream: Stream, session: _Session, ttft_ms: float | None) -> Stream:
    wait, state = session.waits.get(stream.model), stream.state and stream.state.lower()
    if wait is not None and not stream.tokens and wait.state in ("queued", "pulling", "loading", "failed"):
        state = wait.state + (f" {wait.progress:.0%}" if wait.progress is not None else "")
        state += f" {wait.position}." if wait.position is not None else ""
    tps = stream.tps if stream.tokens and stream.tokens > 1 else None  # a pace takes two tokens
    return msgspec.structs.replace(stream, state=state, tps=tps, ttft_ms=ttft_ms)


def _council(session: _Session) -> CouncilPicture | None:
    if not session.council:
        return None
    cue = "RESONANCE" if session.resonance else CUES.get(session.pattern)
    if (found := session.ensemble) is None:
        return CouncilPicture(None, None, NOBODY, None, None, cue)
    reason = (found.reason or "no reason given") if found.di is None else None
    return CouncilPicture(found.energy, found.di, reason, found.gain, found.sync_latency_ms, cue)


def as_json(picture: Picture) -> bytes:
    """The picture for programs. What could command a terminal is escaped, which says the same in JSON."""
    text = msgspec.json.format(msgspec.json.encode(picture), indent=2).decode()
    return "".join(_escaped(ch) for ch in text).encode()


def _escaped(ch: str) -> str:
    if (ch.isascii() and ch.isprintable()) or ch == "\n" or unicodedata.category(ch) not in HARMFUL:
        return ch
    units = ch.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def bar(energy: float | None, cells: int) -> str:
    """E, 0–1, as a bar of at most `cells` cells in eighths; a dash where it is not known."""
    if energy is None:
        return NONE
    eighths = round(min(1.0, max(0.0, energy)) * cells * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def figure(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def keys_in(pressed: bytes) -> Iterator[str]:
    """What a read from the terminal brought: a few keys, each one byte or an escape sequence of three."""
    while pressed:
        length = 3 if pressed[:1] == b"\x1b" else 1
        key, pressed = pressed[:length], pressed[length:]
        if key in KEYS:
            yield KEYS[key]
