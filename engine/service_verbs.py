"""`wf services up|status|down`: an engine with its local services in the background, and how they are.

`up` starts `wf serve --services` detached, with its output in `services.log` of the state folder, and returns once
every service answers. `down` stops what `up` has started and nothing else. Blocking: for commands that do one thing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import trio

from engine.client import NO_TLS
from engine.domain.errors import AddressInUse, ConfigError, EngineError, RuntimeUnavailable
from engine.service_ports import ServicePort, service_ports
from engine.settings import Settings
from engine.state import EngineAddress, read_engine
from transport.listen import open_listener

LOG, PID = "services.log", "services.pid"  # in the state folder
READY_S: Final = 60.0  # for an engine to start and its services to answer: a second or two, on a busy machine many
STOP_S: Final = 10.0  # an engine takes 5 s at most
POLL_S: Final = 0.05
HEALTH_S: Final = 5.0  # /health itself waits up to 3 s for runtimes to be asked
TAIL_BYTES: Final = 4_096


class _Health(msgspec.Struct):
    """What matters here of a service's /health."""

    status: str = "unhealthy"
    model: str | None = None
    fallback_reason: str | None = None
    uptime_seconds: int | None = None
    problem: str | None = None


_health_decoder: Final = msgspec.json.Decoder(_Health)


def status(settings: Settings, state: Path) -> dict[str, Any]:
    """`{engine, log, services: [{name, port, url, status, model, fallback_reason, uptime_seconds, problem}]}`; `status`
    is healthy, degraded, unhealthy, port_taken or down. Those of the engine that this configuration does not have stand
    at the end."""
    engine, expected, log = read_engine(state), service_ports(settings), state / LOG
    rows = [_row(one, settings, engine) for one in expected]
    known = {one.name for one in expected}
    others = [name for name in ({} if engine is None else engine.services) if name not in known]
    rows += [_row(ServicePort(name, 0, ""), settings, engine) for name in others]
    return {
        "engine": None if engine is None else {"pid": engine.pid, "http": engine.http},
        "log": str(log) if log.exists() and engine is not None and engine.pid == _started(state) else None,
        "services": rows,
    }


def up(settings: Settings, state: Path, config: Path | None) -> dict[str, Any]:
    """As `status`, once all answer. With services up already: just that.

    Raises AddressInUse when an engine without services runs or no port is free, RuntimeUnavailable when the engine does
    not start."""
    running = read_engine(state)
    if running is not None:
        if running.services:
            return status(settings, state)
        raise AddressInUse(
            f"an engine without services runs here (process {running.pid}); stop it and come back, "
            "or start it as `wf serve --services`"
        )
    _refuse_when_all_taken(settings)
    process = _spawn(state, config)
    deadline = time.monotonic() + READY_S

    def is_there() -> bool:
        if process.poll() is not None:
            raise RuntimeUnavailable(f"the engine did not start: {_last_line(state)} ({state / LOG})")
        found = read_engine(state)
        return found is not None and found.pid == process.pid

    if not _until(is_there, deadline):
        process.terminate()
        raise RuntimeUnavailable(f"the engine did not start within {READY_S:g} s; see {state / LOG}")
    return status(settings, state)


def down(state: Path) -> dict[str, Any]:
    """`{stopped, pid}`; `stopped` false when there was nothing to stop.

    Raises AddressInUse for an engine that `up` did not start, RuntimeUnavailable when it does not stop."""
    running = read_engine(state)
    if running is None:
        with suppress(FileNotFoundError):
            (state / PID).unlink()
        return {"stopped": False, "pid": None}
    if running.pid != _started(state):
        raise AddressInUse(
            f"the engine here (process {running.pid}) was not started by `wf services up`; stop it there"
        )
    os.kill(running.pid, signal.SIGTERM)
    if not _until(lambda: read_engine(state) is None, time.monotonic() + STOP_S):
        raise RuntimeUnavailable(f"process {running.pid} did not stop within {STOP_S:g} s")
    (state / PID).unlink()
    return {"stopped": True, "pid": running.pid}


def lines(body: dict[str, Any]) -> list[str]:
    """What a person sees of `status` and `up`."""
    from engine.console import table

    engine = body["engine"]
    rows = [
        (
            row["name"],
            row["status"],
            row["url"] or (f"port {row['port']}" if row["port"] else "any free port"),
            row["model"] or "",
            _remark(row),
        )
        for row in body["services"]
    ]
    head = "no engine is running here" if engine is None else f"engine {engine['http']} · process {engine['pid']}"
    log = [] if body["log"] is None else [f"log {body['log']}"]
    return [head, *log, "", *table(("SERVICE", "STATUS", "URL", "MODEL", "REMARK"), rows)]


def down_lines(body: dict[str, Any]) -> list[str]:
    return [f"stopped process {body['pid']}" if body["stopped"] else "no engine is running here"]


def _remark(row: dict[str, Any]) -> str:
    return row["problem"] or row["fallback_reason"] or ""


def _row(expected: ServicePort, settings: Settings, engine: EngineAddress | None) -> dict[str, Any]:
    url = None if engine is None else engine.services.get(expected.name)
    row: dict[str, Any] = {"name": expected.name, "port": expected.port, "url": url, "status": "down", "model": None}
    row |= {"fallback_reason": None, "uptime_seconds": None, "problem": None}
    if url is not None:
        row["port"] = httpx.URL(url).port
        return row | _asked(url, settings)
    taken = _port_problem(settings.http.host, expected.port)
    if taken is not None:
        return row | {"status": "port_taken", "problem": f"{taken}; free the port, or set {expected.setting}"}
    if engine is None:
        return row | {"problem": "`wf services up` starts it"}
    return row | {"problem": "the engine was started without it; `wf serve --services` starts all"}


def _asked(url: str, settings: Settings) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {settings.api_keys[0].reveal()}"} if settings.api_keys else {}
    try:
        answer = httpx.get(f"{url}/health", headers=headers, timeout=HEALTH_S, trust_env=False, verify=NO_TLS)
        health = _health_decoder.decode(answer.content)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        return {"status": "unhealthy", "problem": f"/health does not answer ({type(error).__name__})"}
    if answer.status_code != 200:
        return {"status": "unhealthy", "problem": f"/health answers {answer.status_code}"}
    return msgspec.structs.asdict(health)


def _refuse_when_all_taken(settings: Settings) -> None:
    """Some taken ports are told about; with all of them taken there is nothing to start."""
    expected = service_ports(settings)
    if not expected:
        raise ConfigError("no service is switched on: see services.table")
    problems = [_port_problem(settings.http.host, one.port) for one in expected]
    if None not in problems:
        names, first = ", ".join(one.setting for one in expected), problems[0]
        raise AddressInUse(f"no service's port is free ({first}); free them, or set {names}")


def _port_problem(host: str, port: int) -> str | None:
    async def tried() -> str | None:
        try:
            listener = await open_listener(host, port)
        except EngineError as error:
            return error.message
        await listener.aclose()
        return None

    return None if port == 0 else trio.run(tried)


def _spawn(state: Path, config: Path | None) -> subprocess.Popen[bytes]:
    """The engine, detached: it outlives this command and its terminal."""
    command = [sys.executable, "-m", "engine", "serve", "--services"]
    command += [] if config is None else ["--config", str(config)]
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(state / LOG, flags, 0o600), "wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        with open(os.open(state / PID, flags, 0o600), "w") as pid:
            pid.write(f"{process.pid}\n")
    except OSError as error:
        raise ConfigError(f"{state} cannot be used: {error.strerror}") from error
    return process


def _started(state: Path) -> int | None:
    """The process that `up` has started last."""
    try:
        text = (state / PID).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() and len(text) < 20 else None


def _last_line(state: Path) -> str:
    with suppress(OSError), open(state / LOG, "rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - TAIL_BYTES))
        said = log.read().decode("utf-8", "replace").strip().splitlines()
        if said:
            return said[-1]
    return "it said nothing"


def _until(met: Callable[[], bool], deadline: float) -> bool:
    while not met():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
