"""The proof that local answers need no network: tests of a real engine, run again where there is none but loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 240
SESSION = "tests/system/test_session.py::test_the_whole_way_from_a_prompt_to_sigterm"
# A new network namespace has nothing but a loopback that is down; this brings it up, and then becomes the tests.
INSIDE = """
import fcntl, os, socket, struct, sys
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    asked = struct.pack("16sH14x", b"lo", 0)
    flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, asked))[1]
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def interfaces(unshare: list[str]) -> set[str]:
    done = subprocess.run([*unshare, "cat", "/proc/net/dev"], capture_output=True, text=True)
    return {line.partition(":")[0].strip() for line in done.stdout.splitlines()[2:]} if done.returncode == 0 else set()


def unshared() -> list[str]:
    """How to run something where there is nothing but loopback. Skips the test, loudly, where that is not allowed."""
    tool = shutil.which("unshare")
    ways = [] if tool is None else [[tool, "--net"], [tool, "--user", "--map-root-user", "--net"]]
    for way in ways:
        if interfaces(way) == {"lo"}:
            return way
    reason = "unshare is missing" if tool is None else "unshare --net is not allowed here"
    pytest.skip(f"NOT PROVED HERE that the engine works without any network: {reason}")


def run_inside(*targets: str) -> subprocess.CompletedProcess[str]:
    pytest_words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *targets]
    command = [*unshared(), sys.executable, "-c", INSIDE, *pytest_words]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.parametrize("target", [SESSION, "tests/system/test_broker.py"])
def test_a_real_engine_where_there_is_no_network(target):
    done = run_inside(target)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-3000:]
