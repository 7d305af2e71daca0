"""A real engine for the benchmarks, and the bare libraries it is compared with."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.process import EngineProcess, environment

# What `serve` loads that is not ours. Nothing that stands on them can be ready before they are.
LIBRARIES = (
    "trio, trio_websocket, wsproto, h11, hypercorn.trio.tcp_server, hypercorn.protocol.h11, quart_trio, attrs, cattrs,"
    " msgspec, yaml, numpy, regex"
)

CPUCLOCK_SCHED = 2  # Linux: the clock of a process is ~pid, shifted, with the kind of clock (man clock_getcpuclockid)


@contextmanager
def serving(*flags: str, **env: str) -> Iterator[EngineProcess]:
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineProcess.spawn(Path(folder), *flags, env=env).wait_ready()
        try:
            yield engine
        finally:
            engine.kill()


def ready_s() -> float:
    """From the start of the process until both listeners answer."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        engine = EngineProcess.spawn(Path(folder))
        try:
            while not (Path(folder) / "ports.json").exists():
                assert engine.process.poll() is None, engine.stderr()
                time.sleep(0.001)
            return time.perf_counter() - began
        finally:
            engine.kill()


def import_s() -> float:
    """A Python that imports the same libraries and ends."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {LIBRARIES}"], env=environment(Path(folder)), check=True)
        return time.perf_counter() - began


def import_rss_bytes() -> int:
    """Memory of a Python that has imported the same libraries."""
    code = f"import {LIBRARIES}\nprint(open('/proc/self/statm').read().split()[1])"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(Path(folder)), check=True, capture_output=True
        )
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(engine: EngineProcess) -> float:
    """Processor time the engine has used, all threads, also those that ended."""
    return cpu_of(engine.process.pid)


def cpu_of(pid: int) -> float:
    """Processor seconds of another process, to the nanosecond: /proc counts in hundredths of a second."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def rss_bytes(engine: EngineProcess) -> int:
    return int(Path(f"/proc/{engine.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
