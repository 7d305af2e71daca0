"""One model in memory: its process, the socket it listens on, and how it ended."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from engine.domain.errors import EngineError, ModelLoadFailed, ModelLoadTimeout, RuntimeFault, RuntimeUnavailable
from engine.domain.generation import Clock
from transport.runtimes.child import Child, ChildCommand, open_child
from transport.runtimes.llama_cpp import server
from transport.runtimes.llama_cpp.header import LAST, Pooling
from transport.runtimes.llama_cpp.source import GgufSource
from transport.runtimes.llama_cpp.start_watch import STUCK_S, StartWatch, activity_of
from transport.runtimes.openai import OpenAIRuntime
from transport.runtimes.upstream import Upstream, unix_socket

NAME: Final = "llama_cpp"
HOST: Final = "http://llama-cpp"  # only a name: the way there is a socket in the file system
STOP_S: Final = 1.0  # from SIGTERM to SIGKILL: it has nothing to save, and the engine ends within 5 s
START_S: Final = 600.0  # a large model from a slow disk
STARTS_MAX: Final = 2  # of a process that hangs before it answers
HEALTH_S: Final = 5.0
POLL_S: Final = 0.02
POLL_MAX_S: Final = 0.25
SOCKET_PATH_BYTES_MAX: Final = 107  # what the kernel takes, less the zero at the end
REASON_LINES: Final = 2
REASON_CHARS_MAX: Final = 600
_WRAPPED: Final = ("Traceback", "  ", "RuntimeError: Failed to init server")  # Python's words around llama.cpp's
_STAMP: Final = re.compile(r"^[0-9.]+ [A-Z] +")
_OWNER: Final = re.compile(r"([0-9a-f]{1,8})-[0-9a-f]{1,8}\.sock$")


@attrs.frozen
class ServerSettings:
    """`context_length` tokens for each of `parallel` answers at a time (further ones wait); `threads` 0 leaves the
    choice to llama.cpp. Memory for the context grows with the product of the first two. `device` is auto (llama.cpp's
    own choice), cpu or cuda (and nothing else)."""

    context_length: int = attrs.field(default=4096, validator=[attrs.validators.ge(128), attrs.validators.le(1 << 20)])
    parallel: int = attrs.field(default=2, validator=[attrs.validators.ge(1), attrs.validators.le(32)])
    threads: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.le(512)])
    device: str = attrs.field(default="auto", validator=attrs.validators.in_(server.DEVICES))


@attrs.define(eq=False)
class ModelProcess:
    """llama.cpp's server for one model, from its start to its end. `serve` owns the process; others wait for `ready`
    or `gone` and read the rest. `failure` is why it never became ready. A process that hangs while it starts is ended
    and started once more; `hung` counts those. `program` is what it runs, `stuck_s` the silence that is no work,
    `pooling` how it makes vectors, `answers` whether it gives text too."""

    source: GgufSource
    settings: ServerSettings
    context_length: int
    socket: Path
    clock: Clock
    program: str = server.__file__
    stuck_s: float = STUCK_S
    pooling: Pooling = LAST
    answers: bool = True
    hung: int = attrs.field(default=0, init=False)
    failure: EngineError | None = attrs.field(default=None, init=False)
    ready: trio.Event = attrs.field(factory=trio.Event, init=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False)
    api: OpenAIRuntime = attrs.field(init=False)
    _child: Child | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        name = f"{NAME} ({self.source.name})"
        self.api = OpenAIRuntime(self.clock, HOST, name=name, transport=unix_socket(str(self.socket)))

    async def serve(self) -> None:
        """Run the process until it ends or is stopped. A start that fails is `failure`; nothing is raised."""
        try:
            with self._scope:
                while not await self._served():
                    self.hung += 1
                    if self.hung == STARTS_MAX:
                        raise self._stuck()
        except EngineError as error:
            self.failure = error
        except OSError as error:
            self.failure = ModelLoadFailed(f"cannot make a socket in {self.socket.parent}: {error.strerror}")
        finally:
            self.gone.set()
            self.ready.set()
            with suppress(OSError):
                self.socket.unlink()  # not in a thread: this must also happen when cancelled

    async def _served(self) -> bool:
        """One process, to its end. False when it hung before it answered."""
        await trio.to_thread.run_sync(self._make_room)
        async with open_child(self._command(), name=self.api.name, stop_s=STOP_S) as self._child:
            if not await self._answers_in_time(self._child):
                return False
            self.ready.set()
            await self._child.wait()
        return True

    def stop(self) -> None:
        """Ask for its end; `gone` says when."""
        self._scope.cancel(reason="stopped")

    @property
    def running(self) -> bool:
        return self.ready.is_set() and not (self.stopped or self.gone.is_set()) and self.exit_status is None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def exit_status(self) -> int | None:
        return None if self._child is None else self._child.returncode

    @property
    def stopped(self) -> bool:
        """True when its end was asked for, by `stop`."""
        return self._scope.cancel_called

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.stopped:
            return "was stopped"
        return _ending(self.exit_status or 0)

    async def resident_bytes(self) -> int | None:
        """What the process holds in memory (RSS), with the pages of the model file that it has mapped. None when it has
        ended."""
        return None if self.pid is None else await trio.to_thread.run_sync(_resident_bytes, self.pid)

    def _make_room(self) -> None:
        """llama.cpp does not start where a socket of that name is left from before."""
        self.socket.unlink(missing_ok=True)

    def _command(self) -> ChildCommand:
        words = {
            "--model": str(self.source.path),
            "--alias": self.source.name,
            "--socket": str(self.socket),
            "--context": str(self.context_length),
            "--parallel": str(self.settings.parallel),
            "--threads": str(self.settings.threads),
            "--device": self.settings.device,
            "--pooling": self.pooling.name,
        }
        switches = ("--at-once",) if self.pooling.at_once else ()
        argv = (sys.executable, "-I", self.program, *(f"{name}={value}" for name, value in words.items()), *switches)
        return ChildCommand(argv, {"LANG": "C.UTF-8", "PATH": os.defpath}, self.socket.parent)

    async def _answers_in_time(self, child: Child) -> bool:
        """True once it answers, False when it hangs. Raises ModelLoadFailed when it ends."""
        upstream = Upstream(self.api.name, HOST, unix_socket(str(self.socket)))
        watch, wait_s = StartWatch(self.stuck_s), POLL_S
        with trio.move_on_after(START_S):
            while not await _answers(upstream):
                if child.returncode is not None:
                    await child.wait()
                    raise self._not_started(child)
                seen = await trio.to_thread.run_sync(activity_of, child.pid)
                if seen is not None and watch.hangs(seen, trio.current_time()):
                    return False
                await trio.sleep(wait_s)
                wait_s = min(1.25 * wait_s, POLL_MAX_S)
            return True
        raise ModelLoadTimeout(f"llama.cpp did not load {self.source.name} within {START_S:g} s", limit_s=START_S)

    def _stuck(self) -> ModelLoadTimeout:
        return ModelLoadTimeout(
            f"llama.cpp hangs while it loads {self.source.name}: {self.hung} processes did nothing for "
            f"{self.stuck_s:g} s each; ask again, or try another build of it",
            limit_s=self.stuck_s,
            model=self.source.name,
        )

    def _not_started(self, child: Child) -> ModelLoadFailed:
        """With llama.cpp's own words. They hold no prompt: it has had none yet."""
        model, folder = self.source.name, f"{self.source.path.parent}{os.sep}"
        lines = (line for line in child.last_lines() if not line.startswith(_WRAPPED))
        told = list(dict.fromkeys(_STAMP.sub("", line).replace(folder, "") for line in lines))
        said = "; ".join(told[:REASON_LINES])[:REASON_CHARS_MAX]  # the first ones say why, the others what follows
        return ModelLoadFailed(
            f"llama.cpp cannot load {model}: its process {_ending(child.returncode or 0)}: {said or 'without a word'}",
            model=model,
        )


async def _answers(upstream: Upstream) -> bool:
    try:
        return (await upstream.ask("GET", "/health", timeout_s=HEALTH_S)).status == 200
    except RuntimeFault:
        return False


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _resident_bytes(pid: int) -> int | None:
    try:
        pages = int(Path("/proc", str(pid), "statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


# ── sockets ──


def socket_path(folder: Path, number: int, pid: int) -> Path:
    """The `number`th socket of the process `pid`; several engines may use the same folder."""
    return folder / f"{pid:x}-{number:x}.sock"


def fits_socket(folder: Path) -> bool:
    """False when the paths of sockets in `folder` would be longer than the kernel takes."""
    return len(os.fsencode(folder / "ffffffff-ffffffff.sock")) <= SOCKET_PATH_BYTES_MAX


def socket_folder(wanted: Path) -> Path:
    """`wanted`, made and closed to everybody else, without the sockets of processes that are gone. Blocks. Raises
    RuntimeUnavailable when it belongs to another user or cannot be made."""
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        if wanted.stat().st_uid != os.geteuid():
            raise RuntimeUnavailable(f"{wanted} belongs to another user; give {NAME} a folder of its own")
        wanted.chmod(0o700)
        for path in wanted.glob("*.sock"):
            owner = _OWNER.match(path.name)
            if owner is not None and not Path("/proc", str(int(owner[1], 16))).exists():
                path.unlink(missing_ok=True)
    except OSError as error:
        raise RuntimeUnavailable(f"{NAME} cannot use {wanted} for its sockets: {error.strerror}") from error
    return wanted
