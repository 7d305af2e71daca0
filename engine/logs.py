"""Log lines on stderr, one line each, as text or JSON.

Nothing in a value can start a line or move a cursor, and a line has a length limit. Of an exception the type and the
place are logged, its message only where we wrote it ourselves or the operating system did: a library's message may
quote a prompt. A thread of its own does the writing, so that a terminal or pipe that nobody reads never holds up the
event loop; lines beyond the queue are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from engine.domain.errors import EngineError

LINE_MAX_CHARS: Final = 2000
QUEUE_LINES: Final = 4096
CLOSE_WAIT_S: Final = 1.0
CAUSES_MAX: Final = 8  # exceptions named of one chain or group
OURS: Final = ("wf", "engine", "actors", "policies", "transport", "web")
THIRD_PARTY: Final = (
    "httpx", "httpcore", "h11", "h2", "hpack", "trio-websocket", "wsproto", "hypercorn", "hypercorn.error",
    "hypercorn.access", "quart", "quart.app", "quart.serving", "asyncio",
)  # fmt: skip

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(
    level: Literal["debug", "info", "warning", "error"], format: Literal["text", "json"], stream: TextIO | None = None
) -> LineHandler:
    """Send all logging to `stream` (stderr) from now on. Libraries speak from WARNING upwards, whatever our `level`.

    Returns the handler, whose `dropped` counts lost lines. Calling it again replaces the handler it made before."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, LineHandler)]:
        root.removeHandler(old)
        old.close()
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(TextLines(frames=level == "debug") if format == "text" else JsonLines(frames=level == "debug"))
    root.addHandler(handler)
    root.setLevel(max(number, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(number)
    for name in THIRD_PARTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    return handler


class LineHandler(logging.Handler):
    """Formats where the call is made and writes in its own thread. Never raises into the caller, never waits."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._writer = threading.Thread(target=self._write_all, name="wf-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except Exception:  # a full queue, or arguments that do not fit their message: a log line must not fail a caller
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, waiting at most a second for a stream that does not take it."""
        if self._writer.is_alive():
            try:
                self._lines.put(None, timeout=CLOSE_WAIT_S)
                self._writer.join(CLOSE_WAIT_S)
            except queue.Full:
                pass
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # the reader of a pipe has gone, or the stream was closed
                self.dropped += 1


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO actors.pool: message key=value`"""

    def __init__(self, *, frames: bool) -> None:
        super().__init__()
        self._frames = frames

    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{_time(record)} {record.levelname} {escape(record.name)}: {escape(record.getMessage())}"]
        parts += [f"{escape(key)}={escape(str(value))}" for key, value in _extras(record).items()]
        if (error := _error(record)) is not None:
            parts.append(f"error={escape(describe(error, frames=self._frames))}")
        return cut(" ".join(parts))


class JsonLines(logging.Formatter):
    """`{"time","level","logger","message", extra fields, "error"}`, ASCII only. Each value has the length limit."""

    def __init__(self, *, frames: bool) -> None:
        super().__init__()
        self._frames = frames

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            key: value if _is_json_scalar(value) else cut(str(value)) for key, value in _extras(record).items()
        }
        fields |= {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        fields["message"] = cut(record.getMessage())
        if (error := _error(record)) is not None:
            fields["error"] = cut(describe(error, frames=self._frames))
        return json.dumps(fields, ensure_ascii=True, allow_nan=False)


def escape(text: str) -> str:
    """`text` on one line: control, invisible, direction-changing and undecodable characters as `\\n`, `\\x1b`,
    `\\u202e`; the backslash itself doubled, so that the original can be told."""
    head = text[: LINE_MAX_CHARS + 1]  # one more than is shown, so that `cut` sees that there was more
    if head.isprintable() and "\\" not in head:
        return head
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in head)


def cut(text: str) -> str:
    """`text` with at most 2,000 characters."""
    return text if len(text) <= LINE_MAX_CHARS else text[: LINE_MAX_CHARS - 1] + "…"


def describe(error: BaseException, *, frames: bool = False) -> str:
    """What went wrong and where, without foreign messages: `RestartsExhausted: mapper crashed 4 times (supervise.py:47)
    <- ValueError (mapper.py:88)`. Groups are named by their members; `frames` adds the whole stack of each."""
    named: list[str] = []
    waiting: list[BaseException] = [error]
    while waiting and len(named) < CAUSES_MAX:
        current = waiting.pop(0)
        if isinstance(current, BaseExceptionGroup):
            waiting[:0] = current.exceptions[:CAUSES_MAX]
        else:
            named.append(_one(current, frames))
        if (cause := current.__cause__ or (None if current.__suppress_context__ else current.__context__)) is not None:
            waiting.append(cause)
    return " <- ".join(named) + (" <- …" if waiting else "")


def _one(error: BaseException, frames: bool) -> str:
    message = ""
    if isinstance(error, EngineError):
        message = f": {error.message}"
    elif isinstance(error, OSError) and error.strerror:
        message = f": {error.strerror}"
    stack = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    shown = [f"{file.rsplit('/', 1)[-1]}:{line}" for file, line in (stack if frames else stack[-1:])]
    return f"{type(error).__name__}{message}" + (f" ({' > '.join(shown)})" if shown else "")


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """What the caller gave as `extra={...}`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _is_json_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None
