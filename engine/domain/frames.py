"""Composing frames: folding samples into per-session state, and reading it out once per tick. No clock, no IO."""

from __future__ import annotations

import attrs

from engine.domain.council import CouncilChosen, CouncilFormed, MemberEnded, MemberStarted
from engine.domain.council_frames import CouncilState
from engine.domain.energy import MICRO, EnergyParams, EnergySample, Phase, StreamEnergy, ended, read
from engine.domain.ensemble import EnsembleParams
from engine.domain.events import (
    ENERGY_UPDATE,
    MODEL,
    SEAM,
    SESSION_END,
    SESSION_START,
    TOKEN,
    AnswerResumed,
    EnergyUpdatePayload,
    Event,
    MappedSignal,
    MemberSummary,
    ModelChanged,
    ModelPayload,
    SampleBatch,
    SessionClosed,
    SessionEndPayload,
    SessionOpened,
    SessionStartPayload,
    SessionSummary,
    SessionTotals,
    StreamReading,
    TokensPayload,
)
from engine.domain.generation import StreamRef

EU_DECIMALS = 3
STOPPED = "its council was stopped before it had ended"


@attrs.frozen
class Perf:
    """How the frame itself went. `merged` counts frames whose events were folded into a later one, `dropped_visual`
    energy snapshots that a newer one replaced and tokens told as text alone; both since the engine started.
    `queue_depth` is the batches still waiting before the composer, `degrade` the level 0–4 (policies/degrade.yaml)."""

    lateness_ms: float
    frame_ms: float
    queue_depth: int
    degrade: int
    merged: int
    dropped_visual: int


@attrs.frozen
class Frame:
    """One tick. `frame` counts composed and missed ticks; `mono_us` is the tick's deadline on the engine clock."""

    frame: int
    ts_ms: int
    mono_us: int
    perf: Perf
    events: tuple[Event, ...]


@attrs.define(eq=False)
class _Stream:
    ref: StreamRef
    state: StreamEnergy
    samples: list[EnergySample] = attrs.field(factory=list)  # since the last tick
    energy_sum: float = 0.0
    energies: int = 0
    stalls: int = 0
    first_us: int | None = None  # arrival of its first token


@attrs.define(eq=False)
class _Session:
    """A session as frames see it. `eu_rate` is the per-frame average of EU per second (policies/energy.yaml:
    eu.rate_alpha)."""

    params: EnergyParams
    start_us: int
    streams: dict[str, _Stream]
    ensemble_params: EnsembleParams | None = None
    council: CouncilState | None = None
    eu_rate: float = 0.0
    closed: SessionClosed | None = None

    def take(self, batch: SampleBatch) -> None:
        stream = self.streams[batch.stream.stream_id]
        stream.state = batch.state
        if self.council is not None:
            self.council.take(batch.stream.stream_id, batch.samples)
        stream.samples.extend(batch.samples)
        if stream.first_us is None and batch.samples:
            stream.first_us = batch.samples[0].token.t_us
        for sample in batch.samples:
            stream.stalls += sample.stall
            if sample.energy is not None:
                stream.energy_sum += sample.energy
                stream.energies += 1

    def stopped(self, council: CouncilState, stream: _Stream, closed: SessionClosed) -> MemberEnded:
        """The end of a member whose council is over before it said that it had ended."""
        asked_us = council.asked_us(stream.ref.stream_id, self.start_us)
        return MemberEnded(
            stream=stream.ref,
            at_us=closed.at_us,
            reason=closed.reason,
            tokens=stream.state.tokens,
            ttft_ms=None if stream.first_us is None else (stream.first_us - asked_us) / 1000,
            duration_ms=(closed.at_us - asked_us) / 1000,
            cut=STOPPED,
        )

    def members(self) -> tuple[MemberSummary, ...] | None:
        """Of a council whose members have all ended, in their order."""
        if self.council is None:
            return None
        return tuple(self._member(self.streams[s], self.council.ended[s]) for s in self.council.models)

    def _member(self, stream: _Stream, ended: MemberEnded) -> MemberSummary:
        return MemberSummary(
            stream_id=stream.ref.stream_id,
            model=stream.ref.model,
            reason=ended.reason,
            tokens=ended.tokens,
            ttft_ms=ended.ttft_ms,
            energy=read(stream.state, ended.at_us, self.params).energy if stream.energies else None,
            energy_mean=stream.energy_sum / stream.energies if stream.energies else None,
        )


