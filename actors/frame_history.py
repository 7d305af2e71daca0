"""The frames of the last seconds, for clients that lost their connection and come back."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import attrs

from engine.domain.events import Event
from engine.domain.frames import Frame

HISTORY_US: Final = 10_000_000
HISTORY_BYTES_MAX: Final = 8 * 1024 * 1024  # of all events in it
_SINCE: Final = re.compile(r"([0-9a-f]{1,64})\.([0-9]{1,15})")

Events = list[tuple[Event, bytes]]  # each with its encoding


@attrs.frozen
class Since:
    """The last frame a client saw, of which start of the engine."""

    boot: str
    frame: int


def parse_since(text: str) -> Since | None:
    """`<boot>.<frame>`; None for anything else."""
    found = _SINCE.fullmatch(text)
    return None if found is None else Since(found[1], int(found[2]))


@attrs.define(eq=False)
class FrameHistory:
    """Frames with events, oldest first. Those without need not be kept: nobody misses anything by them."""

    boot: str
    _frames: deque[tuple[Frame, Events, int]] = attrs.field(factory=deque)
    _size_bytes: int = 0
    _complete_after: int = 0  # every frame with events after this one is still here
    _newest: int = 0

    def add(self, frame: Frame, events: Events) -> None:
        self._newest = frame.frame
        if events:
            size_bytes = sum(len(data) for _, data in events)
            self._frames.append((frame, events, size_bytes))
            self._size_bytes += size_bytes
        while self._frames and (
            self._size_bytes > HISTORY_BYTES_MAX or self._frames[0][0].mono_us < frame.mono_us - HISTORY_US
        ):
            gone, _, size_bytes = self._frames.popleft()
            self._size_bytes -= size_bytes
            self._complete_after = gone.frame

    def forget(self, frame: Frame) -> None:
        """Keep nothing, `frame` included: nobody was here to come back for it."""
        self._frames.clear()
        self._size_bytes = 0
        self._newest = self._complete_after = frame.frame

    def after(self, since: Since | None, bytes_max: int) -> list[tuple[Frame, Events]] | None:
        """What came after `since`, at most `bytes_max` bytes of it; None when that is not whole any more, or when it is
        of another start of the engine."""
        if since is None or since.boot != self.boot or not self._complete_after <= since.frame <= self._newest:
            return None
        missed = [(frame, events, size) for frame, events, size in self._frames if frame.frame > since.frame]
        if sum(size for _, _, size in missed) > bytes_max:
            return None
        return [(frame, events) for frame, events, _ in missed]
