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
OVER_S: Final = 30.0  # generous: only something stuck runs into it


@attrs.frozen
class Heard:
    """One request and its answer. `body` is the answer's, without the coding of the transfer, as far as it came;
    `whole` says that its end came too."""

    path: str
    asked: bytes = attrs.field(repr=False)
    status: int
    content_type: str
    body: bytes = attrs.field(repr=False)
    whole: bool


@attrs.define(eq=False)
class _Line:
    """One connection. `over` is set when both sides have ended."""

    up: bytearray = attrs.field(factory=bytearray)
    down: bytearray = attrs.field(factory=bytearray)
    over: threading.Event = attrs.field(factory=threading.Event)


@attrs.define(eq=False)
class Tap:
    url: str
    _lines: list[_Line] = attrs.field(factory=list)

    def heard(self, path: str) -> list[Heard]:
        """The exchanges on `path`, in their order, once their connections are over."""
        found = []
        for line in list(self._lines):
            if f" {path} ".encode() in bytes(line.up).partition(b"\r\n")[0]:
                assert line.over.wait(OVER_S), f"the connection for {path} stays open"
                found.append(_heard(bytes(line.up), bytes(line.down)))
        return found

    def forget(self) -> None:
        self._lines.clear()


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


def _heard(up: bytes, down: bytes) -> Heard:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(up)
    request, asked, _ = _message(parser)
    assert isinstance(request, h11.Request)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=request.method, target=request.target, headers=[("host", "tap")]))
    client.send(h11.EndOfMessage())
    client.receive_data(down)
    response, body, whole = _message(client)
    assert isinstance(response, h11.Response)
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
