"""The broker's own record: one line of JSON per event in `broker.jsonl` of the state folder, private to the user.

There is no text of a request or an answer in it, and no key. When it grows too large it is put aside as
`broker.jsonl.1`, of which one is kept; together they hold more than a day, which is what the budgets need of them.

The lines are a hash chain: `hash` is the SHA-256 of `prev` and of the line without these two, and `prev` is the hash of
the line before. So a line that was changed, taken out or moved later shows. What does not show is an end that was cut
off, unless somebody has noted the last hash, which `wf check` tells; nor can a chain tell who wrote it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Final

import attrs
import msgspec
import trio

FILE_NAME: Final = "broker.jsonl"
ASIDE_NAME: Final = f"{FILE_NAME}.1"
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024  # longer ones are none of ours
GENESIS: Final = "0" * 64  # `prev` of the very first line
_PRIVATE_FILE: Final = 0o600
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_line_decoder: Final = msgspec.json.Decoder(dict[str, str | int | float | bool | None | dict[str, Any]])


def hash_of(prev: str, line: Mapping[str, Any]) -> str:
    """Of a line in the chain, in hexadecimal: SHA-256 over `prev` and the line without its own `prev` and `hash`, as
    JSON with sorted keys and no blanks, in UTF-8."""
    told = {key: value for key, value in line.items() if key not in ("prev", "hash")}
    return hashlib.sha256(prev.encode() + msgspec.json.encode(told, order="sorted")).hexdigest()


@attrs.frozen
class Chain:
    """What came of looking at the record: how many lines follow one another, and the hash of the last of them. `broken`
    says where it ends to be a chain, and why; null when it is whole."""

    lines: int
    last: str | None
    broken: str | None = None


@attrs.define(eq=False)
class BrokerFile:
    """`folder` is the state folder, held by this engine alone. One write at a time."""

    folder: Path
    bytes_max: int = FILE_BYTES_MAX
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    _last: str | None = None  # the hash of the last line; null when the file has to be asked

    async def write(self, line: Mapping[str, Any]) -> None:
        """On the disk when it returns. Raises OSError. Cancelled while it waits for its turn: not written."""
        async with self._writing:
            await trio.to_thread.run_sync(self._append, line)

    def read(self) -> list[Mapping[str, Any]]:
        """What is there, oldest first; what cannot be read is passed over. Blocks."""
        found: list[Mapping[str, Any]] = []
        for path in (self._aside, self._path):
            try:
                with path.open("rb") as stream:
                    lines = stream.read(2 * self.bytes_max).split(b"\n")
            except OSError:
                continue
            for line in lines:
                if 0 < len(line) <= LINE_BYTES_MAX:
                    try:
                        found.append(_line_decoder.decode(line))
                    except _UNREADABLE:
                        continue
        return found

    @property
    def _path(self) -> Path:
        return self.folder / FILE_NAME

    @property
    def _aside(self) -> Path:
        return self.folder / ASIDE_NAME

    def _append(self, line: Mapping[str, Any]) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, _PRIVATE_FILE)
        try:
            if self._last is None:
                _cut_unfinished(descriptor)
            prev = self._last or _last_hash(descriptor) or self._last_aside() or GENESIS
            own = {**line, "prev": prev, "hash": hash_of(prev, line)}
            data, size_bytes = msgspec.json.encode(own) + b"\n", os.fstat(descriptor).st_size
            if size_bytes and size_bytes + len(data) > self.bytes_max:
                os.replace(self._path, self._aside)
                fresh, size_bytes = os.open(self._path, flags, _PRIVATE_FILE), 0
                os.close(descriptor)
                descriptor = fresh
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(28, "the disk is full")
                os.fdatasync(descriptor)
            except OSError:
                self._last = None
                with suppress(OSError):
                    os.ftruncate(descriptor, size_bytes)  # half a line would spoil the next one
                raise
            self._last = own["hash"]
        finally:
            os.close(descriptor)

    def _last_aside(self) -> str | None:
        try:
            with self._aside.open("rb") as stream:
                return _last_hash(stream.fileno())
        except OSError:
            return None


def verify_chain(folder: Path) -> Chain | None:
    """Look at the record in `folder`, of an engine that runs or one that does not; None where there is none. An
    unfinished last line is passed over: nothing ever left on its word. Blocks."""
    with ExitStack() as stack:
        files: list[tuple[str, IO[bytes]]] = []
        for name in (ASIDE_NAME, FILE_NAME):  # both at once: a running engine puts one aside at any moment
            try:
                files.append((name, stack.enter_context((folder / name).open("rb"))))
            except FileNotFoundError:
                continue
            except OSError as error:
                return Chain(0, None, f"{name} cannot be read: {error.strerror}")
        if not files:
            return None
        count, last = 0, None if files[0][0] == ASIDE_NAME else GENESIS  # what was before the one aside is gone
        for name, file in files:
            for number, raw in enumerate(_lines(file), 1):
                prev, fault = _link(raw, last)
                if fault is not None:
                    return Chain(count, last if count else None, f"{name} line {number} {fault}")
                count, last = count + 1, prev
        return Chain(count, last if count else None)


def _link(raw: bytes, last: str | None) -> tuple[str | None, str | None]:
    """The hash of a line that follows `last` (null: whatever that was), or what is wrong with it."""
    if len(raw) > LINE_BYTES_MAX:
        return None, "is too long"
    try:
        line = _line_decoder.decode(raw)
    except _UNREADABLE:
        return None, "is no line of the broker"
    prev, own = line.get("prev"), line.get("hash")
    if not isinstance(prev, str) or not isinstance(own, str):
        return None, "has no hash"
    if msgspec.json.encode(line) != raw or hash_of(prev, line) != own:
        return None, "was changed"
    if last is not None and prev != last:
        return None, "does not follow the one before: lines are missing, or were put in"
    return own, None


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends; of one that is too long the beginning, which is enough to refuse it."""
    while raw := file.readline(LINE_BYTES_MAX + 2):
        if raw.endswith(b"\n") or len(raw) > LINE_BYTES_MAX:
            yield raw.removesuffix(b"\n")


def _last_hash(descriptor: int) -> str | None:
    """Of the last line of a file, null when it has none that says its hash."""
    size_bytes = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, LINE_BYTES_MAX, max(0, size_bytes - LINE_BYTES_MAX))
    try:
        found = _line_decoder.decode(tail.removesuffix(b"\n").rpartition(b"\n")[2]).get("hash")
    except _UNREADABLE:
        return None
    return found if isinstance(found, str) and len(found) == len(GENESIS) else None


def _cut_unfinished(descriptor: int) -> None:
    """A line without its end was being written when the machine stopped: nothing left on its word, and the next one
    must not be glued to it."""
    size_bytes = os.fstat(descriptor).st_size
    start = max(0, size_bytes - LINE_BYTES_MAX)
    tail = os.pread(descriptor, LINE_BYTES_MAX, start)
    if tail and not tail.endswith(b"\n"):
        at = tail.rfind(b"\n")
        if at >= 0 or start == 0:
            os.ftruncate(descriptor, start + at + 1)
