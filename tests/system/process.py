"""A real engine as a child process, and what the kernel says about it (Linux: /proc)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import httpx

WATCHDOG_S: Final = 120.0  # generous: only something stuck runs into it
STEP_S: Final = 0.02
STEADY: Final = 10  # steps without a change
TCP_LISTEN: Final = "0A"


UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n%b"
)


def upgrade(port: int, header: bytes = b"", after: bytes = b"") -> bytes:
    """The bytes that open a WebSocket, with one more header line and what follows the head."""
    return UPGRADE % (port, header, after)


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Nothing of the caller's but the way to programs: no proxy, no configuration, a home of its own, and no Ollama
    that happens to run here."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    path = os.environ.get("PATH", os.defpath)
    own = {"HOME": str(home), "WF_DATA_DIR": str(folder / "state"), "WF_OLLAMA__ENABLED": "false"}
    own["WF_LLAMA_CPP__ENABLED"] = "false"
    own["WF_POOL__COOLDOWN_S"] = "0"  # tests ask many models in a row, and none is worth 30 s of waiting
    return {"PATH": path, "LANG": "C.UTF-8"} | own | extra


def free_port() -> int:
    """For a server that has to be told its port. It stays free until then: the kernel gives none of this range to
    others by itself."""
    while True:
        port = secrets.choice(range(15_000, 32_000))
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def wf(folder: Path, *words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess:
    """One command of the command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "engine", *words],
        cwd=folder,
        env=environment(folder, **(env or {})),
        capture_output=True,
        timeout=WATCHDOG_S,
        **{"text": True} | options,
    )


@attrs.define(eq=False)
class EngineProcess:
    """`python -m engine serve` on free ports with its state in `folder`/state."""

    folder: Path
    process: subprocess.Popen[bytes]
    http: str = ""
    ws: str = ""

    @classmethod
    def spawn(
        cls, folder: Path, *flags: str, env: dict[str, str] | None = None, interpreter: tuple[str, ...] = ()
    ) -> EngineProcess:
        """Started, not yet ready. Output goes to files, so that a test which does not read it holds nothing up."""
        folder.mkdir(exist_ok=True)
        command = [sys.executable, *interpreter, "-m", "engine", "serve", "--port", "0", "--ws-port", "0"]
        command += ["--port-file", str(folder / "ports.json"), "--synthetic", "42", *flags]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=folder, env=environment(folder, **(env or {})), stdout=out, stderr=err
            )
        return cls(folder, process)

    def wait_ready(self) -> EngineProcess:
        """Until the port file is there. Fails at once when the process ends instead."""
        port_file = self.folder / "ports.json"
        self.wait_for(port_file.exists)
        address = json.loads(port_file.read_bytes())
        self.http, self.ws = address["http"], address["ws"]
        return self

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(**self._client_options() | options)

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._client_options() | options)

    def connect(self, listener: str = "http", *, receive_bytes: int | None = None) -> socket.socket:
        """A bare socket to a listener; `receive_bytes` bounds what the kernel takes in for a client that never
        reads."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(WATCHDOG_S)
        sock.connect(("127.0.0.1", self.port(listener)))
        return sock

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
        """The bytes of one HTTP request. A header given as an empty text is left out."""
        data = b"" if body is None else json.dumps(body).encode()
        fields = {"host": f"127.0.0.1:{self.port()}"} | ({"content-length": str(len(data))} if data else {})
        lines = [f"{name}: {value}" for name, value in (fields | (headers or {})).items() if value]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + data

    def port(self, listener: str = "http") -> int:
        return httpx.URL(self.http if listener == "http" else self.ws).port or 0

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """The exit code. Fails when the process is stuck."""
        code = self._exit_code_within(WATCHDOG_S)
        assert code is not None, f"the engine did not exit:\n{self.stderr()}"
        return code

    def wait_for(self, met: Callable[[], Any]) -> Any:
        """The first true value of `met`. Fails when the engine ends before, or it never comes."""
        for _ in range(round(WATCHDOG_S / STEP_S)):
            if value := met():
                return value
            code = self._exit_code_within(STEP_S)
            assert code is None, f"the engine ended with {code}:\n{self.stderr()}"
        raise AssertionError(f"it did not happen:\n{self.stderr()}")

    def wait_until_stuck(self, client: socket.socket) -> None:
        """Until the engine has filled every buffer on the way to `client` and can write no more."""
        seen: list[int] = []

        def stands_still() -> bool:
            seen.append(self.unsent_bytes(client))
            return len(seen) > STEADY and seen[-1] > 0 and len(set(seen[-STEADY:])) == 1

        self.wait_for(stands_still)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    # ── what the kernel says ──

    def open_files(self) -> list[str]:
        """What each of its descriptors is, `socket:[inode]` for sockets."""
        found = []
        for entry in self._proc("fd").iterdir():
            try:
                found.append(os.readlink(entry))
            except FileNotFoundError:  # closed meanwhile
                continue
        return sorted(found)

    def sockets(self) -> list[tuple[str, str]]:
        """Its internet sockets as (local address, state): IPv4 as 8 hex digits in network order, IPv6 as 32."""
        inodes = {name[len("socket:[") : -1] for name in self.open_files() if name.startswith("socket:[")}
        found = []
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in self._proc(f"net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    found += [(_network_order(end.split(":")[0]), fields[3]) for end in fields[1:3]]
        return found

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def unsent_bytes(self, client: socket.socket) -> int:
        """What the engine has written to `client` and the client's kernel has not taken."""
        ports = client.getpeername()[1], client.getsockname()[1]
        for line in self._proc("net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if tuple(int(end.split(":")[1], 16) for end in fields[1:3]) == ports:
                return int(fields[4].split(":")[0], 16)
        return 0

    def _client_options(self) -> dict[str, Any]:
        """No proxy of the environment. No certificates either: it is plain HTTP, and reading them takes 40 ms."""
        return {"base_url": self.http, "trust_env": False, "verify": False, "timeout": WATCHDOG_S}

    def _proc(self, name: str) -> Path:
        return Path("/proc", str(self.process.pid), name)

    def _exit_code_within(self, seconds: float) -> int | None:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None


def children_of(pid: int) -> list[int]:
    """The processes that the threads of a process have forked."""
    found = []
    for task in Path("/proc", str(pid), "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _network_order(address: str) -> str:
    """/proc/net prints addresses as little-endian 32-bit words."""
    words = [address[i : i + 8] for i in range(0, len(address), 8)]
    return "".join(bytes.fromhex(word)[::-1].hex() for word in words)
