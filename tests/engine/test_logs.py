"""Log lines: one line per record whatever is in it, bounded, without foreign messages, and never in anybody's way."""

from __future__ import annotations

import io
import json
import logging
import os
import threading

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import logs as engine_logs
from engine.domain.errors import RestartsExhausted
from engine.logs import LINE_MAX_CHARS, QUEUE_LINES, THIRD_PARTY, LineHandler, configure, describe, escape
from tests.fakes.processes import WATCHDOG_S

LOGGER = logging.getLogger("actors.pool")


@attrs.define
class Logs:
    stream: io.StringIO
    handler: LineHandler

    def lines(self) -> list[str]:
        self.handler.close()
        return self.stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Closing waits for the thread that writes, however late it comes; an engine that ends does not."""
    monkeypatch.setattr(engine_logs, "CLOSE_WAIT_S", WATCHDOG_S)


@pytest.fixture
def logs():
    """`logs(level, format)` configures; afterwards logging is as it was."""
    names = [None, "wf", "engine", "actors", "policies", "transport", "web", *THIRD_PARTY]
    before = {name: logging.getLogger(name).level for name in names}

    def start(level: str = "info", format: str = "text") -> Logs:
        stream = io.StringIO()
        return Logs(stream, configure(level, format, stream))

    yield start
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, LineHandler)]:
        root.removeHandler(handler)
        handler.close()
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_text_line(logs):
    log = logs()
    LOGGER.info("loaded %s", "tiny", extra={"load_ms": 12.5})
    (line,) = log.lines()
    time, rest = line.split(" ", 1)
    assert rest == "INFO actors.pool: loaded tiny load_ms=12.5"
    assert time[10] == "T"
    assert time.endswith("Z")


def test_json_line(logs):
    log = logs(format="json")
    LOGGER.warning("slow\n%s", "é\x1b", extra={"model": "a\nb", "load_ms": 1.5, "ratio": float("nan"), "port": None})
    record = json.loads(log.lines()[0])
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "warning", "logger": "actors.pool", "message": "slow\né\x1b",
        "model": "a\nb", "load_ms": 1.5, "ratio": "nan", "port": None,
    }  # fmt: skip


def test_level_is_kept_for_ours_and_libraries_stay_at_warning(logs):
    log = logs("debug")
    LOGGER.debug("ours")
    for name in (*THIRD_PARTY, "some.other.library"):
        logging.getLogger(name).info("theirs")
        logging.getLogger(name).warning("warned %s", name)
    lines = log.lines()
    assert sum("ours" in line for line in lines) == 1
    assert not any("theirs" in line for line in lines)
    assert sum("warned" in line for line in lines) == len(THIRD_PARTY) + 1


def test_libraries_follow_an_error_level(logs):
    log = logs("error")
    logging.getLogger("httpx").warning("warned")
    LOGGER.warning("warned")
    assert log.lines() == []


@given(st.text())
def test_escaped_text_is_one_printable_line(text):
    escaped = escape(text)
    assert escaped.isprintable()
    assert len(escaped.splitlines()) <= 1


@given(st.text(max_size=LINE_MAX_CHARS))
def test_escaped_text_can_be_told_apart(text):
    plain = "".join(c for c in text if ord(c) < 256)
    assert escape(plain).encode("latin-1").decode("unicode_escape") == plain


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_hostile_value_stays_inside_its_line_and_its_length(logs, format):
    log = logs(format=format)
    hostile = "\r\n2026-01-01T00:00:00Z INFO fake: line\x1b[2J\u2028\u202e\x85\ud800"
    LOGGER.info("%s", hostile * 500, extra={"where": hostile})
    (line,) = log.lines()
    assert line.isprintable()
    longest = [line] if format == "text" else [str(value) for value in json.loads(line).values()]
    assert max(map(len, longest)) == LINE_MAX_CHARS


def test_foreign_messages_are_not_logged(logs):
    log = logs("debug")
    try:
        try:
            raise ValueError("the secret prompt")
        except ValueError as error:
            raise RestartsExhausted("mapper crashed 4 times") from error
    except RestartsExhausted:
        LOGGER.exception("stopping")
    (line,) = log.lines()
    assert "secret" not in line
    assert "RestartsExhausted: mapper crashed 4 times (test_logs.py:" in line
    assert "<- ValueError (test_logs.py:" in line


def test_describe_names_the_members_of_groups_and_is_bounded():
    many = ExceptionGroup("secret", [ExceptionGroup("secret", [KeyError("secret"), OSError(28, "No space left")])] * 9)
    told = describe(many)
    assert told.startswith("KeyError <- OSError: No space left")
    assert told.endswith("<- …")
    assert "secret" not in told


def test_bad_arguments_are_counted_not_raised():
    stream = io.StringIO()
    handler = LineHandler(stream)
    handler.emit(logging.LogRecord("wf", logging.INFO, "", 0, "%d apples", ("many",), None))
    handler.close()
    assert stream.getvalue() == ""
    assert handler.dropped == 1


def test_a_stream_that_nobody_reads_drops_lines_and_holds_nobody_up():
    class Stuck(io.StringIO):
        """A pipe without a reader: the first write waits until it is let go."""

        entered, free = threading.Event(), threading.Event()

        def write(self, text: str) -> int:
            self.entered.set()
            self.free.wait()
            return super().write(text)

    stream = Stuck()
    handler = LineHandler(stream)
    record = logging.LogRecord("wf", logging.INFO, "", 0, "line", None, None)
    handler.emit(record)
    stream.entered.wait()  # one line is being written, the queue is empty
    for _ in range(QUEUE_LINES + 5):
        handler.emit(record)
    assert handler.dropped == 5
    stream.free.set()
    handler.close()
    assert stream.getvalue().count("line\n") == QUEUE_LINES + 1


def test_a_closed_pipe_is_counted_not_raised():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", buffering=1) as stream:
        handler = LineHandler(stream)
        handler.emit(logging.LogRecord("wf", logging.INFO, "", 0, "line", None, None))
        handler.close()
        assert handler.dropped == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)  # let the buffered rest go somewhere


def test_configuring_again_replaces_the_handler(logs):
    first, second = logs(), logs()
    LOGGER.info("once")
    assert first.lines() == []
    assert len(second.lines()) == 1
