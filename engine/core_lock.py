"""The core lock: a second lock behind the one way out. Once set, this process opens no socket that leads out of the
machine, whatever code asks for it, and it cannot be taken off again.

Python tells an audit hook of every use of a socket before it happens (PEP 578), those of libraries too; what the hook
does not like it refuses by raising. Three things it does not see: native code that calls the operating system past
Python (an extension in C, ctypes); programs that the engine starts (an Ollama, the process of a GGUF file), which are
processes of their own and start without the lock; and the lookup of a name that somebody gives straight to a blocking
`connect`, which Python makes before it tells (trio and httpx look up first, and that is seen). So while the lock is on
the engine does not ask such a program for anything from outside either: no model is downloaded, and an Ollama of ours
is started without its cloud. A network namespace with only `lo` binds all of these.
"""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any, Final

from policies.egress import stays_here

_ADDRESSED: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"})
_LOOKED_UP: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class CoreLocked(OSError):
    """The core lock refuses it."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EACCES, f"the core lock is on: {what} would leave this machine")


def lock() -> None:
    """From now on, until the process ends. Raises CoreLocked where a socket would leave."""
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in _ADDRESSED:
        _check_address(event, args[0], args[1])
    elif event in _LOOKED_UP:
        host = args[0]
        if host is not None and not stays_here(_text(host)):
            raise CoreLocked("looking up a name")


def _check_address(event: str, sock: Any, address: Any) -> None:
    if sock.family == socket.AF_UNIX or address is None:  # None: of a socket that is connected, and was checked then
        return
    if sock.family in _INTERNET and isinstance(address, tuple) and stays_here(_text(address[0])):
        return
    raise CoreLocked("binding" if event == "socket.bind" else "connecting")


def _text(host: Any) -> str:
    return bytes(host).decode("latin-1") if isinstance(host, bytes | bytearray) else str(host)
