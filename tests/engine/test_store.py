"""The database: transactions, damage, and a process killed while it writes."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine.store import SCHEMA_VERSION, Database

WRITER = """
import sys
from pathlib import Path
from engine.domain.usage import PriceTable, UsageRecord
from engine.store import Database
from engine.usage_store import SqliteUsage

database = Database(Path(sys.argv[1]))
usage = SqliteUsage(database, PriceTable("2026-11-01", {}))
record = UsageRecord("2026-11-20", "x", "a", "ollama", True, False, 7, 11, 5.0, 9.0, "finished")
number = 0
while True:
    database.call_blocking(lambda connection: usage.add_blocking(connection, [record] * 3, []))
    number += 1
    sys.stdout.write(f"{number}\\n")  # committed
    sys.stdout.flush()
"""


def rows(connection: sqlite3.Connection) -> list[tuple]:
    return connection.execute("SELECT hash, body FROM facts ORDER BY hash").fetchall()


def adding(name: str, error: Exception | None = None):
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO facts VALUES (?, ?)", (name, b"{}"))
        if error is not None:
            raise error

    return work


async def test_what_was_written_is_there_for_the_next_one(tmp_path):
    path = tmp_path / "usage.db"
    first = Database(path)
    await first.call(adding("a"))
    await first.close()
    await first.close()
    assert await Database(path).call(rows) == [("a", b"{}")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.persistent


async def test_a_piece_of_work_is_done_or_not_at_all(tmp_path):
    database = Database(tmp_path / "usage.db")
    with pytest.raises(ZeroDivisionError):
        await database.call(adding("a", ZeroDivisionError()))
    await database.call(adding("b"))
    with pytest.raises(OSError, match=r"usage\.db.*UNIQUE"):
        await database.call(adding("b"))
    assert await database.call(rows) == [("b", b"{}")]


async def test_one_thread_at_a_time_and_a_cancelled_caller_is_finished_first(tmp_path):
    database = Database(tmp_path / "usage.db")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(database.call, adding(f"{number:02}"))
    with trio.move_on_after(0):
        await database.call(adding("cancelled before it began"))
    assert [name for name, _ in await database.call(rows)] == [f"{number:02}" for number in range(20)]


@pytest.mark.parametrize(
    "content", [b"this is no database at all, but long enough to be one" * 100, b"SQLite format 3\0"]
)
async def test_a_damaged_file_is_put_aside_and_a_new_one_begun(tmp_path, content, caplog):
    path = tmp_path / "usage.db"
    path.write_bytes(content)
    database = Database(path)
    await database.call(adding("a"))
    assert database.problem is None
    assert (tmp_path / "usage.db.broken").read_bytes() == content
    assert "damaged" in caplog.text


async def test_pages_that_were_overwritten_are_noticed(tmp_path):
    path = tmp_path / "usage.db"
    database = Database(path)
    for number in range(500):
        await database.call(adding(f"{number:0100}"))
    await database.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    assert await Database(path).call(rows) == []
    assert (tmp_path / "usage.db.broken").exists()


async def test_a_file_that_is_damaged_while_it_is_used_is_given_up_for_a_new_one(tmp_path, caplog):
    path = tmp_path / "usage.db"
    async with Database(path) as database:
        await database.call(adding("a"))
        for end in ("", "-wal", "-shm"):
            part = tmp_path / f"usage.db{end}"
            part.write_bytes(b"\xff" * part.stat().st_size)
        with pytest.raises(OSError, match="not a database"):
            await database.call(adding("b"))
        await database.call(adding("c"))
        assert await database.call(rows) == [("c", b"{}")]
        assert database.persistent
    assert (tmp_path / "usage.db.broken").exists()
    assert "put aside" in caplog.text


async def test_a_mistake_in_a_piece_of_work_costs_no_data(tmp_path):
    path = tmp_path / "usage.db"
    async with Database(path) as database:
        await database.call(adding("a"))
        with pytest.raises(OSError, match="UNIQUE"):
            await database.call(adding("a"))
        assert await database.call(rows) == [("a", b"{}")]
    assert not (tmp_path / "usage.db.broken").exists()


async def test_a_file_of_a_later_version_is_left_alone(tmp_path, caplog):
    path = tmp_path / "usage.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE later (x)")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    database = Database(path)
    await database.call(adding("a"))
    assert await database.call(rows) == [("a", b"{}")]
    assert not database.persistent
    assert "later version" in (database.problem or "")
    assert "in memory" in caplog.text
    await database.close()
    reopened = sqlite3.connect(path)
    assert reopened.execute("SELECT name FROM sqlite_master").fetchall() == [("later",)]
    reopened.close()
    assert len(path.read_bytes()) == len(before)


@pytest.mark.parametrize("where", ["missing/usage.db", "folder"])
async def test_where_no_file_can_be_it_is_kept_in_memory(tmp_path, where, caplog):
    (tmp_path / "folder").mkdir()
    database = Database(tmp_path / where)
    await database.call(adding("a"))
    assert await database.call(rows) == [("a", b"{}")]
    assert not database.persistent
    assert database.problem


async def test_without_a_path_nothing_is_wrong_and_nothing_is_kept():
    database = Database()
    await database.call(adding("a"))
    assert (database.persistent, database.problem) == (False, None)


def write_until_killed(path: Path, batches: int) -> int:
    """How many batches a writer said it had committed, when it was killed after at least `batches`."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert writer.stdout is not None
    told = 0
    while told < batches:
        told = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().split()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return int(rest[-1]) if rest else told


@pytest.mark.parametrize("batches", [1, 40])
async def test_a_writer_killed_in_the_middle_loses_nothing_it_committed(tmp_path, batches):
    path = tmp_path / "usage.db"
    told = write_until_killed(path, batches)

    def sums(connection: sqlite3.Connection) -> tuple[int, ...]:
        usage = connection.execute("SELECT requests, tokens_in, tokens_out FROM usage").fetchone()
        ended = connection.execute("SELECT n FROM tally WHERE kind = 'end'").fetchone()
        return (*usage, *ended)

    database = Database(path)
    requests, tokens_in, tokens_out, ended = await database.call(sums)
    assert database.problem is None
    assert requests in (3 * told, 3 * (told + 1))  # the one more was committed and not yet told
    assert (tokens_in, tokens_out, ended) == (7 * requests, 11 * requests, requests)
