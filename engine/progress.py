"""A download in the terminal: one line that grows, or a line per step where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final, TextIO

import attrs
import msgspec

from engine.console import harmless, size
from engine.domain.errors import UpstreamProtocolError, UpstreamTruncated

BAR_CHARS: Final = 30
CLEAR: Final = "\r\x1b[K"


class PullLine(msgspec.Struct):
    """One line of `/api/pull`."""

    status: str = ""
    completed: int | None = None
    total: int | None = None
    error: str | None = None


@attrs.define(eq=False)
class Progress:
    """On stderr, so that stdout stays empty. A terminal gets a bar in place; a file gets each status once."""

    model: str
    out: TextIO = attrs.field(factory=lambda: sys.stderr)
    _said: str = ""

    def show(self, line: bytes) -> None:
        step = _parsed(line)
        if self.out.isatty():
            end = "\n" if step.status == "success" else ""
            self.out.write(f"{CLEAR}{harmless(self.model)}  {bar(step)}{end}")
        elif step.status != self._said:
            self.out.write(f"{harmless(self.model)}: {harmless(step.status)}\n")
        self._said = step.status
        self.out.flush()


def bar(step: PullLine) -> str:
    """`[████      ] 42 %  1.2 GB of 3.0 GB`, or the status where the size is not known."""
    if not step.total or step.completed is None or step.status == "success":
        return harmless(step.status)
    share = min(1.0, step.completed / step.total)
    filled = int(share * BAR_CHARS)
    return f"[{'█' * filled}{' ' * (BAR_CHARS - filled)}] {share:4.0%}  {size(step.completed)} of {size(step.total)}"


def follow(lines: Iterable[bytes], show: Callable[[bytes], None]) -> None:
    """Show a download to its end. Raises UpstreamProtocolError with the engine's words when it failed."""
    status = ""
    for line in lines:
        step = _parsed(line)
        if step.error is not None:
            raise UpstreamProtocolError(step.error)
        status = step.status
        show(line)
    if status != "success":
        raise UpstreamTruncated("the engine broke off the download")


def _parsed(line: bytes) -> PullLine:
    try:
        return msgspec.json.decode(line, type=PullLine)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamProtocolError("the engine sent a line that is no progress") from None
