"""Many WebSocket clients in one child process, as cheap as Python can make them.

`python -m bench.watchers` takes a `Watch` as JSON on stdin, connects, says `ready`, and on the next line of stdin
watches for `seconds` and prints a `Watched`. Stuck clients finish the handshake and then never read.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from tests.system.process import upgrade

BUFFER_BYTES = 1 << 20
MARK = b',"events":['


@attrs.frozen
class Watch:
    port: int
    clients: int
    seconds: float
    patterns: tuple[str, ...] = ("energy.*",)
    session_id: str | None = None
    stuck: int = 0
    stamps: bool = False  # the first client reads the token texts of `bench.flood` and tells how old they are


@attrs.frozen
class Watched:
    """`frames` counts per client. `gaps_ms`: between two frames, over all clients, the times between arrivals in order
    of size, thinned to a thousand. The rest is of the first client: numbers, lateness and composing time as the frames
    say, and the age of every token in ms."""

    frames: list[int]
    late_gaps: int  # above 25 ms
    gaps_ms: list[float]
    numbers: list[int]
    lateness_ms: list[float]
    frame_ms: list[float]
    ages_ms: list[float]
    closed: int
    bytes_in: int
    cpu_s: float


@attrs.define(eq=False)
class Client:
    sock: socket.socket
    parsing: bool = False
    stamps: bool = False
    frames: int = 0
    last_s: float = 0.0
    _rest: bytearray = attrs.field(factory=bytearray)
    _skip: int = 0  # bytes of a frame that nobody looks at

    def read(self, view: memoryview, watcher: Watcher) -> None:
        size = self.sock.recv_into(view)
        if not size:
            raise ConnectionResetError
        now = time.monotonic()
        watcher.bytes_in += size
        at = min(self._skip, size)
        self._skip -= at
        self._rest += view[at:size]
        while (length := self._frame(now, watcher)) is not None:
            here = min(length, len(self._rest))
            del self._rest[:here]
            self._skip = length - here

    def _frame(self, now: float, watcher: Watcher) -> int | None:
        """The length of the frame the buffer begins with; None when that is not known, or it is needed whole."""
        rest = self._rest
        if len(rest) < 2 or (rest[1] == 126 and len(rest) < 4) or (rest[1] == 127 and len(rest) < 10):
            return None
        head = {126: 4, 127: 10}.get(rest[1], 2)
        length = head + (int.from_bytes(rest[2:head], "big") if head > 2 else rest[1])
        if rest[0] == 0x89 and len(rest) >= length:
            self.sock.send(bytes((0x8A, 0x80 | length - head)) + bytes(4) + rest[head:length])
        if rest[0] != 0x81:
            return length
        if self.parsing and len(rest) < length:
            return None
        self.frames += 1
        if watcher.watching and self.last_s:
            watcher.gaps_s.append(now - self.last_s)
        self.last_s = now
        if self.parsing and watcher.watching:
            watcher.look(bytes(rest[head:length]), self.stamps)
        return length


@attrs.define(eq=False)
class Watcher:
    watch: Watch
    clients: list[Client] = attrs.field(factory=list)
    stuck: list[socket.socket] = attrs.field(factory=list)
    watching: bool = False
    gaps_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=2_000_000))
    frames: list[tuple[int, float, float]] = attrs.field(factory=list)
    ages_ms: list[float] = attrs.field(factory=list)
    closed: int = 0
    bytes_in: int = 0
    selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)
    _view: memoryview = attrs.field(factory=lambda: memoryview(bytearray(BUFFER_BYTES)))

    def connect(self) -> None:
        for index in range(self.watch.clients):
            sock = opened(self.watch)
            sock.setblocking(False)
            first = index == 0
            client = Client(sock, parsing=first, stamps=first and self.watch.stamps)
            self.clients.append(client)
            self.selector.register(sock, selectors.EVENT_READ, client)
            self.turn(0)
        self.stuck = [opened(self.watch) for _ in range(self.watch.stuck)]

    def turn(self, timeout_s: float) -> None:
        for key, _ in self.selector.select(timeout_s):
            try:
                key.data.read(self._view, self)
            except BlockingIOError:
                continue
            except OSError:
                self.closed += 1
                self.selector.unregister(key.fileobj)

    def look(self, message: bytes, stamps: bool) -> None:
        head = json.loads(message.partition(MARK)[0] + b"}")
        if head["frame"] is None:
            return
        self.frames.append((head["frame"], head["perf"]["lateness_ms"], head["perf"]["frame_ms"]))
        if stamps:
            now_ns = time.monotonic_ns()
            for event in json.loads(message)["events"]:
                if event["type"] == "experience.token":
                    self.ages_ms += [(now_ns - int(t["text"])) / 1e6 for t in event["payload"]["tokens"]]

    def run(self) -> Watched:
        for client in self.clients:
            client.frames, client.last_s = 0, 0.0
        self.watching, self.bytes_in, used = True, 0, time.process_time()
        end = time.monotonic() + self.watch.seconds
        while (left := end - time.monotonic()) > 0:
            self.turn(left)
        gaps = sorted(self.gaps_s)
        numbers, lateness, frame_ms = zip(*self.frames, strict=True) if self.frames else ((), (), ())
        return Watched(
            frames=[client.frames for client in self.clients],
            late_gaps=sum(gap > 0.025 for gap in gaps),
            gaps_ms=[gap * 1000 for gap in gaps[:: max(1, len(gaps) // 1000)]],
            numbers=list(numbers),
            lateness_ms=list(lateness),
            frame_ms=list(frame_ms),
            ages_ms=self.ages_ms,
            closed=self.closed,
            bytes_in=self.bytes_in,
            cpu_s=time.process_time() - used,
        )


def opened(watch: Watch) -> socket.socket:
    """Through the handshake, with the subscription sent."""
    sock = socket.create_connection(("127.0.0.1", watch.port))
    body = {"type": "subscribe", "patterns": watch.patterns, "session_id": watch.session_id, "rate_hz": 60.0}
    sock.sendall(upgrade(watch.port))
    head = b""
    while b"\r\n\r\n" not in head:  # byte by byte: what follows belongs to the frames
        head += sock.recv(1)
    assert b" 101 " in head, head
    sock.sendall(masked(json.dumps(body).encode()))
    return sock


def masked(payload: bytes) -> bytes:
    """A client's text frame; the mask is zero."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload


@contextmanager
def watchers(watch: Watch) -> Iterator[Any]:
    """Connected clients as a child process; call what this gives to watch and get a `Watched`."""
    command = [sys.executable, "-m", "bench.watchers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(attrs.asdict(watch)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"

        def watched() -> Watched:
            process.stdin.write("go\n")
            process.stdin.flush()
            return Watched(**json.loads(process.stdout.readline()))

        try:
            yield watched
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.kill()


def main() -> None:
    told = json.loads(sys.stdin.readline())
    watcher = Watcher(Watch(**told | {"patterns": tuple(told["patterns"])}))
    watcher.connect()
    print("ready", flush=True)
    watcher.selector.register(sys.stdin, selectors.EVENT_READ, None)
    while True:
        ready = watcher.selector.select(1)
        if any(key.data is None for key, _ in ready):
            break
        watcher.turn(0)
    watcher.selector.unregister(sys.stdin)
    if sys.stdin.readline():
        print(json.dumps(attrs.asdict(watcher.run())), flush=True)


if __name__ == "__main__":
    main()
