"""The floor under the fan-out: a process that writes the same bytes to every client 60 times a second and does nothing
else. `python -m bench.bare SIZE` prints its port and serves until its stdin closes; the handshake is a sham."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from transport.wire.frames import text_frame

TICK_S = 1 / 60
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
HEAD = b'{"frame":%d,"perf":{"lateness_ms":0,"frame_ms":0},"events":["'
TAIL = b'"]}'


@attrs.frozen
class Bare:
    """The running process and its port."""

    process: subprocess.Popen[bytes]
    port: int


@contextmanager
def sending(size_bytes: int) -> Iterator[Bare]:
    command = [sys.executable, "-m", "bench.bare", str(size_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Bare(process, int(process.stdout.readline()))
        finally:
            process.stdin.close()


def message(number: int, size_bytes: int) -> bytes:
    """A WebSocket frame of about that size."""
    head = HEAD % number
    return text_frame(head + b"x" * max(0, size_bytes - len(head) - len(TAIL) - 4) + TAIL)


def serve(listener: socket.socket, size_bytes: int) -> None:
    clients: list[socket.socket] = []
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        began, tick = time.monotonic(), 0
        while True:
            tick += 1
            while (left := began + tick * TICK_S - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fileobj is not listener:
                        return
                    clients.append(greeted(listener))
            frame = message(tick, size_bytes)
            for sock in clients:
                with contextlib.suppress(OSError):
                    sock.send(frame)


def greeted(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    asked = b""
    while b"\r\n\r\n" not in asked:
        asked += sock.recv(4096)
    sock.sendall(ANSWER)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the engine's: each frame leaves at once
    sock.setblocking(False)
    return sock


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, int(sys.argv[1]))


if __name__ == "__main__":
    main()
