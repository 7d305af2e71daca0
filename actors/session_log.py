"""What the hub remembers of each session: its event lines for native streams, and its latest picture for snapshots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
import msgspec
import trio

from engine.domain.council import (
    FormedPayload,
    InterferencePayload,
    MemberEndPayload,
    MemberStartPayload,
    SynthesisPayload,
)
from engine.domain.events import (
    EnergyUpdatePayload,
    Event,
    SessionEndPayload,
    SessionStartPayload,
    TokensPayload,
)
from engine.domain.generation import Seam
from transport.wire.frames import line_of

TEXT_TAIL_BYTES_MAX: Final = 64 * 1024  # per stream and kind, in snapshots
FOLLOWER_BYTES_MAX: Final = 1024 * 1024  # waiting for one reader of an event stream, besides the backlog it began with


class Line(msgspec.Struct, frozen=True, gc=False):
    """One event of a session outside a frame, as JSON. `head` are the stamps of its frame, in place of the opening
    brace: most lines are never read, and so never put together."""

    type: str
    event: bytes
    head: bytes = b""

    @property
    def data(self) -> bytes:
        return line_of(self.head, self.event) if self.head else self.event

    @property
    def size_bytes(self) -> int:
        return len(self.head) + len(self.event)


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
        self._waiting_bytes += line.size_bytes
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
class CouncilPicture:
    """The last that was told of a council, members by stream."""

    formed: FormedPayload
    starts: dict[str, MemberStartPayload] = attrs.field(factory=dict)
    ends: dict[str, MemberEndPayload] = attrs.field(factory=dict)
    interference: InterferencePayload | None = None
    synthesis: SynthesisPayload | None = None

    def snapshot(self) -> dict[str, Any]:
        return {"formed": self.formed, "interference": self.interference, "synthesis": self.synthesis}


@attrs.define(eq=False)
class StreamPicture:
    """What one stream has said: its tokens so far, and the end of its texts by kind."""

    first_us: int | None = None
    tokens: int = 0
    texts: dict[str, bytearray] = attrs.field(factory=dict)
    stand_in: str | None = None  # the model that answers in place of the one that was asked


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
    council: CouncilPicture | None = None
    _streams: dict[str, StreamPicture] = attrs.field(factory=dict)

    def add(self, event: Event, line: Callable[[], Line], now_us: int) -> None:
        """Take one event; `line` gives its line when somebody needs it."""
        if isinstance(event.payload, EnergyUpdatePayload):
            self.energy = event.payload
            self._push([follower for follower in self.followers if follower.energy], line)
            return
        self._picture(event, now_us)
        item = line()
        self._keep(item)
        self._push(self.followers, lambda: item)
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
        self.size_bytes = sum(line.size_bytes for line in end)

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
            "council": None if self.council is None else self.council.snapshot(),
            "streams": [self._stream(ref.stream_id, ref.model) for ref in (() if start is None else start.streams)],
        }

    def _stream(self, stream_id: str, model: str) -> dict[str, Any]:
        said, council = self._streams.get(stream_id) or StreamPicture(), self.council
        asked = None if council is None else council.starts.get(stream_id)
        asked_us = None if asked is None else asked.asked_us
        if asked_us is None and self.start is not None:
            asked_us = self.start.start_us
        return {
            "stream_id": stream_id,
            "model": said.stand_in or model,
            "ttft_ms": None if said.first_us is None or asked_us is None else (said.first_us - asked_us) / 1000,
            "tokens": said.tokens,
            "end": None if council is None else council.ends.get(stream_id),
            "text": {
                kind: bytes(tail[-TEXT_TAIL_BYTES_MAX:]).decode("utf-8", "ignore") for kind, tail in said.texts.items()
            },
        }

    def _ttft_ms(self) -> float | None:
        if self.start is None or self.first_token_us is None:
            return None
        return (self.first_token_us - self.start.start_us) / 1000

    def _push(self, followers: list[Follower], line: Callable[[], Line]) -> None:
        if followers:
            item = line()
            for follower in followers:
                follower.push(item)

    def _keep(self, line: Line) -> None:
        self.lines.append(line)
        self.size_bytes += line.size_bytes
        while self.size_bytes > self.backlog_bytes_max:
            gone = self.lines.popleft()
            self.size_bytes -= gone.size_bytes
            self.lines_gone += 1

    def _picture(self, event: Event, now_us: int) -> None:
        match event.payload:
            case TokensPayload() as tokens:
                self._take_text(tokens)
            case SessionStartPayload() as start:
                self.start = start
            case SessionEndPayload() as end:
                self.end, self.ended_us = end, now_us
            case Seam(position=0, stream_id=stream_id, model=model):
                self._streams.setdefault(stream_id, StreamPicture()).stand_in = model
            case FormedPayload() as formed:
                self.council = CouncilPicture(formed)
            case MemberStartPayload() | MemberEndPayload() | InterferencePayload() | SynthesisPayload() as told:
                self._take_council(told)

    def _take_council(
        self, told: MemberStartPayload | MemberEndPayload | InterferencePayload | SynthesisPayload
    ) -> None:
        if self.council is None:
            return  # its forming was told before this hub began
        match told:
            case MemberStartPayload():
                self.council.starts[told.stream_id] = told
            case MemberEndPayload():
                self.council.ends[told.stream_id] = told
            case InterferencePayload():
                self.council.interference = told
            case SynthesisPayload():
                self.council.synthesis = told

    def _take_text(self, tokens: TokensPayload) -> None:
        samples = tokens.samples
        said = self._streams.get(tokens.stream_id)
        if said is None:
            said = self._streams[tokens.stream_id] = StreamPicture()
        if self.first_token_us is None:
            self.first_token_us = samples[0].token.t_us
        if said.first_us is None:
            said.first_us = samples[0].token.t_us
        self.tokens += len(samples)
        said.tokens += len(samples)
        for sample in samples:
            token = sample.token
            tail = said.texts.get(token.kind)
            if tail is None:
                tail = said.texts[token.kind] = bytearray()
            tail += token.text.encode()
            if len(tail) > 2 * TEXT_TAIL_BYTES_MAX:
                del tail[:-TEXT_TAIL_BYTES_MAX]
