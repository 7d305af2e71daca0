"""FrameClient: one WebSocket client as the hub sees it: its subscription, and what it has not got yet."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any, Final, Protocol

import attrs

from engine.domain.errors import EngineError
from engine.domain.events import Event
from engine.domain.frames import Frame
from engine.domain.generation import Clock
from transport.wire.commands import (
    AckRendered,
    Ping,
    Resync,
    Subscribe,
    Subscription,
    Unsubscribe,
    message_id,
    parse_command,
)
from transport.wire.frames import encode_frame, text_frame

REPLIES_MAX: Final = 128  # unsent answers to commands; a client that only asks and never reads is closed
CLOSE_SLOW: Final = 4008
SHARED_MAX: Final = 1024  # different subscriptions; of more, some are encoded for more than one client


class Sink(Protocol):
    """Where a client's bytes go; given by the endpoint."""

    def push(self, frame: bytes) -> bool:
        """Take whole WebSocket frames, or False while earlier ones are still in flight. Never waits."""

    def close(self, code: int, reason: str) -> None:
        """Ask for the connection to be closed. Never waits."""


@attrs.define(eq=False)
class HubCounters:
    """`merged_frames`: frames a client got as part of a later one; `dropped_energy`: snapshots a newer one replaced;
    `closed_slow`: clients closed with 4008; `backlogs_cut`: session backlogs emptied for the common bound."""

    frames: int = 0
    pushed: int = 0
    merged_frames: int = 0
    dropped_energy: int = 0
    closed_slow: int = 0
    bad_messages: int = 0
    backlogs_cut: int = 0


@attrs.frozen
class ClientServices:
    """What a client needs of its hub."""

    clock: Clock
    tick_hz: int
    pending_bytes_max: int
    counters: HubCounters
    snapshot: Callable[[], dict[str, Any]]
    system: Callable[[str, Any], bytes]  # type and payload to a message


@functools.lru_cache(maxsize=SHARED_MAX)
def _shared(patterns: frozenset[str], session_id: str | None, top: bool) -> Subscription:
    """The same object for all clients that want the same, so that nobody has to compare them for every frame."""
    return Subscription(patterns, session_id, top)


@attrs.define(eq=False)
class FrameClient:
    """One WebSocket client as the hub sees it. `receive` takes its messages, `detach` ends it (idempotent). `wanted` is
    its subscription, as one object with those of all clients that want the same."""

    sink: Sink
    services: ClientServices
    rate_hz: float
    subscription: Subscription = attrs.field(factory=Subscription)
    wanted: Subscription = attrs.field(init=False)
    id: str = attrs.field(factory=lambda: secrets.token_hex(8))
    gone: bool = False
    rendered: AckRendered | None = None  # its own last report
    lagging: bool = False  # something is kept for it
    _due_us: int = 0
    _replies: list[bytes] = attrs.field(factory=list)
    _pending: dict[tuple[str, str | int], bytes] = attrs.field(factory=dict)
    _pending_bytes: int = 0
    _frame: Frame | None = None  # the newest one with events in `_pending`
    _kept: int = 0  # makes the keys of lossless events distinct, in order

    def __attrs_post_init__(self) -> None:
        self._want(self.subscription)

    def receive(self, message: bytes) -> None:
        """One client message; the answer goes to the sink. Never raises for what a client can send."""
        try:
            command = parse_command(message)
            match command:
                case Subscribe() | Unsubscribe():
                    self._subscribe(command)
                case Ping():
                    self.reply("system.pong", {"id": command.id})
                case Resync():
                    self.reply("system.state_snapshot", {"id": command.id, **self.services.snapshot()})
                case AckRendered():
                    self.rendered = command
                    self.reply("system.acknowledged", {"id": command.id, "frame": command.frame})
        except EngineError as error:
            self.refuse(error, message_id(message))

    def refuse(self, error: EngineError, id_: str | None = None) -> None:
        """A bad message: the client is told, and stays. `id_` is that of the message, where it has one."""
        self.services.counters.bad_messages += 1
        self.reply("system.error", {"id": id_, **error.as_dict()})

    def detach(self) -> None:
        self.gone = True

    @property
    def _due(self) -> bool:
        """Within half a tick: deliveries happen on ticks. Always, for a client at the full rate."""
        return not self._due_us or self.services.clock() + 500_000 // self.services.tick_hz >= self._due_us

    def reply(self, type_: str, payload: Any) -> None:
        self._replies.append(text_frame(self.services.system(type_, payload)))
        self.lagging = True
        waiting_bytes = sum(len(reply) for reply in self._replies[:-1])  # one may always wait, however large
        if len(self._replies) > REPLIES_MAX or waiting_bytes > self.services.pending_bytes_max:
            self._close_slow()
        else:
            self.flush()

    def flush(self) -> None:
        """Send what is kept, if the sink is free and the client's rate allows it."""
        due = bool(self._pending) and self._due
        if not self._replies and not due:
            return
        parts = list(self._replies)
        if due and self._frame is not None:
            parts.append(text_frame(encode_frame(self._frame, self._pending.values())))
        if not self.sink.push(b"".join(parts)):
            return
        self._replies.clear()
        if due:
            self._pending.clear()
            self._pending_bytes, self._frame = 0, None
            self._sent()
        self.lagging = bool(self._pending)

    def deliver(self, frame: Frame, message: bytes, events: list[tuple[Event, bytes]]) -> None:
        """One frame: the shared bytes when level, else kept and merged."""
        if not self.lagging and (not self._due_us or self._due) and self.sink.push(message):
            self._sent()
            return
        self.lagging = True
        if self._pending:
            self.services.counters.merged_frames += 1
        for event, data in events:
            self._kept += 1
            key: tuple[str, str | int] = ("event", self._kept)
            if not event.lossless:
                key = (event.type, event.session_id or "")
                replaced = self._pending.pop(key, None)
                if replaced is not None:
                    self.services.counters.dropped_energy += 1
                    self._pending_bytes -= len(replaced)
            self._pending[key] = data
            self._pending_bytes += len(data)
        self._frame = frame
        if self._pending_bytes > self.services.pending_bytes_max:
            self._close_slow()
        else:
            self.flush()

    def _want(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.wanted = _shared(subscription.patterns, subscription.session_id, subscription.top)

    def _sent(self) -> None:
        self.services.counters.pushed += 1
        if self.rate_hz < self.services.tick_hz:
            # From the moment it was due, not from now: else every delivery slips to the tick after.
            period_us, now_us = round(1e6 / self.rate_hz), self.services.clock()
            self._due_us = max(self._due_us + period_us, now_us + period_us // 2)

    def _close_slow(self) -> None:
        self.services.counters.closed_slow += 1
        self.gone = True
        self.sink.close(CLOSE_SLOW, "slow")

    def _subscribe(self, command: Subscribe | Unsubscribe) -> None:
        self._want(self.subscription.changed(command))
        if isinstance(command, Subscribe) and isinstance(command.rate_hz, float):
            self.rate_hz = command.rate_hz
            self._due_us = 0
        self.reply(
            "system.subscribed",
            {
                "id": command.id,
                "patterns": sorted(self.subscription.patterns),
                "session_id": self.subscription.session_id,
                "rate_hz": self.rate_hz,
                "top": self.subscription.top,
            },
        )
