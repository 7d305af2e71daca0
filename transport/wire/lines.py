"""Lines of a byte stream, split on LF and nothing else.

JSON and SSE may hold U+0085, U+2028, U+2029, VT and FF inside a line; a splitter that takes those for line ends
corrupts answers. Whether the bytes are UTF-8 is for the decoder behind it to say.
"""

from __future__ import annotations

from typing import Final

import attrs

from engine.domain.errors import UpstreamProtocolError

LINE_BYTES_MAX: Final = 1024 * 1024


@attrs.define(eq=False)
class LineSplitter:
    """Bytes in, whole lines out; any chunking gives the same lines.

    A line comes without its LF and without one CR directly before it. `starts` are the byte offsets within the stream
    of the lines that the last `feed` returned. A line longer than `max_bytes` (its CR counts) is an
    UpstreamProtocolError; lines that were whole before it are still handed out, the error then comes with the next
    call.
    """

    max_bytes: int = LINE_BYTES_MAX
    starts: list[int] = attrs.field(factory=list, init=False)
    _offset: int = attrs.field(default=0, init=False)  # of the line that is not whole yet
    _rest: bytearray = attrs.field(factory=bytearray, init=False)
    _fault: UpstreamProtocolError | None = attrs.field(default=None, init=False)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        self._raise_fault()
        self.starts = []
        if b"\n" not in data:
            self._rest += data
            self._check(len(self._rest))
            self._raise_fault()
            return []
        whole = (bytes(self._rest) + data if self._rest else data).split(b"\n")
        tail = whole.pop()
        if tail or self._rest:
            self._rest = bytearray(tail)
        lines = []
        for line in whole:
            if not self._check(len(line)):
                break
            self.starts.append(self._offset)
            self._offset += len(line) + 1
            lines.append(line.removesuffix(b"\r"))
        else:
            self._check(len(tail))
        if not lines:
            self._raise_fault()
        return lines

    def finish(self) -> bytes:
        """What came after the last LF, as it came; empty when the stream ended with one."""
        self._raise_fault()
        rest, self._rest = bytes(self._rest), bytearray()
        self.starts = [self._offset] if rest else []
        self._offset += len(rest)
        return rest

    def _check(self, size_bytes: int) -> bool:
        if size_bytes > self.max_bytes:
            self._rest.clear()
            self._fault = UpstreamProtocolError(
                f"the runtime sent a line longer than {self.max_bytes} bytes (it starts at byte {self._offset})",
                limit_bytes=self.max_bytes,
                offset=self._offset,
            )
        return self._fault is None

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault
