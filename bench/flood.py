"""A model server that does nothing but send: Ollama's wire format at a fixed pace, as cheaply as Python can.

`python -m bench.flood TPS` prints its port and serves until its stdin closes. Every stream gets TPS records a second,
one HTTP chunk each, evenly spaced and staggered over the streams; the text of each is the moment it was sent
(`time.monotonic_ns`, one clock for all processes of a machine), so that whoever shows it knows how old it is.
"""

from __future__ import annotations

import heapq
import json
import math
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

MODEL = "flood"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
STAMP_CHARS = 20
STAMP = b"#" * STAMP_CHARS  # stands where the moment goes
TOP = 10
ANSWERS = {
    b"GET /api/version": {"version": "0.13.0"},
    b"GET /api/tags": {"models": [{"name": MODEL, "size": 1, "capabilities": ["completion"], "details": {}}]},
    b"GET /api/ps": {"models": [{"name": MODEL, "size": 1}]},
}
LOADED = {"model": MODEL, "created_at": "2026-01-01T00:00:00Z", "response": "", "done": True, "done_reason": "load"}


def record(text: str = STAMP.decode()) -> bytes:
    """One line of `/api/generate` as Ollama writes it, with the ten best candidates; about 1 KiB."""
    words = [text, *(f" candidate{rank}" for rank in range(1, TOP))]
    top = [
        {"token": word, "logprob": math.log(0.6 * 0.5**rank), "bytes": list(word.encode())}
        for rank, word in enumerate(words)
    ]
    body = {
        "model": MODEL,
        "created_at": "2026-01-01T00:00:00.123456789Z",
        "response": text,
        "done": False,
        "logprobs": [top[0] | {"top_logprobs": top}],
    }
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def chunk() -> bytes:
    line = record()
    return b"%x\r\n%b\r\n" % (len(line), line)


@attrs.define(eq=False)
class Flood:
    """One thread, one selector. A stream ends when its reader closes it."""

    tps: float
    selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)
    _due: list[tuple[float, int, socket.socket]] = attrs.field(factory=list)
    _asked: dict[socket.socket, bytearray] = attrs.field(factory=dict)
    _streams: int = 0
    _parts: list[bytes] = attrs.field(factory=lambda: chunk().split(STAMP))

    def serve(self, listener: socket.socket, until: int) -> None:
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(until, selectors.EVENT_READ, None)
        while True:
            now = time.monotonic()
            wait_s = max(0.0, self._due[0][0] - now) if self._due else None
            if wait_s is not None and wait_s < 0.002:  # a selector rounds up to whole milliseconds
                time.sleep(wait_s)
                wait_s = 0.0
            for key, _ in self.selector.select(wait_s):
                if key.data is None:
                    return
                key.data(key.fileobj)
            self._send_due()

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, number, sock = heapq.heappop(self._due)
            if sock.fileno() == -1:
                continue
            heapq.heappush(self._due, (due + 1 / self.tps, number, sock))
            stamp = b"%20d" % time.monotonic_ns()
            try:
                sock.send(stamp.join(self._parts))
            except OSError:  # it left, or does not read: not our business
                continue

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setblocking(False)
        self.selector.register(sock, selectors.EVENT_READ, self._read)

    def _read(self, sock: socket.socket) -> None:
        """A request, in however many pieces; the next one comes when it was answered."""
        asked = self._asked.setdefault(sock, bytearray())
        try:
            data = sock.recv(65_536)
        except OSError:
            data = b""
        asked += data
        if not data:
            del self._asked[sock]
            self.selector.unregister(sock)
            sock.close()
            return
        head, _, body = asked.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) == int(length[1]):
            line, body = bytes(head.partition(b" HTTP/1.1\r\n")[0]), bytes(body)
            asked.clear()
            self._answer(sock, line, body)

    def _answer(self, sock: socket.socket, line: bytes, body: bytes) -> None:
        if b'"prompt"' in body:
            sock.send(HEAD)
            self._streams += 1
            phase = self._streams * 0.618 % 1 / self.tps  # staggered, whatever their number
            heapq.heappush(self._due, (time.monotonic() + phase, self._streams, sock))
        else:
            answer = json.dumps(ANSWERS.get(line, LOADED)).encode()
            sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


@contextmanager
def flooding(tps: float, module: str = "bench.flood") -> Iterator[str]:
    """Its URL, while it runs as a child process; `module` may answer for more models than one."""
    command = [sys.executable, "-m", module, str(tps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        Flood(float(sys.argv[1])).serve(listener, sys.stdin.fileno())


if __name__ == "__main__":
    main()
