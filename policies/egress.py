"""What may leave this machine. Nothing may without a permit, and a permit is for one host and port. Pure.

Whether an address is of this machine is decided from its text: nothing is looked up, since asking for a name tells
somebody else about it."""

from __future__ import annotations

import enum
import ipaddress
from typing import Final

import attrs

LOCALHOST: Final = "localhost"
_NAME_CHARS_MAX: Final = 253


class Purpose(enum.StrEnum):
    """Why something may leave."""

    BROKER = "broker"  # a request of somebody who consented
    REMOTE_RUNTIME = "remote_runtime"  # the configuration put a runtime on another machine
    DOWNLOAD = "download"  # somebody asked for a model


def _lower(host: str) -> str:
    return host.lower()


@attrs.define(eq=False)
class Meter:
    """Bytes written to the network under one permit, those of TLS included."""

    bytes_out: int = 0


@attrs.define(eq=False)
class ConnectionFigures:
    """Of the connections to one server: how many wait for their next request, and since the start how many were opened,
    used again, and let go of while they waited."""

    idle: int = 0
    opened: int = 0
    reused: int = 0
    let_go: int = 0


@attrs.frozen
class Permit:
    """To open connections to this host (a name or an address, as configured) and port, and no other. With `tls` only
    an encrypted one."""

    purpose: Purpose
    host: str = attrs.field(converter=_lower, validator=attrs.validators.max_len(_NAME_CHARS_MAX))
    port: int
    tls: bool = True
    meter: Meter = attrs.field(factory=Meter, eq=False, repr=False)

    def covers(self, host: str, port: int, *, tls: bool) -> bool:
        return (host.lower(), port) == (self.host, self.port) and (tls or not self.tls)


def stays_here(host: str) -> bool:
    """True for `localhost` and for addresses that only reach this machine. `host` is bare: no brackets, no port."""
    if host.lower() == LOCALHOST:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1 reaches 127.0.0.1, whatever Python's version says
    return bool((mapped or address).is_loopback)
