"""The floor under any proxy in Python: a process that moves bytes between two sockets and looks at none of them.

`python -m bench.lens_relay PORT` prints its own port and serves until its stdin closes. One connection to PORT for each
that it takes.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

READ_BYTES = 65_536


def serve(listener: socket.socket, port: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listener:
                    join(selector, listener, port)
                elif key.fileobj.fileno() != -1:
                    move(selector, key.fileobj, key.data)


def join(selector: selectors.BaseSelector, listener: socket.socket, port: int) -> None:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", port))
    for one, other in ((near, far), (far, near)):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(one, selectors.EVENT_READ, other)


def move(selector: selectors.BaseSelector, one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        data = one.recv(READ_BYTES)
        if data:
            other.sendall(data)
            return
    for sock in (one, other):
        selector.unregister(sock)
        sock.close()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, int(sys.argv[1]))


if __name__ == "__main__":
    main()
