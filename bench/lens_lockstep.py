"""One token at a time: the next one is sent when the last one has arrived. Nothing is batched and nothing waits, so
what a token costs then hardly depends on what else the machine does; under load several share a turn and cost less."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs

from bench.engine import cpu_of
from bench.flood import ANSWERS, HEAD, LOADED
from bench.lens_child import Hop
from bench.lens_client import READ_BYTES, Job, asking, connected
from bench.lens_upstream import POOR, RICH

STREAMS = 10
WARM_TURNS = 20
TURNS = 200  # of a token on each stream
CHUNK_END = b"\n\r\n"
LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


@attrs.define(eq=False)
class Turns:
    """A model server whose streams are silent until `words` are sent on one. A thread for each connection."""

    listener: socket.socket
    streams: list[tuple[socket.socket, bytes]] = attrs.field(factory=list)
    begun: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = b""
        while not (body := body_of(asked)):
            read = sock.recv(READ_BYTES)
            if not read:
                return
            asked += read
            if asked.startswith(b"GET") and b"\r\n\r\n" in asked:
                break
        if body and b'"prompt"' in body:
            sock.sendall(HEAD)
            words = (b"%20d" % 1).join(RICH if b'"logprobs":true' in body else POOR)
            self.streams.append((sock, words))
            self.begun.release()
            return
        answer = json.dumps(ANSWERS.get(asked.partition(b" HTTP/1.1\r\n")[0], LOADED)).encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(answer), answer))
        sock.close()


def body_of(asked: bytes) -> bytes:
    """The body of a request that is there; empty before."""
    head, _, body = asked.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return body if length and len(body) == int(length[1]) else b""


@contextmanager
def turns() -> Iterator[Turns]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        server = Turns(listener)
        threading.Thread(target=server.serve, daemon=True).start()
        yield server


@attrs.frozen
class Cost:
    """Of one token on its way through a hop: CPU of the hop, and the time within which the fastest tenth came."""

    cpu_us: float
    way_ms: float


def cost_of(hop: Hop, server: Turns) -> Cost:
    with ExitStack() as stack:
        pairs = []
        for _ in range(STREAMS):
            client = stack.enter_context(connected(hop.port))
            client.sendall(asking(Job("streams", hop.port, headers=hop.headers)))
            server.begun.acquire()
            upstream, words = server.streams[-1]
            pairs.append((client, stack.enter_context(upstream), words))
        for _ in range(WARM_TURNS):
            for pair in pairs:
                token(*pair)
        assert hop.pid is not None
        used_s = cpu_of(hop.pid)
        took_ms = sorted(token(*pair) for _ in range(TURNS) for pair in pairs)
        return Cost((cpu_of(hop.pid) - used_s) / len(took_ms) * 1e6, took_ms[len(took_ms) // 10])


def token(client: socket.socket, upstream: socket.socket, words: bytes) -> float:
    """How long it took to arrive, in ms."""
    began = time.perf_counter()
    upstream.sendall(words)
    got = b""
    while not (got.endswith(CHUNK_END) and b'"response"' in got):
        read = client.recv(READ_BYTES)
        assert read, f"the stream ended: {got[-300:]!r}"
        got += read
    return (time.perf_counter() - began) * 1000
