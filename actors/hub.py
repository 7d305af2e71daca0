"""FrameHub: frames in, bytes out to every client. Encodes once per distinct subscription and never waits for anybody.

A client that is level gets the shared, prebuilt WebSocket frame. One that lags (its sink is still busy, or it asked for
a lower rate) has its events kept: the newest `energy.update` per session wins, everything else accumulates up to
`pending_bytes_max`, past which it is closed with 4008.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from actors.frame_client import ClientServices, FrameClient, HubCounters, Sink
from actors.frame_history import HISTORY_US, FrameHistory, Since
from actors.kernel import Inlet
from actors.session_log import Follower, Line, SessionLog
from engine.domain.events import HEARTBEAT, SESSION_END, Event, HeartbeatPayload, TokensPayload
from engine.domain.frames import Frame
from engine.domain.generation import Clock
from engine.domain.telemetry import Telemetry
from transport.wire.commands import AckRendered, Subscription
from transport.wire.frames import (
    SCHEMA_VERSIONS,
    encode_event,
    encode_frame,
    encode_notice,
    encode_system,
    line_head,
    text_frame,
)

MAILBOX_FRAMES: Final = 2
RETRY_S: Final = 1 / 60  # a lagging client is tried again after this, also when no frame comes
BACKLOG_TOTAL_BYTES_MAX: Final = 64 * 1024 * 1024  # event lines of all sessions together
TOLD: Final = TokensPayload("", "", ())
REPORTS_MAX: Final = 64  # of clients that tell what they rendered
SNAPSHOT_ENDED_MAX: Final = 8  # ended sessions in a snapshot; all active ones are in it
HEARTBEAT_US: Final = 1_000_000


@attrs.frozen
class HelloFacts:
    """What `system.hello` says besides the connection's own id."""

    version: str
    boot: str
    tier: str
    level: int
    limits: dict[str, Any]
    tick_hz: int


