"""A tap on the way to a server: connections go through it unchanged, and what passes is kept to the byte.

It works in threads, beside tests that wait for a process.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import attrs
import h11

READ_BYTES: Final = 65_536
OVER_S: Final = 60.0  # generous: only something stuck runs into it
STEP_S: Final = 0.02


@attrs.frozen
class Heard:
    """One request and its answer; status 0 while there is none. `body` is the answer's, without the coding of the
    transfer, as far as it came; `whole` says that its end came too."""

    path: str
    asked: bytes = attrs.field(repr=False)
    status: int
    content_type: str
    body: bytes = attrs.field(repr=False)
    whole: bool


_Exchange = tuple[Heard, tuple[int, int] | None]  # and where it ends: bytes up and down


@attrs.define(eq=False)
class _Line:
    """One connection, with one request after another. `over` is set when both sides have ended; what lies before
    `begun` (bytes up and down) is nobody's business any more, nor are the first `forgotten` exchanges behind it."""

    up: bytearray = attrs.field(factory=bytearray)
    down: bytearray = attrs.field(factory=bytearray)
    over: threading.Event = attrs.field(factory=threading.Event)
    begun: tuple[int, int] = (0, 0)
    forgotten: int = 0
    _read: tuple[tuple[int, ...], list[_Exchange]] = ((), [])  # what was made of how many bytes: a flood takes long

    def exchanges(self) -> list[Heard]:
        return [heard for heard, _ in self._all()][self.forgotten :]

    def forget(self) -> None:
        """All that was asked so far. What is not answered yet stays and is passed over: its answer is to come."""
        (up, down), self.forgotten = self.begun, 0
        for _, end in self._all():
            if end is None:
                self.forgotten = 1
            else:
                self.begun = (up + end[0], down + end[1])

    def _all(self) -> list[_Exchange]:
        (up, down), up_end, down_end = self.begun, len(self.up), len(self.down)
        if self._read[0] != (read := (up, up_end, down, down_end)):
            self._read = read, list(_exchanges(bytes(self.up[up:up_end]), bytes(self.down[down:down_end])))
        return self._read[1]

    def settled(self) -> bool:
        """Whether all that was asked is answered, or never will be."""
        return self.over.is_set() or all(one.whole for one in self.exchanges())


@attrs.define(eq=False)
class Tap:
    url: str
    _lines: list[_Line] = attrs.field(factory=list)

    def heard(self, path: str) -> list[Heard]:
        """The exchanges on `path`, once they are over: in their order on each connection, and those of older
        connections first."""
        found = []
        for line in list(self._lines):
            if any(one.path == path for one in line.exchanges()):
                for _ in range(round(OVER_S / STEP_S)):
                    if line.settled() or line.over.wait(STEP_S):
                        break
                else:
                    raise AssertionError(f"the answer for {path} does not end")
            found += [one for one in line.exchanges() if one.path == path]
        return found

    def forget(self) -> None:
        """Whatever was asked so far, by the engine itself too: it looks at its runtimes when it likes."""
        for line in self._lines:
            line.forget()


@contextmanager
def tapped(upstream: str) -> Iterator[Tap]:
    """A tap before the server at the URL `upstream`."""
    parts = urlsplit(upstream)
    address = (parts.hostname or "", parts.port or 80)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tap = Tap(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=_accept, args=(listener, address, tap), daemon=True)
        thread.start()
        try:
            yield tap
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(OVER_S)


def _accept(listener: socket.socket, address: tuple[str, int], tap: Tap) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        line = _Line()
        tap._lines.append(line)
        threading.Thread(target=_serve, args=(client, address, line), daemon=True).start()


def _serve(client: socket.socket, address: tuple[str, int], line: _Line) -> None:
    try:
        with client, socket.create_connection(address) as server:
            upward = threading.Thread(target=_copy, args=(client, server, line.up), daemon=True)
            upward.start()
            _copy(server, client, line.down)
            upward.join(OVER_S)
    except ConnectionRefusedError:
        pass  # the server is gone; its client sees a closed connection
    finally:
        line.over.set()


def _copy(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """To the end of `source`. When either side is gone the other one hears of it: leaving must reach the server."""
    with suppress(OSError):
        while data := source.recv(READ_BYTES):
            kept += data
            target.sendall(data)
    for side, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with suppress(OSError):
            side.shutdown(how)


def _exchanges(up: bytes, down: bytes) -> Iterator[_Exchange]:
    """Of one connection, in their order; the last one may have no end yet."""
    up_bytes, down_bytes = len(up), len(down)
    while up:
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(up)
        request, asked, sent = _message(parser)
        if not isinstance(request, h11.Request):
            return
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=request.method, target=request.target, headers=[("host", "tap")]))
        client.send(h11.EndOfMessage())
        client.receive_data(down)
        response, body, whole = _message(client)
        heard = _heard(request, asked, response, body, whole)
        if not (sent and whole):
            yield heard, None
            return
        up, down = parser.trailing_data[0], client.trailing_data[0]
        yield heard, (up_bytes - len(up), down_bytes - len(down))


def _heard(request: h11.Request, asked: bytes, response: h11.Event | None, body: bytes, whole: bool) -> Heard:
    if not isinstance(response, h11.Response):
        return Heard(request.target.decode(), asked, 0, "", b"", False)
    headers = dict(response.headers.raw_items())
    named = {name.lower(): value for name, value in headers.items()}
    content_type = named.get(b"content-type", b"").decode("latin-1")
    return Heard(request.target.decode(), asked, response.status_code, content_type, body, whole)


def _message(parser: h11.Connection) -> tuple[h11.Event | None, bytes, bool]:
    """Head and body, and whether its end is there."""
    head: h11.Event | None = None
    body = b""
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:  # framing that is broken on purpose
            return head, body, False
        if isinstance(event, h11.Request | h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return head, body, True
        else:
            return head, body, False
