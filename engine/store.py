"""One SQLite file for what must outlive the engine: registered agents, usage, the log of routes.

All work on it happens in one worker thread at a time, each piece of it one transaction: done and on the disk (WAL,
`synchronous=FULL`), or not done at all, also when the process is killed in between. Only one engine uses the file: the
lock of the state folder sees to that.

A file that is damaged, also while it is in use, is put aside as `NAME.broken` (one is kept) and a new one is begun.
One that a later version of the engine wrote is left alone. Where no file can be used, everything is kept in memory, and
`problem` says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

FILE_NAME: Final = "usage.db"
SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 5.0  # for a program of the user's that looks into the file
CACHE_KIB: Final = 2048
WAL_PAGES_MAX: Final = 500  # then it is written back into the file
_COMPANIONS: Final = ("", "-wal", "-shm")
_PRIVATE_FILE: Final = 0o600

_TABLES: Final = (
    """CREATE TABLE agents (
        agent_id TEXT PRIMARY KEY, card BLOB NOT NULL, status TEXT NOT NULL,
        registered_s REAL NOT NULL, seen_s REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE usage (
        day TEXT, agent TEXT, model TEXT, runtime TEXT, local INTEGER, synthetic INTEGER,
        requests INTEGER NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
        uncounted INTEGER NOT NULL, cost_nusd INTEGER NOT NULL, unpriced INTEGER NOT NULL,
        PRIMARY KEY (day, agent, model, runtime, local, synthetic)
    ) WITHOUT ROWID""",
    """CREATE TABLE tally (
        day TEXT, kind TEXT, key TEXT, n INTEGER NOT NULL, PRIMARY KEY (day, kind, key)
    ) WITHOUT ROWID""",
    "CREATE TABLE facts (hash TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE routes (
        id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, request BLOB NOT NULL, facts TEXT NOT NULL,
        chosen BLOB, fallback TEXT
    )""",
)

T = TypeVar("T")
logger = logging.getLogger("wf.store")


class _FromTheFuture(Exception):
    """A later engine wrote this file."""


@attrs.define(eq=False)
class Database:
    """`path` null: in memory. Opened by the first call; `problem` says why a file is not used, null when it is, or when
    none was wanted."""

    path: Path | None = None
    problem: str | None = None
    _connection: sqlite3.Connection | None = None
    _one_thread: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    @property
    def persistent(self) -> bool:
        """Whether what is written outlives the process."""
        return self.path is not None and self.problem is None

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the worker thread, as one transaction. Raises OSError when the file fails, and what `work`
        raises; nothing of it is kept then. Cancelled here: it is finished first."""
        return await trio.to_thread.run_sync(self.call_blocking, work, limiter=self._one_thread)

    def call_blocking(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same, in this thread."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._opened()
                return _in_transaction(self._connection, work)
            except sqlite3.Error as error:
                if type(error) is sqlite3.DatabaseError:  # the content: opened anew, it is put aside
                    self._let_go()
                raise OSError(f"{self.path or 'the store in memory'}: {error}") from error

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self.close()

    async def close(self) -> None:
        """What comes later opens it again. Safe to call twice."""
        await trio.to_thread.run_sync(self._close, limiter=self._one_thread)

    def _close(self) -> None:
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        if self.path is None:
            return _connect(None)
        try:
            return self._open_file(self.path)
        except _FromTheFuture:
            self.problem = f"{self.path} was written by a later version of the engine"
        except (OSError, sqlite3.Error) as error:
            self.problem = f"{self.path} cannot be used: {error}"
        logger.warning("%s; usage and registered agents are kept in memory only", self.problem)
        return _connect(None)

    def _open_file(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.OperationalError:  # the disk, a lock, a permission: not the content's fault
            raise
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s); it is put aside as %s.broken", path, error, path.name)
            for end in _COMPANIONS:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{path}{end}", f"{path}.broken{end}")
            return _connect(path)


def _connect(path: Path | None) -> sqlite3.Connection:
    """An open database with the tables in it. Raises sqlite3.DatabaseError for a damaged file."""
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE_FILE))
    connection = sqlite3.connect(
        ":memory:" if path is None else path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in (
            "journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF", f"cache_size=-{CACHE_KIB}",
            f"wal_autocheckpoint={WAL_PAGES_MAX}",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        if (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(verdict)
        _in_transaction(connection, _migrate)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise _FromTheFuture
    if version == 0:
        for table in _TABLES:
            connection.execute(table)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise
    return result
