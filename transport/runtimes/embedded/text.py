"""From the bytes of tokens to text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import attrs


@attrs.define(eq=False)
class StopFilter:
    """Cuts a text before the first stop string that completes; how the text is split makes no difference.

    Text that could still become a stop string is held back, at most one character less than the longest of them.
    """

    stops: tuple[str, ...]  # none of them empty
    _held: str = attrs.field(default="", init=False)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met (then nothing may follow)."""
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self.stops if (begin := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@attrs.define(eq=False)
class TextStream:
    """Bytes in, text out. A character that is still incomplete waits; one that cannot be completed becomes U+FFFD."""

    _stops: StopFilter
    _decoder: codecs.IncrementalDecoder = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @classmethod
    def with_stops(cls, stops: Iterable[str]) -> TextStream:
        return cls(StopFilter(tuple(stop for stop in stops if stop)))

    def push(self, data: bytes, last: bool) -> tuple[str, bool]:
        """The newly completed text, and whether a stop string was met. With `last`, everything held back as well."""
        text, stopped = self._stops.push(self._decoder.decode(data, final=last))
        if last and not stopped:
            text += self._stops.flush()
        return text, stopped
