"""The state folder: who holds it, the token of this start, and where the engine listens.

    lock         flock held while the engine lives; its text is the holder's pid
    token        64 hex digits, new at every start, gone with it
    engine.json  {"pid", "http", "ws", "services"}, written once everything listens

Everything here is plain blocking code on small files (milliseconds, as long as the disk answers): inside the event loop
call it through `trio.to_thread.run_sync`. A cancelled caller changes nothing, the call is then finished first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
import msgspec

from engine.domain.errors import AddressInUse, ConfigError

LOCK, TOKEN, ENGINE = "lock", "token", "engine.json"
_READ_MAX_BYTES: Final = 65_536
# Somebody who asks whether an engine runs holds the lock for an instant; a start must not fail of that.
_LOCK_TRIES: Final = 3
_LOCK_PAUSE_S: Final = 0.02
_PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700


@attrs.frozen
class EngineAddress:
    """Where a running engine is: process id and URLs; `services` maps a service's name to its URL."""

    pid: int
    http: str
    ws: str
    services: dict[str, str] = attrs.field(factory=dict)


def state_path(environ: Mapping[str, str]) -> Path:
    """`$WF_DATA_DIR`, else `wf-engine` in the XDG state folder (~/.local/state)."""
    if named := environ.get("WF_DATA_DIR"):
        return Path(named).absolute()
    xdg = environ.get("XDG_STATE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else Path(environ.get("HOME") or Path.home(), ".local", "state")
    return base / "wf-engine"


def ram_total_bytes() -> int:
    """Main memory of this machine as the kernel reports it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@attrs.define(eq=False)
class StateFolder:
    """The state folder, held. Made by `open_state`; `close` lets it go. Not for two threads at once."""

    path: Path
    token: str = attrs.field(repr=False)
    _folder_fd: int
    _lock_fd: int
    _port_file: Path | None = None
    _closed: bool = False

    def publish(
        self, http: str, ws: str, services: Mapping[str, str] | None = None, port_file: Path | None = None
    ) -> EngineAddress:
        """Write engine.json, so that other programs of this user find the engine, and the same to `port_file`.
        Raises ConfigError."""
        address = EngineAddress(os.getpid(), http, ws, dict(services or {}))
        with _explained(self.path):
            _write_atomic(ENGINE, _encode(address), self._folder_fd)
        if port_file is not None:
            write_address(port_file, address)
            self._port_file = port_file
        return address

    def close(self) -> None:
        """Remove what this start wrote, as far as it is still ours, and let the folder go. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            with contextlib.suppress(OSError):  # a read-only disk: the lock goes with us, so nobody believes the files
                os.unlink(TOKEN, dir_fd=self._folder_fd)
            with contextlib.suppress(OSError):
                if _is_ours(_read_at(ENGINE, self._folder_fd)):
                    os.unlink(ENGINE, dir_fd=self._folder_fd)
            with contextlib.suppress(OSError):
                if self._port_file is not None and _is_ours(self._port_file.read_bytes()):
                    self._port_file.unlink()
        finally:
            os.close(self._lock_fd)
            os.close(self._folder_fd)


def open_state(path: Path) -> StateFolder:
    """Create the folder if need be, make it private, take its lock and write a new token.

    Raises AddressInUse when another engine holds it (the message names it), ConfigError when the folder cannot be made
    private, belongs to another user, or cannot be written.
    """
    with contextlib.ExitStack() as undo, _explained(path):
        folder_fd = _open_private(path)
        undo.callback(os.close, folder_fd)
        lock_fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE_FILE, dir_fd=folder_fd)
        undo.callback(os.close, lock_fd)
        if not _lock(lock_fd, fcntl.LOCK_EX, tries=_LOCK_TRIES):
            raise _in_use(path, folder_fd, lock_fd)
        os.ftruncate(lock_fd, 0)
        os.write(lock_fd, b"%d\n" % os.getpid())
        for name in os.listdir(folder_fd):  # left by an engine that was killed
            if name == ENGINE or name.startswith((f".{TOKEN}.", f".{ENGINE}.")):
                os.unlink(name, dir_fd=folder_fd)
        token = secrets.token_hex(32)
        _write_atomic(TOKEN, token.encode() + b"\n", folder_fd)
        undo.pop_all()
        return StateFolder(path, token, folder_fd, lock_fd)


