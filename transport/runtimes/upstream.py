"""The one HTTP client for runtimes: what it sends, what it refuses, how long it waits, and how it lets go.

A prompt must reach the runtime and nobody else, so no proxy or other setting is taken from the environment and no
redirect is followed. Every request has its own connection (0.1 ms on loopback), unless a pool of them is given: then
one whose answer was read to its end is kept for the next request (transport/connections.py). All connections are opened
by transport/outbound.py. Only the networks in memory of tests go by httpx.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import attrs
import httpx  # the only place that knows the library
import trio

from engine.domain.errors import (
    ConfigError,
    NobodyListens,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from policies.egress import Permit
from policies.trace import ONWARD
from transport import outbound
from transport.connections import ConnectionPool
from transport.runtimes.plain_http import CONNECTIONS_MAX, POOL_S, WRITE_S, Failure, HttpFailure, PlainTransport

CONNECT_S: Final = 2.0
_KEY: Final = re.compile(r"[!-~]{1,4096}")  # what may stand in a header
CLOSE_S: Final = 1.0
ERROR_S: Final = 5.0  # for the body of a refusal
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
ERROR_BYTES_MAX: Final = 64 * 1024

Transport = httpx.AsyncBaseTransport | PlainTransport | ConnectionPool
_LIMITS: Final = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0)
_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "wf-engine"}
_NOTHING: Final[Mapping[str, str]] = {}
_PORTS: Final = {"http": 80, "https": 443}
_TARGET_SAFE: Final = "/?&=%:@!$'()*+,;~"  # stays as it is in a path with its query

# What a failure is to us, and the rest of the sentence "NAME at URL …".
_FAULTS: Final[Mapping[Failure, tuple[type[RuntimeFault], str]]] = {
    Failure.CONNECT_TIMEOUT: (RuntimeUnavailable, "did not take a connection within {connect_s:g} s"),
    Failure.NO_CONNECTION: (NobodyListens, "does not answer: nothing listens there"),
    Failure.NOT_PERMITTED: (RuntimeUnavailable, "is outside this machine, and nothing permits to go there"),
    Failure.NO_TLS: (RuntimeUnavailable, "shows no certificate for its name that can be trusted, or speaks no TLS"),
    Failure.CONNECTIONS_IN_USE: (RuntimeUnavailable, "has all of our connections in use, the most allowed"),
    Failure.WRITE_TIMEOUT: (UpstreamTimeout, f"did not read the request for {WRITE_S:g} s"),
    Failure.NO_HTTP: (UpstreamProtocolError, "broke off or does not speak HTTP"),
    Failure.BROKEN: (RuntimeUnavailable, "broke the connection before it answered"),
    Failure.UNREACHABLE: (RuntimeUnavailable, "cannot be reached"),
    Failure.MALFORMED_BODY: (UpstreamProtocolError, "sent a body that is not HTTP"),
    Failure.TRUNCATED: (UpstreamTruncated, "broke the connection inside its answer"),
}
# What httpx calls a failure before the head; the first match wins.
_BEFORE_HEAD: Final[tuple[tuple[type[httpx.HTTPError], Failure], ...]] = (
    (httpx.ConnectTimeout, Failure.CONNECT_TIMEOUT),
    (httpx.ConnectError, Failure.NO_CONNECTION),
    (httpx.PoolTimeout, Failure.CONNECTIONS_IN_USE),
    (httpx.WriteTimeout, Failure.WRITE_TIMEOUT),
    (httpx.ProtocolError, Failure.NO_HTTP),
    (httpx.NetworkError, Failure.BROKEN),
    (httpx.HTTPError, Failure.UNREACHABLE),
)


def check_credentials(name: str, url: str, api_key: str | None) -> None:
    """Raises ConfigError when the URL holds a password, or the key cannot stand in a header."""
    if "@" in urlsplit(url).netloc:
        raise ConfigError(f"the URL of {name} holds a user or a password; give an API key instead")
    if api_key is not None and not _KEY.fullmatch(api_key):
        raise ConfigError(f"the API key of {name} holds blanks or characters that cannot stand in a header")


def unix_socket(path: str) -> Transport:
    """The way to a server that listens on the socket at `path`; the host in its URL is only a name then."""
    return PlainTransport(partial(outbound.connect_unix, path))


@attrs.frozen
class Answer:
    """A whole response."""

    status: int
    body: bytes
    retry_after: str | None = None


class _Way(Protocol):
    """How requests go out. Raises HttpFailure."""

    async def send(self, method: str, path: str, body: bytes, onward: Mapping[str, str]) -> _Response: ...


class _Response(Protocol):
    """What came back. `read` gives None at the end of the body and raises HttpFailure; `aclose` is cut after 1 s."""

    @property
    def status(self) -> int: ...

    def header(self, name: str) -> str | None: ...

    async def read(self) -> bytes | None: ...

    async def aclose(self) -> None: ...


@attrs.define(eq=False)
class Upstream:
    """One runtime at `url`. `name` stands in its errors. `transport` is another way to it than a connection for every
    request: a ConnectionPool of that server, `unix_socket`, a PlainTransport on other streams, or one of httpx, such as
    a network in memory for tests. `headers` go out with every
    request and nowhere else: they may hold a key. Those of `policies.trace.ONWARD` go out too, on this machine.
    `permit` is needed to reach another machine.

    Raises RuntimeUnavailable, UpstreamTimeout and UpstreamProtocolError. Cancelled anywhere: the connection is closed.
    """

    name: str
    url: str
    transport: Transport | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    connect_s: float = CONNECT_S
    permit: Permit | None = None
    _way: _Way = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        url, transport = httpx.URL(self.url), self.transport
        headers = {**_HEADERS, **self.headers}
        keeps = isinstance(transport, ConnectionPool)
        if isinstance(transport, ConnectionPool):
            at = (url.raw_host.decode("ascii"), url.port or _PORTS.get(url.scheme), url.scheme == "https")
            if at != (transport.host, transport.port, transport.tls):
                raise ValueError(f"{self.name}: these connections go elsewhere than to {self.url}")
            permitted = transport.under(self.permit)
            transport = PlainTransport(permitted.connect, kept=permitted)
        elif transport is None:
            if url.scheme not in _PORTS or not url.host:
                raise ValueError(f"{self.name}: {self.url} is neither http nor https")
            connect = partial(
                outbound.connect,
                url.raw_host.decode("ascii"),
                url.port or _PORTS[url.scheme],
                tls=url.scheme == "https",
                permit=self.permit,
            )
            transport = PlainTransport(connect)
        elif isinstance(transport, PlainTransport) and url.scheme != "http":
            raise ValueError(f"{self.name}: a plain transport carries http, and {self.url} is not")
        if isinstance(transport, PlainTransport):
            self._way = _Plain.to(url, transport, headers, self.connect_s, keeps)
        else:
            self._way = _Library.to(url, transport, headers, self.connect_s)

    def under(self, permit: Permit) -> Upstream:
        """The same server, to be reached with this permit."""
        return attrs.evolve(self, permit=permit)

    @asynccontextmanager
    async def open_stream(
        self, method: str, path: str, body: bytes = b"", *, head_timeout_s: float
    ) -> AsyncIterator[UpstreamResponse]:
        """Send and wait at most `head_timeout_s` for the head; the body is then read as it comes, without a time
        limit. Leaving the context closes the connection, which is how a runtime is told to stop."""
        response = UpstreamResponse(self, await self._send(method, path, body, head_timeout_s))
        try:
            response.refuse_encoding()
            yield response
        finally:
            await response.aclose()

    async def ask(
        self, method: str, path: str, content: bytes = b"", *, timeout_s: float, size_max: int = ANSWER_BYTES_MAX
    ) -> Answer:
        """A whole response of at most `size_max` bytes within `timeout_s`."""
        try:
            with trio.fail_after(timeout_s):
                async with self.open_stream(method, path, content, head_timeout_s=timeout_s) as response:
                    body = await response.read(size_max)
                    return Answer(response.status, body, response.header("retry-after"))
        except trio.TooSlowError:
            raise self._too_slow(timeout_s) from None

    async def _send(self, method: str, path: str, body: bytes, timeout_s: float) -> _Response:
        try:
            with trio.fail_after(timeout_s):
                onward = _NOTHING if self.permit is not None else ONWARD.get()
                return await self._way.send(method, path, body, onward)
        except trio.TooSlowError:
            raise self._too_slow(timeout_s) from None
        except HttpFailure as error:
            raise self.fault(error) from error

    def _too_slow(self, timeout_s: float) -> UpstreamTimeout:
        return UpstreamTimeout(f"{self.name} at {self.url} did not answer within {timeout_s:g} s", limit_s=timeout_s)

    def fault(self, error: HttpFailure) -> RuntimeFault:
        """What a failed exchange is to the engine."""
        fault, text = _FAULTS[error.failure]
        return fault(f"{self.name} at {self.url} {text.format(connect_s=self.connect_s)}")


@attrs.define(eq=False)
class UpstreamResponse:
    """The head of a response, and its body as an iterator of the bytes of each read, unchanged. What a server sends
    together may come in one read, in however many chunks; a chunk may come in several."""

    _upstream: Upstream
    _response: _Response

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str | None:
        return self._response.header(name)

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> bytes:
        """Raises as `next`."""
        data = await self.next()
        if data is None:
            raise StopAsyncIteration
        return data

    async def next(self) -> bytes | None:
        """The next read, None at the end. Raises UpstreamTruncated when the connection breaks inside the body."""
        try:
            return await self._response.read()
        except HttpFailure as error:
            raise self._upstream.fault(error) from error

    async def next_within(self, timeout_s: float) -> bytes | None:
        """The next read, None at the end. Raises UpstreamTimeout after `timeout_s` of silence."""
        with trio.move_on_after(timeout_s):
            return await anext(self, None)
        raise UpstreamTimeout(f"{self._upstream.name} sent nothing for {timeout_s:g} s", limit_s=timeout_s)

    async def read(self, size_max: int) -> bytes:
        """The whole body. Raises UpstreamProtocolError when it is larger than `size_max` bytes."""
        body = bytearray()
        await self._collect(body, size_max + 1)
        if len(body) > size_max:
            raise UpstreamProtocolError(f"{self._upstream.name} answered more than {size_max} bytes", limit=size_max)
        return bytes(body)

    async def read_error(self) -> bytes:
        """What a refusal says: its first 64 KiB, or what came of it within 5 s or until the connection broke."""
        body = bytearray()
        with trio.move_on_after(ERROR_S), suppress(RuntimeFault):
            await self._collect(body, ERROR_BYTES_MAX)
        return bytes(body[:ERROR_BYTES_MAX])

    async def _collect(self, body: bytearray, size: int) -> None:
        async for data in self:
            body += data
            if len(body) >= size:
                return

    def refuse_encoding(self) -> None:
        """A small compressed body can become gigabytes; we said `identity`."""
        encoding = self.header("content-encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            raise UpstreamProtocolError(f"{self._upstream.name} sent a compressed body although asked not to")

    async def aclose(self) -> None:
        """Close the connection now, whatever is still on its way. Also when already cancelled; takes at most 1 s."""
        with trio.move_on_after(CLOSE_S, shield=True):
            await self._response.aclose()


@attrs.define(eq=False)
class _Plain:
    """Our own way."""

    _transport: PlainTransport
    _prefix: str  # of every path
    _headers: tuple[tuple[bytes, bytes], ...]
    _connect_s: float

    @classmethod
    def to(
        cls, url: httpx.URL, transport: PlainTransport, headers: Mapping[str, str], connect_s: float, keeps: bool
    ) -> _Plain:
        pairs = {name.lower().encode("ascii"): value.encode("ascii") for name, value in headers.items()}
        if url.userinfo:
            pairs[b"authorization"] = b"Basic " + b64encode(f"{url.username}:{url.password}".encode())
        prefix = url.raw_path.decode("ascii").rstrip("/")
        # Servers that keep connections need not keep one that we do not.
        closing = () if keeps else ((b"connection", b"close"),)
        return cls(transport, prefix, ((b"host", url.netloc), *closing, *pairs.items()), connect_s)

    async def send(self, method: str, path: str, body: bytes, onward: Mapping[str, str]) -> _Response:
        target = self._prefix + quote(path, safe=_TARGET_SAFE)
        headers = (*self._headers, (b"content-type", b"application/json")) if body else self._headers
        if onward:
            headers += tuple((name.encode("ascii"), value.encode("ascii")) for name, value in onward.items())
        return await self._transport.send(method, target, headers, body, connect_s=self._connect_s)


@attrs.define(eq=False)
class _Library:
    """The way of httpx, on a network in memory."""

    _client: httpx.AsyncClient

    @classmethod
    def to(
        cls, url: httpx.URL, transport: httpx.AsyncBaseTransport, headers: Mapping[str, str], connect_s: float
    ) -> _Library:
        client = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            verify=False,  # there is no network under it
            headers=dict(headers),
            limits=_LIMITS,
            # Waiting for the head and for the body is bounded per call, by trio deadlines.
            timeout=httpx.Timeout(connect=connect_s, write=WRITE_S, pool=POOL_S, read=None),
        )
        return cls(client)

    async def send(self, method: str, path: str, body: bytes, onward: Mapping[str, str]) -> _Response:
        headers = dict(onward) | ({"content-type": "application/json"} if body else {})
        request = self._client.build_request(method, path, content=body, headers=headers)
        request.stream = _Body(body)
        try:
            return _LibraryResponse(await self._client.send(request, stream=True))
        except httpx.HTTPError as error:
            raise HttpFailure(next(failure for kind, failure in _BEFORE_HEAD if isinstance(error, kind))) from error


@attrs.define(eq=False)
class _LibraryResponse:
    _response: httpx.Response
    _reads: AsyncIterator[bytes] = attrs.field(init=False)
    _reading: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._reads = self._response.aiter_raw()

    @property
    def status(self) -> int:
        return self._response.status_code

    def header(self, name: str) -> str | None:
        value: str | None = self._response.headers.get(name)
        return value

    async def read(self) -> bytes | None:
        self._reading = True
        try:
            return await anext(self._reads, None)
        except httpx.HTTPError as error:
            # "peer closed …" are h11's words for a connection that ended too early; its other faults are broken framing
            malformed = isinstance(error, httpx.ProtocolError) and "peer closed connection" not in str(error)
            raise HttpFailure(Failure.MALFORMED_BODY if malformed else Failure.TRUNCATED) from error

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            await self._end_reads()

    async def _end_reads(self) -> None:
        """httpx nests five async generators and closes none of the inner ones. Left to the garbage collector, trio
        warns of each. One more step ends them all: it fails on the closed connection, or is cancelled."""
        with trio.CancelScope(shield=True) as scope:
            scope.cancel()
            while self._reading:
                try:
                    await anext(self._reads)
                except (StopAsyncIteration, httpx.HTTPError):
                    break


class _Body(httpx.ByteStream):
    """A request body that is no async generator: those of httpx are left unfinished when a write is cancelled."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._parts = iter((body,) if body else ())

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration
