"""The Ollama daemon: started when it is installed and nothing answers, watched, started again, stopped with us.

Whatever answered before us is not ours: it is used as it is, and neither watched nor stopped. Ours listens on loopback,
with an environment made from a list: of what can be set, only what is about files, memory and devices is passed on; no
proxy, no key, and no switch that makes it write prompts to disk.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from engine.domain.errors import RuntimeFault, RuntimeUnavailable, UpstreamProtocolError
from policies.egress import stays_here
from policies.restart import RestartPolicy, delay_s
from transport.runtimes.child import STOP_S, Child, ChildCommand, open_child
from transport.runtimes.upstream import Answer, Upstream
from transport.wire import ollama as wire

logger = logging.getLogger("wf.daemon")

RESTARTS: Final = RestartPolicy(max_restarts=5, within_s=600.0, backoff_s=0.5, backoff_max_s=30.0)
PROBE_S: Final = 2.0  # for one answer
POLL_S: Final = 0.1  # between two questions while it starts
READY_S: Final = 20.0  # a start that takes longer is said to be slow
START_S: Final = 120.0  # and then ended: Ollama looks for graphics cards before it answers
REASON_LINES: Final = 10

_PASSED_ON: Final = re.compile(
    r"PATH|HOME|USER|LANG|LC_[A-Z]+|TMPDIR|XDG_[A-Z_]+"
    r"|OLLAMA_(?:MODELS|KEEP_ALIVE|CONTEXT_LENGTH|KV_CACHE_TYPE|FLASH_ATTENTION|GPU_OVERHEAD|SCHED_SPREAD|LLM_LIBRARY"
    r"|LOAD_TIMEOUT|MAX_QUEUE)"
    r"|(?:CUDA|HIP|ROCR|GGML)_(?:[A-Z]+_)?VISIBLE_DEVICES|CUDA_DEVICE_ORDER|HSA_OVERRIDE_GFX_VERSION(?:_[0-9]+)?"
)
_ELSEWHERE: Final = "free the address, or give another one with OLLAMA_HOST or ollama.url"


class DaemonState(StrEnum):
    OFF = "off"  # not running: not begun, stopped with us, or not ours to start
    ABSENT = "absent"  # nothing answers and no program was found
    FOREIGN = "foreign"  # something we did not start has the address
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # it ended by itself; waiting, or starting again
    FAILED = "failed"  # given up


FINAL: Final = (DaemonState.ABSENT, DaemonState.FOREIGN, DaemonState.FAILED)


_IN_WORDS: Final = {
    DaemonState.OFF: "is not run by us",
    DaemonState.ABSENT: "is not installed",
    DaemonState.FOREIGN: "was there before us and is left alone",
    DaemonState.STARTING: "is being started",
    DaemonState.READY: "is ready",
    DaemonState.RESTARTING: "is being started again",
    DaemonState.FAILED: "is given up",
}


@attrs.frozen
class DaemonStatus:
    """`reason` says what is wrong, with the daemon's last lines, and what to do. `pid` is that of our daemon while it
    runs, `restarts` how often it was started again."""

    state: DaemonState = DaemonState.OFF
    reason: str | None = None
    pid: int | None = None
    restarts: int = 0


@attrs.define(eq=False)
class OllamaDaemon:
    """Sees to it that an Ollama answers at `url`. `binary` is an absolute path, or None when none was found; `environ`
    is ours, of which a part is passed on; `max_loaded` models in memory, `num_parallel` answers per model, each >= 1.

    `run` returns by itself when there is nothing more to do: off, absent, foreign and failed are final. Cancelled, it
    stops the daemon: SIGTERM to its group, after `stop_s` SIGKILL.
    """

    url: str
    binary: Path | None
    environ: Mapping[str, str] = attrs.field(repr=False)
    max_loaded: int = attrs.field(validator=attrs.validators.ge(1))
    num_parallel: int = attrs.field(validator=attrs.validators.ge(1))
    restart: RestartPolicy = RESTARTS
    ready_s: float = READY_S
    start_s: float = START_S
    stop_s: float = STOP_S
    clock: Callable[[], float] = trio.current_time  # seconds, for the restart policy
    sleep: Callable[[float], Awaitable[object]] = trio.sleep  # between restarts
    status: DaemonStatus = attrs.field(factory=DaemonStatus, init=False)
    _upstream: Upstream = attrs.field(init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._upstream = Upstream("ollama", self.url)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reports started at once, so that nobody waits for the daemon; see `status` and `wait_until`."""
        task_status.started()
        reason = unfit(self.url)
        if reason is not None:
            self._tell(DaemonState.OFF, reason)
            return
        try:
            await self._keep_up()
        finally:
            if self.status.state not in FINAL:
                self._tell(DaemonState.OFF, "stopped")

    async def wait_until(self, *states: DaemonState) -> DaemonStatus:
        """The status, once it is one of `states`. One that is left again at once may be missed."""
        while self.status.state not in states:
            await self._changed.wait()
        return self.status

    async def _keep_up(self) -> None:
        """Start it, and again when it ended, as long as the policy allows and the address is free."""
        crashes: list[float] = []
        while await self._is_free():
            if self.binary is None:
                hint = "install it from https://ollama.com, or add its folder to PATH"
                self._tell(DaemonState.ABSENT, f"nothing answers at {self.url} and no `ollama` was found; {hint}")
                return
            if crashes:
                self.status = attrs.evolve(self.status, restarts=self.status.restarts + 1)
            ended = await self._live(self.binary)
            crashes = [*crashes[-self.restart.max_restarts :], self.clock()]
            pause_s = delay_s(self.restart, crashes, crashes[-1])
            if pause_s is None:
                hint = "start it yourself with `ollama serve` to see why"
                self._tell(DaemonState.FAILED, f"given up after {len(crashes)} starts: {ended}; {hint}")
                return
            self._tell(DaemonState.RESTARTING, f"started again after {pause_s:g} s; {ended}")
            await self.sleep(pause_s)

    async def _is_free(self) -> bool:
        """True when our daemon can have the address; else the status tells who has it, or what forbids it."""
        try:
            answer = await self._upstream.ask("GET", "/api/version", timeout_s=PROBE_S)
        except RuntimeUnavailable:
            error = bind_error(self.url)
            if error is None:
                return True
            if error.errno == errno.EADDRINUSE:
                self._tell(DaemonState.FOREIGN, f"{self.url} is taken by something that does not answer; {_ELSEWHERE}")
            else:
                self._tell(DaemonState.FAILED, f"no daemon can listen at {self.url}: {error.strerror}; {_ELSEWHERE}")
        except RuntimeFault as error:
            self._tell(DaemonState.FOREIGN, f"{error.message}; {_ELSEWHERE}")
        else:
            known = is_ollama(answer)
            reason = f"what answers at {self.url} is no Ollama (GET /api/version: {answer.status}); {_ELSEWHERE}"
            self._tell(DaemonState.FOREIGN, None if known else reason)
        return False

    async def _live(self, binary: Path) -> str:
        """One life of the daemon, and why it ended."""
        environ = daemon_environ(self.environ, self.url, self.max_loaded, self.num_parallel)
        # On SIGTERM it ends the runners it has started; SIGKILL would leave them behind.
        command = ChildCommand((str(binary), "serve"), environ, Path("/"), death_signal=signal.SIGTERM)
        try:
            async with open_child(command, name="ollama", stop_s=self.stop_s) as child:
                first = self.status.restarts == 0
                state = DaemonState.STARTING if first else DaemonState.RESTARTING
                self._tell(state, self.status.reason, child.pid)
                ready = await self._is_ready(child)
                if ready:
                    self._tell(DaemonState.READY, None, child.pid)
                if ready or child.returncode is not None:
                    return ending(await child.wait(), child.last_lines())
        except RuntimeUnavailable as error:
            return error.message
        return _with_lines(f"ollama did not answer within {self.start_s:g} s of its start", child.last_lines())

    async def _is_ready(self, child: Child) -> bool:
        """True once it answers, False when it has ended or had `start_s`."""
        slow_s = trio.current_time() + self.ready_s
        with trio.move_on_after(self.start_s):
            while child.returncode is None:
                if await self._answers():
                    return child.returncode is None
                if trio.current_time() >= slow_s:
                    reason = f"ollama has not answered for {self.ready_s:g} s since its start"
                    self._tell(self.status.state, _with_lines(reason, child.last_lines()), child.pid)
                with trio.move_on_after(POLL_S):
                    await child.wait()
        return False

    async def _answers(self) -> bool:
        try:
            return is_ollama(await self._upstream.ask("GET", "/api/version", timeout_s=PROBE_S))
        except RuntimeFault:
            return False

    def _tell(self, state: DaemonState, reason: str | None, pid: int | None = None) -> None:
        before, self.status = self.status, DaemonStatus(state, reason, pid, self.status.restarts)
        if (before.state, before.pid) != (state, pid):
            level = logging.WARNING if state in (DaemonState.RESTARTING, DaemonState.FAILED) else logging.INFO
            logger.log(level, "ollama %s%s", _IN_WORDS[state], f": {reason}" if reason else "")
        self._changed.set()
        self._changed = trio.Event()


