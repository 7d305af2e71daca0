"""Server-sent events of a byte stream, without IO: the framing under the OpenAI and Anthropic dialects.

Two deviations from the standard, both on purpose. Lines end with LF or CRLF; a lone CR ends none (no server sends it,
and the line splitter is shared). A line that is no field of the standard is an error instead of being ignored: a server
that answers with bare JSON or a page of HTML where events should be must not look like one that said nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from engine.domain.errors import UpstreamProtocolError
from transport.wire.lines import LINE_BYTES_MAX, LineSplitter

_BOM: Final = b"\xef\xbb\xbf"


@attrs.frozen
class Event:
    """`data` are the values of its data lines, joined by LF, as bytes: whether they are UTF-8 is for the decoder behind
    it to say. `event` is its type, empty when it has none. `id` is the last id the stream has given, empty before the
    first."""

    data: bytes
    event: str = ""
    id: str = ""


@attrs.define(eq=False)
class EventStream:
    """Bytes in, events out; any chunking gives the same events.

    Comments and `retry` are skipped; an event without data is none. A line or the data of an event longer than
    `max_bytes` is an UpstreamProtocolError, and so is a line that is no field; the events before it are handed out
    first.
    """

    max_bytes: int = LINE_BYTES_MAX
    _lines: LineSplitter = attrs.field(init=False)
    _begun: bool = attrs.field(default=False, init=False)  # past the first line
    _data: list[bytes] = attrs.field(factory=list, init=False)
    _data_bytes: int = attrs.field(default=0, init=False)
    _event: str = attrs.field(default="", init=False)
    _id: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = LineSplitter(self.max_bytes)

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes. Consume it whole: an error of a line comes after the events before it."""
        lines = self._lines.feed(data)
        for line, start in zip(lines, self._lines.starts, strict=True):
            if line:
                self._take(line, start)
            elif self._data:
                yield self._dispatched()
            else:
                self._event = ""

    def finish(self) -> Event | None:
        """What the stream ended in: an event that lacks its blank line, or even a part of its last line. None when it
        ended between two events. The standard has such an event thrown away; here the caller decides."""
        rest = self._lines.finish().removesuffix(b"\r")
        if rest.startswith(b":"):
            rest = b""
        if not rest and not self._data and not self._event:
            return None
        name, _, value = rest.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return self._dispatched()

    def _dispatched(self) -> Event:
        event = Event(b"\n".join(self._data), self._event, self._id)
        self._data, self._data_bytes, self._event = [], 0, ""
        return event

    def _take(self, line: bytes, start: int) -> None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data_bytes += len(value) + 1
                if self._data_bytes > self.max_bytes + 1:
                    raise UpstreamProtocolError(
                        f"the runtime sent an event longer than {self.max_bytes} bytes", limit_bytes=self.max_bytes
                    )
                self._data.append(value)
            case b"event":
                self._event = _text(value, start)
            case b"id":
                self._id = self._id if b"\0" in value else _text(value, start)
            case b"" | b"retry":  # a comment starts with the colon; when to reconnect does not matter here
                pass
            case _:
                raise UpstreamProtocolError(
                    f"the runtime sent a line that is no field of an event (it starts at byte {start})", offset=start
                )


def _text(value: bytes, start: int) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise UpstreamProtocolError(
            f"the runtime sent an event that is not UTF-8 (the line starts at byte {start})", offset=start
        ) from None
