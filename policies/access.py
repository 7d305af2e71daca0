"""Who may call: one pure decision per request, before routing, the same on every listener.

A web page in the user's browser can reach every port of this machine, and DNS can make any name point here. So names
and origins are compared as text with short, exact lists and nothing is looked up. No message repeats what the caller
sent.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable
from typing import Any, Final

import attrs

from engine.domain.errors import (
    EngineError,
    Forbidden,
    ForbiddenOrigin,
    InvalidRequest,
    Unauthorized,
    UnsupportedMediaType,
)

LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
HTTP_DEFAULT_PORT: Final = 80  # clients leave it out of Host and Origin
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE: Final = frozenset({"same-origin", "none"})
TOKEN_HEADER: Final = "x-wf-token"
FRAMES_PROTOCOL: Final = "wf.frames"  # the one subprotocol there is
TOKEN_PROTOCOL: Final = "wf.token."  # before the token, beside it

_WITH_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]+):\d+")  # name:port or [v6]:port
_not_empty: Final[Any] = attrs.validators.min_len(1)  # an empty secret would match an empty header


@attrs.frozen
class RequestHead:
    """A request before its body: `target` as on the wire, header names in lower case, values without outer blanks."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def values(self, name: str) -> list[str]:
        """All values of one header, in order. Bytes become characters one to one, so nothing fails here."""
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for key, value in self.headers if key == wanted]

    @property
    def has_body(self) -> bool:
        lengths = self.values("content-length")
        return bool(self.values("transfer-encoding")) or any(length.strip("0") for length in lengths)


@attrs.frozen
class AccessRules:
    """Exact lower-case lists: `hosts` as in the Host header (with the port), `origins` as in Origin. Without `api_keys`
    the Authorization header is ignored; with them every request needs one. The token is for what can hurt."""

    hosts: frozenset[str]
    origins: frozenset[str]
    token: str = attrs.field(repr=False, validator=_not_empty)
    api_keys: tuple[str, ...] = attrs.field(
        default=(), repr=False, validator=attrs.validators.deep_iterable(member_validator=_not_empty)
    )


def loopback_rules(
    port: int,
    http_port: int,
    *,
    token: str,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    api_keys: Iterable[str] = (),
) -> AccessRules:
    """The rules of the listener on `port`, where our own pages come from `http_port`.

    An allowed host without a port is accepted bare (as behind a proxy on port 80 or 443) and with the listener's port.
    """
    hosts = {authority for name in LOOPBACK_NAMES for authority in _authorities(name, port)}
    for host in allowed_hosts:
        hosts |= {host.lower()} if _WITH_PORT.fullmatch(host) else {host.lower(), f"{host.lower()}:{port}"}
    origins = {f"http://{authority}" for name in LOOPBACK_NAMES for authority in _authorities(name, http_port)}
    origins |= {origin.lower().rstrip("/") for origin in allowed_origins}
    return AccessRules(frozenset(hosts), frozenset(origins), token, tuple(api_keys))


def check(rules: AccessRules, head: RequestHead) -> EngineError | None:
    """Why this request is refused, or None. Never raises, whatever the bytes."""
    return (
        _check_host(rules, head) or _check_origin(rules, head) or _check_key(rules, head) or _check_content_type(head)
    )


def _check_host(rules: AccessRules, head: RequestHead) -> EngineError | None:
    hosts = head.values("host")
    if len(hosts) != 1:
        return InvalidRequest("exactly one Host header is needed")
    if hosts[0].lower() not in rules.hosts:
        return Forbidden(
            "this Host is not served: use 127.0.0.1, localhost or [::1] with the port, or see allowed_hosts"
        )
    return None


def _check_origin(rules: AccessRules, head: RequestHead) -> EngineError | None:
    origins = head.values("origin")
    if len(origins) > 1:
        return InvalidRequest("at most one Origin header is allowed")
    if origins and origins[0].lower() not in rules.origins:
        return ForbiddenOrigin("pages of this origin may not call the engine: see allowed_origins")
    if head.method not in SAFE_METHODS and not OWN_SITE.issuperset(head.values("sec-fetch-site")):
        return ForbiddenOrigin("pages of other sites may not change anything here (Sec-Fetch-Site)")
    return None


def _check_key(rules: AccessRules, head: RequestHead) -> EngineError | None:
    if not rules.api_keys:
        return None
    offered = head.values("x-api-key")
    for value in head.values("authorization"):
        scheme, _, credentials = value.partition(" ")
        match scheme.lower():
            case "bearer":
                offered.append(credentials.strip())
            case "basic":
                offered += _password(credentials)
    if _matches(offered, rules.api_keys) or _matches(_page_tokens(head), (rules.token,)):
        return None
    return Unauthorized(
        "an API key is needed: `authorization: Bearer KEY` or `x-api-key: KEY`; in a browser it is the password, "
        "with any name"
    )


def _password(credentials: str) -> list[str]:
    """Of Basic credentials (RFC 7617): what a browser asks its user for. Nothing when they are malformed."""
    try:
        _, colon, password = base64.b64decode(credentials.strip(), validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return []
    return [password] if colon else []


def _page_tokens(head: RequestHead) -> list[str]:
    """Tokens of this start among the subprotocols of an upgrade: a page can send no other header with a WebSocket, and
    it was told the token when it loaded, with its key."""
    offered = [name.strip() for value in head.values("sec-websocket-protocol") for name in value.split(",")]
    return [name.removeprefix(TOKEN_PROTOCOL) for name in offered if name.startswith(TOKEN_PROTOCOL)]


def _check_content_type(head: RequestHead) -> EngineError | None:
    """A form of a foreign page can post text/plain without asking; only scripts we allowed can post JSON."""
    from_browser = bool(head.values("origin") or head.values("sec-fetch-site"))
    if not from_browser or not head.has_body:
        return None
    types = [value.partition(";")[0].strip().lower() for value in head.values("content-type")]
    return None if types == ["application/json"] else UnsupportedMediaType("the body must be application/json")


def _matches(offered: Iterable[str], secrets: Iterable[str]) -> bool:
    """Constant time for each pair, and every pair is compared: the time taken does not say which one was right."""
    pairs = [(o.encode("latin-1"), s.encode()) for o in offered for s in secrets]
    return sum(hmac.compare_digest(o, s) for o, s in pairs) > 0


def _authorities(name: str, port: int) -> tuple[str, ...]:
    return (f"{name}:{port}", name) if port == HTTP_DEFAULT_PORT else (f"{name}:{port}",)