def find_ollama(environ: Mapping[str, str]) -> Path | None:
    """The first `ollama` on PATH that can be run. Folders that are not absolute are left out: what they mean depends on
    where the engine was started. Looks at files, so call it in a thread."""
    for folder in environ.get("PATH", "").split(os.pathsep):
        program = Path(folder, "ollama")
        if os.path.isabs(folder) and program.is_file() and os.access(program, os.X_OK):
            return program
    return None


def unfit(url: str) -> str | None:
    """Why no daemon is started for this address, None when one can be."""
    parts = urlsplit(url)
    if not stays_here(parts.hostname or ""):
        return f"{url} is not on this machine, so no daemon is started for it"
    if parts.scheme != "http" or parts.path.strip("/") or parts.port == 0:
        return f"{url} is no plain address such as http://127.0.0.1:11434, so no daemon is started for it"
    return None


def daemon_environ(environ: Mapping[str, str], url: str, max_loaded: int, num_parallel: int) -> dict[str, str]:
    """What the daemon gets: what is listed of `environ`, and what we decide."""
    host, port = _address(url)
    return {name: value for name, value in environ.items() if _PASSED_ON.fullmatch(name)} | {
        "OLLAMA_HOST": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_MAX_LOADED_MODELS": str(max_loaded),
        "OLLAMA_NUM_PARALLEL": str(num_parallel),
    }


def bind_error(url: str) -> OSError | None:
    """What keeps a program of ours from listening there, None if nothing does at this moment."""
    host, port = _address(url)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are over do not count
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def is_ollama(answer: Answer) -> bool:
    """By what it says of its version."""
    try:
        return answer.status == 200 and bool(wire.decode(answer.body, wire.Version).version)
    except UpstreamProtocolError:
        return False


def ending(returncode: int, lines: Sequence[str]) -> str:
    """In words: how it ended, and the last it said."""
    how = f"ended with exit status {returncode}"
    if returncode < 0:
        how = f"was ended by signal {-returncode} ({signal.strsignal(-returncode)})"
    return _with_lines(f"ollama {how}", lines)


def _with_lines(text: str, lines: Sequence[str]) -> str:
    return f"{text}: {' | '.join(lines[-REASON_LINES:])}" if lines else text


def _address(url: str) -> tuple[str, int]:
    """Host and port to listen at. As a literal: names are looked up by whoever uses them, each in its own way."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return "127.0.0.1" if host == "localhost" else host, parts.port or 80
