"""What the hub remembers of each session: its event lines for native streams, and its latest picture for snapshots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from engine.domain.events import (
    EnergyUpdatePayload,
    Event,
    SessionEndPayload,
    SessionStartPayload,
    TokensPayload,
)

TEXT_TAIL_BYTES_MAX: Final = 64 * 1024  # per stream and kind, in snapshots
FOLLOWER_BYTES_MAX: Final = 1024 * 1024  # waiting for one reader of an event stream, besides the backlog it began with


@attrs.frozen
class Line:
    """One event of a session outside a frame, as JSON."""

    type: str
    data: bytes


@attrs.define(eq=False)
class Follower:
    """A reader of one session's events. Never makes the hub wait: past `bytes_max` it is cut off
    (`overflowed`)."""

    energy: bool
    bytes_max: int
    overflowed: bool = False
    ended: bool = False
    _lines: deque[Line] = attrs.field(factory=deque)
    _waiting_bytes: int = 0
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def push(self, line: Line) -> None:
        if self.ended:
            return
        self._waiting_bytes += len(line.data)
        if self._waiting_bytes > self.bytes_max:
            self.overflowed = True
            self._lines.clear()
            self.finish()
            return
        self._lines.append(line)
        self._wake.set()

    def finish(self) -> None:
        self.ended = True
        self._wake.set()

    async def next_lines(self) -> list[Line]:
        """What came since, in order; empty when the session has ended and all was read. Cancelled here: nothing
        lost."""
        while not self._lines and not self.ended:
            self._wake = trio.Event()
            await self._wake.wait()
        lines, self._waiting_bytes = list(self._lines), 0
        self._lines.clear()
        return lines


@attrs.define(eq=False)
class SessionLog:
    """Events of one session since its start, at most `backlog_bytes_max` of them; older ones are gone and counted."""

    session_id: str
    backlog_bytes_max: int
    lines: deque[Line] = attrs.field(factory=deque)
    size_bytes: int = 0
    lines_gone: int = 0  # from the beginning
    start: SessionStartPayload | None = None
    energy: EnergyUpdatePayload | None = None
    end: SessionEndPayload | None = None
    ended_us: int | None = None
    first_token_us: int | None = None
    tokens: int = 0
    followers: list[Follower] = attrs.field(factory=list)
    _texts: dict[str, dict[str, bytearray]] = attrs.field(factory=dict)

    def add(self, event: Event, line: Callable[[], bytes], now_us: int) -> None:
        """Take one event; `line` gives its bytes when somebody needs them."""
        self._picture(event, now_us)
        energy = isinstance(event.payload, EnergyUpdatePayload)
        readers = [f for f in self.followers if f.energy or not energy]
        if not energy or readers:
            item = Line(event.type, line())
            if not energy:
                self._keep(item)
            for follower in readers:
                follower.push(item)
        if self.end is not None:
            for follower in self.followers:
                follower.finish()
            self.followers.clear()

    def follow(self, energy: bool, notice: Callable[[str, dict[str, Any]], bytes]) -> Follower:
        """A reader from the session's start on; when the backlog does not reach that far, `notice` makes the line that
        says so."""
        follower = Follower(energy, FOLLOWER_BYTES_MAX + self.size_bytes)
        if self.lines_gone:
            gone = notice("system.truncated_before", {"events_gone": self.lines_gone})
            follower.push(Line("system.truncated_before", gone))
        for line in self.lines:
            follower.push(line)
        if self.end is not None:
            follower.finish()
        else:
            self.followers.append(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        if follower in self.followers:
            self.followers.remove(follower)

    def forget_lines(self) -> None:
        end = (
            [self.lines.pop()] if self.end is not None and self.lines else []
        )  # late readers still learn that it is over
        self.lines_gone += len(self.lines)
        self.lines = deque(end)
        self.size_bytes = sum(len(line.data) for line in end)

    def snapshot(self) -> dict[str, Any]:
        """The session's entry in `system.state_snapshot`."""
        start = self.start
        return {
            "session_id": self.session_id,
            "state": "active" if self.end is None else "ended",
            "models": () if start is None else start.models,
            "origin": None if start is None else start.origin,
            "synthetic": None if start is None else start.synthetic,
            "energy_params": None if start is None else start.energy_params,
            "started_ms": None if start is None else start.start_us / 1000,
            "ttft_ms": self._ttft_ms(),
            "tokens": self.tokens,
            "eu_total": None if self.energy is None else self.energy.eu_total,
            "last_energy": self.energy,
            "end": self.end,
            "streams": [
                {
                    "stream_id": ref.stream_id,
                    "model": ref.model,
                    "text": {
                        kind: bytes(tail[-TEXT_TAIL_BYTES_MAX:]).decode("utf-8", "ignore")
                        for kind, tail in self._texts.get(ref.stream_id, {}).items()
                    },
                }
                for ref in (() if start is None else start.streams)
            ],
        }

    def _ttft_ms(self) -> float | None:
        if self.start is None or self.first_token_us is None:
            return None
        return (self.first_token_us - self.start.start_us) / 1000

    def _keep(self, line: Line) -> None:
        self.lines.append(line)
        self.size_bytes += len(line.data)
        while self.size_bytes > self.backlog_bytes_max:
            gone = self.lines.popleft()
            self.size_bytes -= len(gone.data)
            self.lines_gone += 1

    def _picture(self, event: Event, now_us: int) -> None:
        match event.payload:
            case SessionStartPayload() as start:
                self.start = start
            case EnergyUpdatePayload() as energy:
                self.energy = energy
            case SessionEndPayload() as end:
                self.end, self.ended_us = end, now_us
            case TokensPayload() as tokens:
                self._take_text(tokens)

    def _take_text(self, tokens: TokensPayload) -> None:
        if self.first_token_us is None:
            self.first_token_us = tokens.samples[0].token.t_us
        self.tokens += len(tokens.samples)
        kinds = self._texts.setdefault(tokens.stream_id, {})
        for sample in tokens.samples:
            tail = kinds.setdefault(sample.token.kind, bytearray())
            tail += sample.token.text.encode()
            if len(tail) > 2 * TEXT_TAIL_BYTES_MAX:
                del tail[:-TEXT_TAIL_BYTES_MAX]
