"""Clients of a model server in one child process, as cheap as Python can make them: raw sockets, one selector.

`python -m bench.lens_client` takes a `Job` as JSON on stdin, connects, says `ready`, and on the next line of stdin does
the job and prints what it saw. The text of each token is the moment it was sent, see `bench.flood`.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from itertools import pairwise
from typing import Any

import attrs

from bench.flood import MODEL

READ_BYTES = 1 << 18
SENT = re.compile(rb'"response": ?" *(\d+)"')
TIMEOUT_S = 30.0
ENDING = b"\r\n0\r\n\r\n"


@attrs.frozen
class Job:
    """`kind`: `streams` (for `seconds`), `first` (so many `times`: how long to the first token), `get` (`path`, for
    `seconds`), `leave` (at most so many `times` or `seconds`: ask, take one token, leave). `clients` at once."""

    kind: str
    port: int
    clients: int = 1
    seconds: float = 0
    times: int = 0
    path: str = "/api/generate"
    headers: tuple[tuple[str, str], ...] = ()


def asking(job: Job, **more: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "on"} | more).encode()
    lines = [f"{name}: {value}" for name, value in job.headers]
    lines += [f"host: 127.0.0.1:{job.port}", "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([f"POST {job.path} HTTP/1.1", *lines, "", ""]).encode() + body


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@attrs.define(eq=False)
class Stream:
    """One answer: `ages_ms` of its tokens, in the order they came."""

    sock: socket.socket
    ages_ms: list[float] = attrs.field(factory=list)
    _rest: bytes = b""

    def read(self) -> None:
        data = self.sock.recv(READ_BYTES)
        now_ns = time.monotonic_ns()
        assert data, f"the stream ended: {self._rest[-300:]!r}"
        lines, _, self._rest = (self._rest + data).rpartition(b"\n")
        self.ages_ms += [(now_ns - int(sent)) / 1e6 for sent in SENT.findall(lines)]


@attrs.define(eq=False)
class Streams:
    job: Job
    streams: list[Stream] = attrs.field(factory=list)
    _selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)

    def prepare(self) -> None:
        for _ in range(self.job.clients):
            sock = connected(self.job.port)
            sock.sendall(asking(self.job))
            stream = Stream(sock)
            self.streams.append(stream)
            self._selector.register(sock, selectors.EVENT_READ, stream)
        self._turn_until(time.monotonic() + TIMEOUT_S, all_begun=True)
        self._turn_until(time.monotonic() + 1)

    def run(self) -> dict[str, Any]:
        """`ages_ms` of all; `jitter_ms`: the difference between the ages of a token and the one before it, which is the
        gap they came in less the gap they were sent in."""
        self._turn_until(time.monotonic())  # what piled up while nobody said go
        for stream in self.streams:
            stream.ages_ms.clear()
        began = time.monotonic()
        self._turn_until(began + self.job.seconds)
        took_s = time.monotonic() - began
        ages = [stream.ages_ms for stream in self.streams]
        return {
            "seconds": took_s,
            "ages_ms": [age for of_one in ages for age in of_one],
            "jitter_ms": [abs(b - a) for of_one in ages for a, b in pairwise(of_one)],
            "tokens": sum(map(len, ages)),
        }

    def _turn_until(self, end: float, *, all_begun: bool = False) -> None:
        while True:
            for key, _ in self._selector.select(max(0.0, end - time.monotonic())):
                key.data.read()
            if all_begun and all(stream.ages_ms for stream in self.streams):
                return
            if time.monotonic() >= end:
                assert not all_begun, "a stream does not begin"
                return


@attrs.define(eq=False)
class First:
    """One kept connection, one request after the other."""

    job: Job
    _sock: socket.socket = attrs.field(init=False)

    def prepare(self) -> None:
        self._sock = connected(self.job.port)
        for _ in range(10):
            self._once()

    def run(self) -> dict[str, Any]:
        return {"first_ms": [self._once() for _ in range(self.job.times)]}

    def _once(self) -> float:
        request = asking(self.job, options={"num_predict": 1})
        began = time.perf_counter()
        self._sock.sendall(request)
        answer, first_ms = b"", None
        while not answer.endswith(ENDING):
            data = self._sock.recv(READ_BYTES)
            assert data, f"the answer ended: {answer!r}"
            answer += data
            if first_ms is None and SENT.search(answer):
                first_ms = (time.perf_counter() - began) * 1000
        assert first_ms is not None, answer
        return first_ms


@attrs.define(eq=False)
class Gets:
    """Kept connections, each with one request under way."""

    job: Job
    _selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)
    _request: bytes = b""

    def prepare(self) -> None:
        self._request = f"GET {self.job.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.job.port}\r\n\r\n".encode()
        for _ in range(self.job.clients):
            sock = connected(self.job.port)
            self._selector.register(sock, selectors.EVENT_READ, bytearray())
            sock.sendall(self._request)
        self._for(0.5)

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        return {"answers": self._for(self.job.seconds), "seconds": time.monotonic() - began}

    def _for(self, seconds: float) -> int:
        answers, end = 0, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                sock, answer = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                answer += sock.recv(READ_BYTES)
                if is_whole(answer):
                    assert answer.startswith(b"HTTP/1.1 200"), answer
                    answers += 1
                    answer.clear()
                    sock.sendall(self._request)
        return answers


def is_whole(answer: bytearray) -> bool:
    head, gap, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    assert not gap or length, head
    return bool(length) and len(body) == int(length[1])


@attrs.define(eq=False)
class Leavers:
    """Clients that leave after the first token and come again."""

    job: Job
    _selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)

    def prepare(self) -> None:
        pass

    def run(self) -> dict[str, Any]:
        began, cycles = time.monotonic(), 0
        for _ in range(self.job.clients):
            self._come()
        while cycles < self.job.times and time.monotonic() < began + self.job.seconds:
            for key, _ in self._selector.select(1):
                stream = key.data
                stream.read()
                if stream.ages_ms:
                    self._selector.unregister(stream.sock)
                    stream.sock.close()
                    cycles += 1
                    self._come()
        for key in list(self._selector.get_map().values()):  # these leave before the first token
            key.fileobj.close()
        return {"cycles": cycles, "seconds": time.monotonic() - began}

    def _come(self) -> None:
        sock = connected(self.job.port)
        sock.sendall(asking(self.job))
        self._selector.register(sock, selectors.EVENT_READ, Stream(sock))


KINDS = {"streams": Streams, "first": First, "get": Gets, "leave": Leavers}


def main() -> None:
    told = json.loads(sys.stdin.readline())
    job = Job(**told | {"headers": tuple((name, value) for name, value in told["headers"])})
    client = KINDS[job.kind](job)
    client.prepare()
    print("ready", flush=True)
    if sys.stdin.readline():
        print(json.dumps(client.run()), flush=True)


if __name__ == "__main__":
    main()
