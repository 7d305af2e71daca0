"""UsageFeed: folds what sessions tell into usage records, and offers them to the ledger. It is no task: it is called
where the signals pass, never waits and never fails a session."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import attrs

from actors.kernel import Outlet
from actors.ledger import LedgerMessage
from engine.domain.events import MappedSignal, SampleBatch, SessionClosed, SessionOpened
from engine.domain.usage import AGENT, UsageRecord

SESSIONS_MAX: Final = 8192  # followed at once; beyond it the oldest is forgotten, and counted
UNKNOWN: Final = "unknown"

Place = tuple[str, bool]  # a runtime's name, and whether it is on this machine


@attrs.define(eq=False)
class _Session:
    opened: SessionOpened
    agent: str
    places: dict[str, Place]  # by stream
    tokens: dict[str, int]  # by stream, as counted here


@attrs.define(eq=False)
class UsageFeed:
    """`place_of` tells where a model runs by its public name, null when it is not known any more."""

    outlet: Outlet[LedgerMessage]
    place_of: Callable[[str], Place | None]
    wall_s: Callable[[], float]
    forgotten: int = 0
    _agents: dict[str, str] = attrs.field(factory=dict)  # of sessions that were named and are not yet open
    _open: dict[str, _Session] = attrs.field(factory=dict)

    def new_session_id(self) -> str:
        """An id for a session that begins now, on behalf of the agent whose request is at hand."""
        session_id = secrets.token_hex(16)
        agent = AGENT.get()
        if agent is not None:
            self._agents[session_id] = agent
            self._bound(self._agents)
        return session_id

    def observe(self, signal: MappedSignal) -> None:
        match signal:
            case SampleBatch(stream=ref):
                session = self._open.get(ref.session_id)
                if session is not None:
                    session.tokens[ref.stream_id] = session.tokens.get(ref.stream_id, 0) + len(signal.samples)
            case SessionOpened():
                agent = self._agents.pop(signal.session_id, None) or signal.origin.value
                places = {ref.stream_id: self.place_of(ref.model) or (UNKNOWN, False) for ref in signal.streams}
                self._open[signal.session_id] = _Session(signal, agent, places, {})
                self._bound(self._open)
            case SessionClosed():
                self._close(signal)

    def _close(self, closed: SessionClosed) -> None:
        session = self._open.pop(closed.session_id, None)
        if session is None:
            return  # told again after a crash, and counted already
        alone = len(session.opened.streams) == 1
        day = datetime.fromtimestamp(self.wall_s(), UTC).date().isoformat()
        for ref in session.opened.streams:
            runtime, local = session.places[ref.stream_id]
            tokens_out = session.tokens.get(ref.stream_id, 0)
            if alone:
                tokens_out = closed.tokens if closed.eval_count is None else closed.eval_count
            self.outlet.offer(
                UsageRecord(
                    day=day,
                    agent=session.agent,
                    model=ref.model,
                    runtime=runtime,
                    local=local,
                    synthetic=session.opened.synthetic,
                    tokens_in=closed.prompt_tokens if alone else None,
                    tokens_out=tokens_out,
                    ttft_ms=closed.ttft_ms if alone else None,
                    duration_ms=closed.duration_ms if alone else None,
                    reason=closed.reason.value,
                )
            )

    def _bound(self, kept: dict[str, str] | dict[str, _Session]) -> None:
        if len(kept) > SESSIONS_MAX:
            del kept[next(iter(kept))]
            self.forgotten += 1
