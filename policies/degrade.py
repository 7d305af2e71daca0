"""What the engine leaves out when it cannot keep up: levels 0 to 4 with hysteresis, and what they take from events.

Pure: the composer tells once per frame how it goes and applies what comes back. Text is never left out, and EU is
summed before anything is.
"""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Final, Literal

import attrs
from msgspec.structs import replace

from engine.domain.events import DegradeReason, Event, TokensPayload
from policies.schema import Misfit, quoted, row, section

NORMAL: Final = 0  # everything
MERGE: Final = 1  # no patterns, twice as many batches at a time
JOIN: Final = 2  # refused frames are joined per stream
TRIM: Final = 3  # no top lists
SHED: Final = 4  # only the newest tokens of a stream carry more than text
MERGE_DRAIN_FACTOR: Final = 2


@attrs.frozen
class Mark:
    """When a level is entered and left, as shares of the mailbox that producers put into."""

    enter: float = row(doc="at this and above", above=0, maximum=1)
    leave: float = row(doc="below this", above=0, maximum=1)

    def __attrs_post_init__(self) -> None:
        if self.leave >= self.enter:
            raise Misfit(f"less than enter ({self.enter:g})", quoted(self.leave), ("leave",))


@attrs.frozen
class DegradePolicy:
    """policies/degrade.yaml with the user's changes; what each level leaves out stands there."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    merge: Mark = section(doc="D1")
    merge_overruns: int = row(doc="overruns in a row that enter D1", unit="frames", minimum=1, maximum=3600)
    merge_clean_frames: int = row(doc="frames in time before D1 is left", unit="frames", minimum=1, maximum=36_000)
    join: Mark = section(doc="D2")
    trim: Mark = section(doc="D3")
    shed: Mark = section(doc="D4")
    shed_keep_tokens: int = row(doc="newest tokens that stay whole", unit="tokens", minimum=1, maximum=65_536)
    patterns_budget: float = row(doc="share of a tick that pauses the patterns", above=0, maximum=1)
    patterns_pause_frames: int = row(doc="how long they pause", unit="frames", minimum=1, maximum=36_000)

    def __attrs_post_init__(self) -> None:
        names = ("merge", "join", "trim", "shed")
        for lower, upper in itertools.pairwise(names):
            below, above = getattr(self, lower), getattr(self, upper)
            if above.enter <= below.enter:
                raise Misfit(f"more than {lower}.enter ({below.enter:g})", quoted(above.enter), (upper, "enter"))
            if above.leave < below.leave:
                raise Misfit(f"at least {lower}.leave ({below.leave:g})", quoted(above.leave), (upper, "leave"))

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Of D1 to D4."""
        return (self.merge, self.join, self.trim, self.shed)


@attrs.frozen
class Change:
    """One move of the level: up to any level at once, down by one."""

    level: int
    before: int
    reason: DegradeReason


@attrs.define(eq=False)
class Ladder:
    """The level 0–4 in force. `capacity` is the batches the mailbox holds that producers put into, `budget_ms` the
    length of a tick. It counts frames, not time, so it is the same in a frame that was late."""

    policy: DegradePolicy
    capacity: int
    budget_ms: float
    level: int = NORMAL
    overruns: int = 0  # in a row
    in_time: int = 0  # frames in a row, since the level last rose
    pause: int = 0  # frames without patterns still to come
    _enter: tuple[float, ...] = attrs.field(init=False)  # batches, by level
    _leave: tuple[float, ...] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        marks = self.policy.marks
        self._enter = (-1.0, *(mark.enter * self.capacity for mark in marks), math.inf)
        self._leave = (-1.0, *(mark.leave * self.capacity for mark in marks))

    def step(self, waiting: int, frame_ms: float, late: bool) -> Change | None:
        """Once per frame. `waiting`: batches before the composer; `frame_ms`: what the frame before took; `late`: this
        one is a tick or more late, or the hub refused the one before. The change of the level, if any."""
        if late or frame_ms > self.budget_ms:
            self.overruns, self.in_time = self.overruns + 1, 0
        else:
            self.overruns, self.in_time = 0, self.in_time + 1
        if frame_ms > self.budget_ms * self.policy.patterns_budget:
            self.pause = self.policy.patterns_pause_frames
        elif self.pause:
            self.pause -= 1
        if waiting >= self._enter[self.level + 1]:
            return self._move(self._reached(waiting), "queue")
        if self.level == NORMAL:
            return self._move(MERGE, "overruns") if self.overruns >= self.policy.merge_overruns else None
        if waiting < self._leave[self.level] and (self.level > MERGE or self.in_time >= self.policy.merge_clean_frames):
            return self._move(self.level - 1, "recovered")
        return None

    @property
    def frame_level(self) -> int:
        """What this frame is composed at: the level, or D1 while the patterns pause."""
        return MERGE if self.pause and self.level == NORMAL else self.level

    @property
    def drain_factor(self) -> int:
        return 1 if self.level == NORMAL else MERGE_DRAIN_FACTOR

    def _reached(self, waiting: int) -> int:
        return next(level for level in (SHED, TRIM, JOIN, MERGE) if waiting >= self._enter[level])

    def _move(self, level: int, reason: DegradeReason) -> Change:
        before, self.level = self.level, level
        if level > before:
            self.in_time = 0
        return Change(level, before, reason)


def joined(events: Iterable[Event]) -> tuple[Event, ...]:
    """D2: one token event per stream, in the place of its first; the others stay in their order. All tokens are kept.
    What belongs before a stream's first token or after its last still is."""
    merged: list[Event] = []
    first: dict[str, int] = {}  # stream → its place in `merged`
    for event in events:
        payload = event.payload
        if not isinstance(payload, TokensPayload):
            merged.append(event)
            continue
        place = first.setdefault(payload.stream_id, len(merged))
        if place == len(merged):
            merged.append(event)
        else:
            merged[place] = replace(event, payload=_both(merged[place].payload, payload))
    return tuple(merged)


def _both(older: object, newer: TokensPayload) -> TokensPayload:
    assert isinstance(older, TokensPayload)
    return replace(
        older,
        samples=older.samples + newer.samples,
        text_only=len(older.samples) + newer.text_only if newer.text_only else older.text_only,
        with_top=older.with_top and newer.with_top,
    )


def lightened(events: tuple[Event, ...], level: int, keep_tokens: int) -> tuple[tuple[Event, ...], int]:
    """The events as `level` lets them out, and how many tokens lost all but their text by it. Below D3 as they are."""
    if level < TRIM:
        return events, 0
    light, dropped = [], 0
    for event in events:
        payload = event.payload
        if isinstance(payload, TokensPayload):
            text_only = payload.text_only
            if level >= SHED:
                text_only = max(text_only, len(payload.samples) - keep_tokens)
            dropped += text_only - payload.text_only
            event = replace(event, payload=replace(payload, with_top=False, text_only=text_only))
        light.append(event)
    return tuple(light), dropped