@attrs.define(eq=False)
class FrameState:
    """All sessions between two ticks. `fold` takes what arrived, `compose` reads one tick out of it."""

    sessions: dict[str, _Session] = attrs.field(factory=dict)
    unknown: int = 0  # signals of sessions this state never saw open
    pending_samples: int = 0  # taken since the last tick
    _events: list[Event] = attrs.field(factory=list)

    @property
    def busy(self) -> bool:
        """A session is active, or something is waiting to be told."""
        return bool(self.sessions or self._events)

    def fold(self, signal: MappedSignal) -> None:
        match signal:
            case SampleBatch():  # nearly all of them
                session = self.sessions.get(signal.stream.session_id)
                if session is None:
                    self.unknown += 1
                else:
                    session.take(signal)
                    self.pending_samples += len(signal.samples)
            case SessionOpened():
                self._open(signal)
            case ModelChanged():
                payload = ModelPayload(signal.model, signal.state, signal.progress, signal.position, signal.reason)
                self._events.append(Event(MODEL, signal.session_id, payload))
            case AnswerResumed(session_id=session_id, seam=seam):
                session = self.sessions.get(session_id)
                if seam.position == 0 and session is not None:
                    stream = session.streams[seam.stream_id]
                    stream.ref = attrs.evolve(stream.ref, model=seam.model)
                self._events.append(Event(SEAM, session_id, seam))
            case CouncilFormed(session_id=session_id):
                self._form(self.sessions.get(session_id), signal)
            case MemberStarted(stream=ref) | MemberEnded(stream=ref):
                self._member(self.sessions.get(ref.session_id), signal)
            case CouncilChosen(session_id=session_id):
                self._choose(self.sessions.get(session_id), signal)
            case SessionClosed():
                self._close(signal)

    def compose(self, mono_us: int, tick_us: float, queue_depth: int, *, degrade: int = 0) -> tuple[Event, ...]:
        """The events of the tick whose deadline is `mono_us`, `tick_us` after the one before. Order: lifecycle and
        model events, then per session tokens, one energy.update, what it means for its council, and the end with
        nothing after it. While `degrade` is above 0 councils are not measured, to save time."""
        events, self._events = self._events, []
        for session_id, session in list(self.sessions.items()):
            events += _tokens(session_id, session)
            # The end is shown as of the end: a client that is behind gets this event within a later frame.
            at_us = mono_us if session.closed is None else session.closed.at_us
            events += _energy(session_id, session, at_us, tick_us, queue_depth, patterns=degrade == 0)
            if session.closed is not None:
                if session.council is not None:
                    events += session.council.last
                events.append(Event(SESSION_END, session_id, _end(session, session.closed)))
                del self.sessions[session_id]
        for session in self.sessions.values():
            for stream in session.streams.values():
                stream.samples.clear()
        self.pending_samples = 0
        return tuple(events)

    def _open(self, opened: SessionOpened) -> None:
        payload = SessionStartPayload(
            mode=opened.mode,
            models=tuple(dict.fromkeys(ref.model for ref in opened.streams)),  # a judge may be a member as well
            dropped_models=opened.dropped_models,
            parameters=opened.parameters,
            energy_params=opened.energy_params,
            origin=opened.origin,
            synthetic=opened.synthetic,
            streams=opened.streams,
            start_us=opened.at_us,
            ensemble_params=opened.ensemble_params,
        )
        self._events.append(Event(SESSION_START, opened.session_id, payload))
        self.sessions[opened.session_id] = _Session(
            params=opened.energy_params,
            start_us=opened.at_us,
            streams={ref.stream_id: _Stream(ref, StreamEnergy(Phase.CHARGING, opened.at_us)) for ref in opened.streams},
            ensemble_params=opened.ensemble_params,
        )

    def _form(self, session: _Session | None, formed: CouncilFormed) -> None:
        if session is None or session.ensemble_params is None:
            self.unknown += 1
            return
        session.council = CouncilState.of(formed, session.ensemble_params)
        self._events.append(session.council.formed())

    def _member(self, session: _Session | None, signal: MemberStarted | MemberEnded) -> None:
        if session is None or session.council is None:
            self.unknown += 1
        elif isinstance(signal, MemberStarted):
            self._events.append(session.council.start(signal))
        else:
            stream = session.streams[signal.stream.stream_id]
            stream.state = ended(stream.state, signal.at_us)
            session.council.end(signal)

    def _choose(self, session: _Session | None, chosen: CouncilChosen) -> None:
        if session is None or session.council is None:
            self.unknown += 1
        else:
            session.council.choose(chosen)

    def _close(self, closed: SessionClosed) -> None:
        session = self.sessions.get(closed.session_id)
        if session is None:  # its state went with a crash: the end is told with what the session itself counted
            self.unknown += 1
            self._events.append(Event(SESSION_END, closed.session_id, _end(None, closed)))
            return
        session.closed = closed
        for stream in session.streams.values():
            if stream.state.end_us is None:  # else it ended before its council did
                stream.state = ended(stream.state, closed.at_us)
        if session.council is not None:
            for stream_id in [s for s in session.council.models if s not in session.council.ended]:
                session.council.end(session.stopped(session.council, session.streams[stream_id], closed))