def read_engine(path: Path) -> EngineAddress | None:
    """The engine that runs on this state folder, or None. A file left behind is not believed: its process must live and
    the lock must be held. Never raises for a missing, strange or unreadable folder."""
    try:
        folder_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        address = _decode(_read_at(ENGINE, folder_fd))
        if address is None or not _is_alive(address.pid):
            return None
        lock_fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            return None if _lock(lock_fd, fcntl.LOCK_SH, tries=1) else address
        finally:
            os.close(lock_fd)  # and with it the lock, if we got it
    except OSError:
        return None
    finally:
        os.close(folder_fd)


def _is_ours(data: bytes) -> bool:
    address = _decode(data)
    return address is not None and address.pid == os.getpid()


def write_address(path: Path, address: EngineAddress) -> None:
    """Write `address` as JSON to `path` (the `--port-file`): whole or not at all. Raises ConfigError."""
    with _explained(path):
        folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_atomic(path.name, _encode(address), folder_fd)
        finally:
            os.close(folder_fd)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from error


def _open_private(path: Path) -> int:
    """A descriptor of the folder, once it is ours and closed to everybody else."""
    path.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    if path.lstat().st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} belongs to another user; set WF_DATA_DIR to a folder of your own")
    folder_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(folder_fd).st_uid != os.geteuid():  # also where a link leads
            raise ConfigError(f"{path} leads to a folder of another user; set WF_DATA_DIR to one of your own")
        if stat.S_IMODE(os.fstat(folder_fd).st_mode) & 0o077:
            with contextlib.suppress(OSError):
                os.fchmod(folder_fd, _PRIVATE_FOLDER)
        if stat.S_IMODE(os.fstat(folder_fd).st_mode) & 0o077:  # some file systems have no modes
            raise ConfigError(f"{path} is open to other users and cannot be closed to them (chmod 700 had no effect)")
    except BaseException:
        os.close(folder_fd)
        raise
    return folder_fd


def _lock(lock_fd: int, kind: int, tries: int) -> bool:
    for attempt in range(tries):
        if attempt:
            time.sleep(_LOCK_PAUSE_S)
        try:
            fcntl.flock(lock_fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False


def _in_use(path: Path, folder_fd: int, lock_fd: int) -> AddressInUse:
    address = _decode(_read_at(ENGINE, folder_fd))
    pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
    holder = f"process {pid}" if pid.isdigit() else "another process"
    at = f" ({address.http})" if address is not None and str(address.pid) == pid else ""
    return AddressInUse(f"{path} is in use by {holder}{at}; stop it, or set WF_DATA_DIR to another folder")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody else's process; whether it is the engine, the lock tells
    return True


def _encode(address: EngineAddress) -> bytes:
    return msgspec.json.encode(address) + b"\n"


def _decode(data: bytes) -> EngineAddress | None:
    try:
        address = msgspec.json.decode(data, type=EngineAddress)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return address if address.pid > 0 else None


def _read_at(name: str, folder_fd: int) -> bytes:
    """At most 64 KiB of a file in the folder; empty when there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, _READ_MAX_BYTES)
    finally:
        os.close(fd)


def _write_atomic(name: str, data: bytes, folder_fd: int) -> None:
    """Write a private file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    temporary = f".{name}.{secrets.token_hex(4)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE, dir_fd=folder_fd)
    try:
        with open(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        os.replace(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder_fd)
        raise
    os.fsync(folder_fd)
