"""Tests where there is no network but loopback: `python -m tests.system.offline PYTEST_ARGUMENTS` becomes pytest in a
network namespace of its own. Without arguments it is the whole suite, the page in its browser too, less what asks the
registry of npm, and that is `make test-offline`."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
INSIDE: Final = "--inside"  # this is the one in the namespace
PYTEST: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs")
# What wants the registry of npm, and what would only run some of this again.
LEFT_OUT: Final = (
    "--ignore=tests/web/test_types.py",
    "--ignore=tests/system/clients/test_node.py",
    "--ignore=tests/system/test_namespace.py",
)
_NET_DEV: Final = Path("/proc/net/dev")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def interfaces(net_dev: str) -> set[str]:
    """The names in what /proc/net/dev says."""
    return {line.partition(":")[0].strip() for line in net_dev.splitlines()[2:]}


def unshared() -> list[str]:
    """The words before a command that run it where there is nothing but loopback. Raises PermissionError where that is
    not allowed, and says why."""
    tool = shutil.which("unshare")
    if tool is None:
        raise PermissionError("unshare is missing")
    for way in ([tool, "--net"], [tool, "--user", "--map-root-user", "--net"]):
        done = subprocess.run([*way, "cat", str(_NET_DEV)], capture_output=True, text=True)
        if done.returncode == 0 and interfaces(done.stdout) == {"lo"}:
            return way
    raise PermissionError("unshare --net is not allowed here")


def command(*words: str) -> list[str]:
    """pytest with these words, inside. Raises as `unshared`."""
    return [*unshared(), sys.executable, "-m", "tests.system.offline", INSIDE, *PYTEST, *words]


def bring_loopback_up() -> None:
    """A new namespace has nothing but a loopback that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def main(words: list[str]) -> None:
    """Becomes pytest. Exits with words where it cannot be without a network."""
    if words[:1] == [INSIDE]:
        if interfaces(_NET_DEV.read_text()) != {"lo"}:
            sys.exit("there is a network here, so nothing would be proved")
        bring_loopback_up()
        os.execv(sys.executable, [sys.executable, *words[1:]])
    try:
        os.chdir(ROOT)
        asked = command(*(words or LEFT_OUT))
    except PermissionError as error:
        sys.exit(f"NOT PROVED HERE that the engine works without any network: {error}")
    os.execv(asked[0], asked)


if __name__ == "__main__":
    main(sys.argv[1:])
