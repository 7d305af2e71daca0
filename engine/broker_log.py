"""The broker's own record: one line of JSON per event in `broker.jsonl` of the state folder, private to the user.

There is no text of a request or an answer in it, and no key. When it grows too large it is put aside as
`broker.jsonl.1`, of which one is kept; together they hold more than a day, which is what the budgets need of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
import trio

FILE_NAME: Final = "broker.jsonl"
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024  # longer ones are none of ours
_PRIVATE_FILE: Final = 0o600

_line_decoder: Final = msgspec.json.Decoder(dict[str, str | int | float | bool | None | dict[str, Any]])


@attrs.define(eq=False)
class BrokerFile:
    """`folder` is the state folder, held by this engine alone. One write at a time."""

    folder: Path
    bytes_max: int = FILE_BYTES_MAX
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    async def write(self, line: Mapping[str, Any]) -> None:
        """On the disk when it returns. Raises OSError. Cancelled while it waits for its turn: not written."""
        data = msgspec.json.encode(line) + b"\n"
        async with self._writing:
            await trio.to_thread.run_sync(self._append, data)

    def read(self) -> list[Mapping[str, Any]]:
        """What is there, oldest first; what cannot be read is passed over. Blocks."""
        found: list[Mapping[str, Any]] = []
        for path in (self._path.with_suffix(".jsonl.1"), self._path):
            try:
                with path.open("rb") as stream:
                    lines = stream.read(2 * self.bytes_max).split(b"\n")
            except OSError:
                continue
            for line in lines:
                if 0 < len(line) <= LINE_BYTES_MAX:
                    try:
                        found.append(_line_decoder.decode(line))
                    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                        continue
        return found

    @property
    def _path(self) -> Path:
        return self.folder / FILE_NAME

    def _append(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, _PRIVATE_FILE)
        try:
            if os.fstat(descriptor).st_size + len(data) > self.bytes_max:
                os.replace(self._path, self._path.with_suffix(".jsonl.1"))
                os.close(descriptor)
                descriptor = os.open(self._path, flags, _PRIVATE_FILE)
            written = os.write(descriptor, data)
            if written < len(data):
                raise OSError(28, "the disk is full")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
