"""UsageFeed: folds what sessions tell into usage records, and offers them to the ledger. It is no task: it is called
where the signals pass, never waits and never fails a session."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import attrs

from actors.ledger import LedgerHandle
from engine.domain.council import MemberEnded, MemberStarted
from engine.domain.events import AnswerResumed, MappedSignal, SampleBatch, SessionClosed, SessionOpened
from engine.domain.generation import Seam, StreamRef
from engine.domain.usage import AGENT, FALLBACK, UsageRecord
from policies.broker import Occasion

SESSIONS_MAX: Final = 8192  # followed at once; beyond it the oldest is forgotten, and counted
UNKNOWN: Final = "unknown"

Place = tuple[str, bool]  # a runtime's name, and whether it is on this machine


@attrs.define(eq=False)
class _Session:
    opened: SessionOpened
    agent: str
    fallback: str | None
    places: dict[str, Place]  # by stream
    tokens: dict[str, int]  # by stream, as counted here
    started: set[str]  # of a council: streams whose model was asked
    ended: dict[str, MemberEnded]  # of a council, by stream

    def was_asked(self, stream_id: str) -> bool:
        """Of a council. One that the others made needless before its turn came costs nobody anything; one that was not
        let in failed, and a failure counts."""
        if self.was_let_in(stream_id):
            return True
        ended = self.ended.get(stream_id)
        return ended is not None and ended.cut is None

    def was_let_in(self, stream_id: str) -> bool:
        """Of a council: its model was at hand."""
        ended = self.ended.get(stream_id)
        return stream_id in self.started or bool(self.tokens.get(stream_id) or (ended is not None and ended.tokens))


@attrs.define(eq=False)
class UsageFeed:
    """`place_of` tells where a model runs by its public name, null when it is not known any more."""

    ledger: LedgerHandle
    place_of: Callable[[str], Place | None]
    wall_s: Callable[[], float]
    forgotten: int = 0
    _asked_by: dict[str, tuple[str | None, str | None]] = attrs.field(factory=dict)  # named, and not yet open
    _open: dict[str, _Session] = attrs.field(factory=dict)

    def new_session_id(self) -> str:
        """An id for a session that begins now, on behalf of the agent whose request is at hand."""
        session_id = secrets.token_hex(16)
        self._asked_by[session_id] = AGENT.get(), FALLBACK.get()
        self._bound(self._asked_by)
        return session_id

    def observe(self, signal: MappedSignal) -> None:
        match signal:
            case SampleBatch(stream=ref):
                session = self._open.get(ref.session_id)
                if session is not None:
                    session.tokens[ref.stream_id] = session.tokens.get(ref.stream_id, 0) + len(signal.samples)
            case SessionOpened():
                agent, fallback = self._asked_by.pop(signal.session_id, (None, None))
                places = {ref.stream_id: self.place_of(ref.model) or (UNKNOWN, False) for ref in signal.streams}
                session = _Session(signal, agent or signal.origin.value, fallback, places, {}, set(), {})
                self._open[signal.session_id] = session
                self._bound(self._open)
            case AnswerResumed(session_id=session_id, seam=seam) if seam.position == 0:
                self._replace(session_id, seam)
            case MemberStarted(stream=ref):
                session = self._open.get(ref.session_id)
                if session is not None:
                    session.started.add(ref.stream_id)
            case MemberEnded(stream=ref):
                session = self._open.get(ref.session_id)
                if session is not None:
                    session.ended[ref.stream_id] = signal
            case SessionClosed():
                self._close(signal)

    def _replace(self, session_id: str, seam: Seam) -> None:
        """Another model answers than the one that was asked: the answer is its own, and counts as a fallback."""
        session = self._open.get(session_id)
        if session is None:
            return
        streams = tuple(
            attrs.evolve(ref, model=seam.model) if ref.stream_id == seam.stream_id else ref
            for ref in session.opened.streams
        )
        session.opened = attrs.evolve(session.opened, streams=streams)
        session.places[seam.stream_id] = self.place_of(seam.model) or (UNKNOWN, False)
        session.fallback = Occasion.NO_LOCAL.value

    def _close(self, closed: SessionClosed) -> None:
        session = self._open.pop(closed.session_id, None)
        if session is None:
            return  # told again after a crash, and counted already
        day = datetime.fromtimestamp(self.wall_s(), UTC).date().isoformat()
        streams = session.opened.streams
        for ref in streams:
            if len(streams) == 1:
                self.ledger.log(_alone(session, ref, closed, day))
            elif session.was_asked(ref.stream_id):
                self.ledger.log(_in_council(session, ref, closed, day))

    def _bound(self, kept: dict[str, tuple[str | None, str | None]] | dict[str, _Session]) -> None:
        if len(kept) > SESSIONS_MAX:
            del kept[next(iter(kept))]
            self.forgotten += 1


def _alone(session: _Session, ref: StreamRef, closed: SessionClosed, day: str) -> UsageRecord:
    """The model counts its tokens itself where it can. One that was never asked read nothing, and took no time."""
    runtime, local = session.places[ref.stream_id]
    return UsageRecord(
        day=day,
        agent=session.agent,
        model=ref.model,
        runtime=runtime,
        local=local,
        synthetic=session.opened.synthetic,
        tokens_in=closed.prompt_tokens if closed.asked else 0,
        tokens_out=closed.tokens if closed.eval_count is None else closed.eval_count,
        ttft_ms=closed.ttft_ms,
        duration_ms=closed.duration_ms if closed.asked else None,
        reason=closed.reason.value,
        fallback=session.fallback,
    )


def _in_council(session: _Session, ref: StreamRef, closed: SessionClosed, day: str) -> UsageRecord:
    """Of each of its models only what is told of it alone."""
    runtime, local = session.places[ref.stream_id]
    ended = session.ended.get(ref.stream_id)
    let_in = session.was_let_in(ref.stream_id)
    return UsageRecord(
        day=day,
        agent=session.agent,
        model=ref.model,
        runtime=runtime,
        local=local,
        synthetic=session.opened.synthetic,
        tokens_in=(None if ended is None else ended.prompt_tokens) if let_in else 0,
        tokens_out=_spoken(session, ref, ended),
        ttft_ms=None if ended is None else ended.ttft_ms,
        duration_ms=ended.duration_ms if ended is not None and let_in else None,
        reason=(closed if ended is None else ended).reason.value,
        fallback=session.fallback,
    )


def _spoken(session: _Session, ref: StreamRef, ended: MemberEnded | None) -> int:
    if ended is None:
        return session.tokens.get(ref.stream_id, 0)
    return ended.tokens if ended.eval_count is None else ended.eval_count