def _tokens(session_id: str, session: _Session) -> list[Event]:
    return [
        Event(TOKEN, session_id, TokensPayload(s.ref.stream_id, s.ref.model, tuple(s.samples)))
        for s in session.streams.values()
        if s.samples
    ]


def _energy(
    session_id: str, session: _Session, mono_us: int, tick_us: float, queue_depth: int, *, patterns: bool
) -> list[Event]:
    """One energy.update, and the events of its council that follow from it."""
    tokens = frame_micro = total_micro = 0
    for stream in session.streams.values():
        tokens += len(stream.samples)
        total_micro += stream.state.eu_micro
        for sample in stream.samples:
            frame_micro += sample.eu_micro
    alpha = session.params.eu_rate_alpha
    session.eu_rate = alpha * frame_micro / tick_us + (1 - alpha) * session.eu_rate  # µEU per µs = EU per s
    readings = [_reading(s, session.params, mono_us, queue_depth) for s in session.streams.values()]
    council: list[Event] = []
    ensemble = None
    if session.council is not None:
        ensemble, council = session.council.step(mono_us, readings, patterns)
    payload = EnergyUpdatePayload(
        tokens=tokens,
        eu_frame=round(frame_micro / MICRO, EU_DECIMALS),
        eu_total=round(total_micro / MICRO, EU_DECIMALS),
        eu_rate=round(session.eu_rate, EU_DECIMALS),
        streams=tuple(readings),
        ensemble=ensemble,
    )
    return [Event(ENERGY_UPDATE, session_id, payload), *council]


def _reading(stream: _Stream, params: EnergyParams, mono_us: int, queue_depth: int) -> StreamReading:
    state, now = stream.state, read(stream.state, mono_us, params)
    return StreamReading(
        stream_id=stream.ref.stream_id,
        model=stream.ref.model,
        state=now.phase,
        energy=now.energy,
        energy_base=state.energy_base,
        tps=now.tps,
        delta_ms=None if state.delta_us is None else state.delta_us / 1000,
        silence_ms=now.silence_ms,
        certainty=state.uncertainty.certainty,
        entropy_bits=state.uncertainty.entropy_bits,
        tail_mass=state.uncertainty.tail_mass,
        stall=now.stall,
        burst=state.burst,
        throttled=state.throttled,
        tokens=state.tokens,
        queue_depth=queue_depth,
    )


def _end(session: _Session | None, closed: SessionClosed) -> SessionEndPayload:
    streams = [] if session is None else list(session.streams.values())
    energies = sum(s.energies for s in streams)
    seconds = 0.0 if closed.ttft_ms is None else (closed.duration_ms - closed.ttft_ms) / 1000
    if session is not None and session.council is not None:  # its tokens are of all members, from the first one on
        began_us = min((s.first_us for s in streams if s.first_us is not None), default=closed.at_us)
        seconds = (closed.at_us - began_us) / 1e6
    return SessionEndPayload(
        reason=closed.reason,
        error=closed.error,
        totals=SessionTotals(
            tokens=closed.tokens,
            eu=None if session is None else round(sum(s.state.eu_micro for s in streams) / MICRO, EU_DECIMALS),
            # A runtime's own count is of one member, and `tokens` of all: they are nothing to compare.
            eval_count=None if session is not None and session.council is not None else closed.eval_count,
            prompt_tokens=closed.prompt_tokens,
            prompt_tokens_dropped=closed.prompt_tokens_dropped,
            resumed=closed.resumed,
        ),
        ttft_ms=closed.ttft_ms,
        duration_ms=closed.duration_ms,
        stop_latency_ms=closed.stop_latency_ms,
        summary=SessionSummary(
            start_us=None if session is None else session.start_us,
            end_us=closed.at_us,
            tps_average=(closed.tokens - 1) / seconds if closed.tokens >= 2 and seconds > 0 else None,
            energy_mean=sum(s.energy_sum for s in streams) / energies if energies else None,
            stalls=sum(s.stalls for s in streams),
            cold=closed.cold,
            timing=closed.timing,
            members=None if session is None else session.members(),
        ),
    )
