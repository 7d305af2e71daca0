"""The flood as the lens meets it: log-probabilities only for those who ask, whole short answers, kept connections.

`python -m bench.lens_upstream TPS` prints its port and serves until its stdin closes. A request with `num_predict` is
answered at once, with one token and the terminal record; any other one streams at TPS until its reader leaves.
"""

from __future__ import annotations

import heapq
import json
import socket
import sys
import time

import attrs

from bench.flood import HEAD, MODEL, STAMP, Flood, record

ENDED = {"model": MODEL, "created_at": "2026-01-01T00:00:00.123456789Z", "response": "", "done": True}
PLAIN = b'{"model":"%b","created_at":"2026-01-01T00:00:00.123456789Z","response":"%b","done":false}\n'


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(line), line)


RICH = chunk(record()).split(STAMP)
POOR = chunk(PLAIN % (MODEL.encode(), STAMP)).split(STAMP)
LAST = chunk(json.dumps(ENDED | {"done_reason": "stop", "eval_count": 1}).encode() + b"\n") + b"0\r\n\r\n"


@attrs.define(eq=False)
class LensUpstream(Flood):
    """`_kinds`: what a stream sends, by socket; `_rest`: what its reader has not taken yet."""

    _kinds: dict[socket.socket, list[bytes]] = attrs.field(factory=dict)
    _rest: dict[socket.socket, bytes] = attrs.field(factory=dict)

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, number, sock = heapq.heappop(self._due)
            if sock.fileno() == -1:
                self._kinds.pop(sock, None)
                self._rest.pop(sock, None)
                continue
            heapq.heappush(self._due, (due + 1 / self.tps, number, sock))
            self._send(sock, self._rest.pop(sock, b"") + stamped(self._kinds[sock]))

    def _send(self, sock: socket.socket, data: bytes) -> None:
        """What does not fit waits for the next token; half a chunk must not be lost."""
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it left
            return
        if sent < len(data):
            self._rest[sock] = data[sent:]

    def _answer(self, sock: socket.socket, line: bytes, body: bytes) -> None:
        self._asked[sock].clear()  # the connection is kept
        kind = RICH if b'"logprobs":true' in body else POOR
        if b'"num_predict"' in body:
            sock.send(HEAD + stamped(kind))
            sock.send(LAST)
            return
        self._kinds[sock] = kind
        super()._answer(sock, line, body)


def stamped(parts: list[bytes]) -> bytes:
    return (b"%20d" % time.monotonic_ns()).join(parts)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        LensUpstream(float(sys.argv[1])).serve(listener, sys.stdin.fileno())


if __name__ == "__main__":
    main()