@attrs.define(eq=False)
class Encoded:
    """The events of a frame without top-K lists, each encoded once, when it is first asked for."""

    events: tuple[Event, ...]
    _encoded: list[bytes | None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._encoded = [None] * len(self.events)

    def of(self, index: int) -> bytes:
        found = self._encoded[index]
        if found is None:
            found = self._encoded[index] = encode_event(self.events[index], with_top=False)
        return found

    def all(self) -> list[tuple[Event, bytes]]:
        return [(event, self.of(index)) for index, event in enumerate(self.events)]


@attrs.define(eq=False)
class FrameHub:
    """`connect` and `follow` may be called from any task of the trio thread; both take effect between two frames, so a
    snapshot and the frames after it fit without a gap."""

    inlet: Inlet[Frame]
    clock: Clock
    wall_ms: Callable[[], int]
    facts: HelloFacts
    telemetry: Telemetry
    pending_bytes_max: int
    backlog_bytes_max: int
    record_ttl_s: float
    counters: HubCounters = attrs.field(factory=HubCounters)
    clients: list[FrameClient] = attrs.field(factory=list)
    _logs: dict[str, SessionLog] = attrs.field(factory=dict)
    _heartbeat_us: int = 0
    _watched_us: int = 0  # when a client was last here
    _history: FrameHistory = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._history = FrameHistory(self.facts.boot)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the composer closed."""
        async with self.inlet.open() as frames:
            task_status.started()
            while True:
                lagging = any(client.lagging and not client.gone for client in self.clients)
                with trio.move_on_after(RETRY_S if lagging else float("inf")):
                    try:
                        self._frame(await frames.receive())
                    except trio.EndOfChannel:
                        return
                    continue
                for client in self.clients:
                    if not client.gone:
                        client.flush()

    def connect(self, sink: Sink, since: Since | None = None) -> FrameClient:
        """A new client; hello is pushed at once, and then what it missed `since`, or a snapshot where that is not known
        any more. `resumed_after` in hello says which."""
        services = ClientServices(
            self.clock, self.facts.tick_hz, self.pending_bytes_max, self.counters, self.snapshot, self.system
        )
        client = FrameClient(sink, services, rate_hz=self.facts.tick_hz)
        self.clients.append(client)
        hello = {
            "version": self.facts.version,
            "schema_versions": SCHEMA_VERSIONS,
            "boot": self.facts.boot,
            "tier": self.facts.tier,
            "level": self.facts.level,
            "limits": self.facts.limits,
            "tick_hz": self.facts.tick_hz,
            "connection_id": client.id,
            "resumed_after": None,
        }
        missed = self._history.after(since, self.pending_bytes_max // 2)
        if since is None or missed is None:
            client.reply("system.hello", hello)
            client.reply("system.state_snapshot", self.snapshot())
        else:
            client.reply("system.hello", hello | {"resumed_after": since.frame})
            for frame, events in missed:
                client.deliver(frame, text_frame(encode_frame(frame, (data for _, data in events))), events)
        return client

    def reporting(self) -> list[tuple[FrameClient, AckRendered]]:
        """The clients that told what they rendered, with their last report; the newest connections."""
        told = [(client, client.rendered) for client in self.clients if client.rendered is not None and not client.gone]
        return told[-REPORTS_MAX:]

    def follow(self, session_id: str, *, energy: bool) -> Follower:
        """The events of one session from its start. The caller knows that the session exists; `unfollow` when done."""
        return self._log(session_id).follow(energy, lambda type_, payload: self.notice(type_, session_id, payload))

    def notice(self, type_: str, session_id: str, payload: dict[str, Any]) -> bytes:
        """A line about the event stream itself, stamped now."""
        return encode_notice(type_, session_id, payload, self.wall_ms(), self.clock() / 1000)

    def unfollow(self, session_id: str, follower: Follower) -> None:
        if (log := self._logs.get(session_id)) is not None:
            log.unfollow(follower)

    def snapshot(self) -> dict[str, Any]:
        logs = list(self._logs.values())
        ended = [log for log in logs if log.end is not None][-SNAPSHOT_ENDED_MAX:]
        return {"sessions": [log.snapshot() for log in logs if log.end is None or log in ended]}

    def system(self, type_: str, payload: Any) -> bytes:
        return encode_system(type_, payload, self.wall_ms(), self.clock() / 1000)

    def _frame(self, frame: Frame) -> None:
        self.clients = [client for client in self.clients if not client.gone]
        self.counters.frames += 1
        if any(self._known_end(event) for event in frame.events if event.type == SESSION_END):
            frame = attrs.evolve(frame, events=tuple(e for e in frame.events if not self._known_end(e)))
        encoded = Encoded(frame.events)
        self._remember(frame, encoded)
        heartbeat = self._heartbeat(frame)
        if self.clients:
            self._watched_us = frame.mono_us
        elif frame.mono_us > self._watched_us + HISTORY_US:  # nobody to see it, and nobody who could come back for it
            self._history.forget(frame)
            return
        plain = encoded.all()
        self._history.add(attrs.evolve(frame, events=()), [(_told(event), data) for event, data in plain])
        shared: dict[int, tuple[bytes, list[tuple[Event, bytes]]]] = {}  # by subscription, which is one object
        for client in self.clients:
            wanted = client.wanted
            built = shared.get(id(wanted))
            if built is None:
                built = shared[id(wanted)] = self._build(frame, wanted, plain, heartbeat)
            message, events = built
            if message:
                client.deliver(frame, message, events)
            else:
                client.flush()

    def _known_end(self, event: Event) -> bool:
        """True for the end of a session that has ended: after a crash it may be told twice."""
        log = self._logs.get(event.session_id or "")
        return event.type == SESSION_END and log is not None and log.end is not None

    def _build(
        self, frame: Frame, wanted: Subscription, plain: list[tuple[Event, bytes]], heartbeat: list[tuple[Event, bytes]]
    ) -> tuple[bytes, list[tuple[Event, bytes]]]:
        """The message of one subscription; empty when the frame holds nothing for it."""
        events = [item for item in plain if wanted.wants(item[0].type, item[0].session_id)]
        if wanted.top:
            events = [(event, encode_event(event, with_top=True)) for event, _ in events]
        events += heartbeat
        if not events:
            return b"", []
        return text_frame(encode_frame(frame, (data for _, data in events))), events

    def _heartbeat(self, frame: Frame) -> list[tuple[Event, bytes]]:
        """Once a second, to everybody."""
        if frame.mono_us < self._heartbeat_us:
            return []
        self._heartbeat_us = frame.mono_us - frame.mono_us % HEARTBEAT_US + HEARTBEAT_US
        self._prune(frame.mono_us)
        payload = HeartbeatPayload(
            fps=self.telemetry.fps(frame.mono_us),
            uptime_ms=frame.mono_us / 1000,
            connections=len(self.clients),
            degrade=frame.perf.degrade,
        )
        event = Event(HEARTBEAT, None, payload)
        return [(event, encode_event(event, with_top=False))]

    def _remember(self, frame: Frame, encoded: Encoded) -> None:
        head = line_head(frame)
        for index, event in enumerate(frame.events):
            if event.session_id is not None:

                def line(event: Event = event, index: int = index) -> Line:
                    return Line(event.type, encoded.of(index), head)

                self._log(event.session_id).add(event, line, frame.mono_us)

    def _log(self, session_id: str) -> SessionLog:
        log = self._logs.get(session_id)
        if log is None:
            log = self._logs[session_id] = SessionLog(session_id, self.backlog_bytes_max)
        return log

    def _prune(self, now_us: int) -> None:
        """Forget sessions some time after their end, and the oldest backlogs when all together grow too large."""
        horizon = now_us - round(self.record_ttl_s * 1e6)
        for session_id in [s for s, log in self._logs.items() if log.ended_us is not None and log.ended_us < horizon]:
            del self._logs[session_id]
        total = sum(log.size_bytes for log in self._logs.values())
        for log in self._logs.values():
            if total <= BACKLOG_TOTAL_BYTES_MAX:
                break
            total -= log.size_bytes
            self.counters.backlogs_cut += log.size_bytes > 0
            log.forget_lines()


def _told(event: Event) -> Event:
    """The event without its payload, for keeping beside its bytes: thousands of tokens with their candidates would cost
    far more memory than the bytes do, and the garbage collector would go through them again and again."""
    return Event(event.type, event.session_id, TOLD)
