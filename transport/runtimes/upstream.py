"""The one HTTP client for runtimes: what it sends, what it refuses, how long it waits, and how it lets go.

A prompt must reach the runtime and nobody else, so no proxy or other setting is taken from the environment and no
redirect is followed. Every request has its own connection (0.1 ms on loopback): nothing idle is kept, so nothing is
stale and there is nothing to close at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import attrs
import httpx  # the only place that knows the library
import trio

from engine.domain.errors import (
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)

CONNECT_S: Final = 2.0
WRITE_S: Final = 30.0  # for one piece of a request
POOL_S: Final = 5.0  # for one of the connections
CLOSE_S: Final = 1.0
ERROR_S: Final = 5.0  # for the body of a refusal
CONNECTIONS_MAX: Final = 128
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
ERROR_BYTES_MAX: Final = 64 * 1024

Transport = httpx.AsyncBaseTransport
_LIMITS: Final = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0)

# First match wins. What httpx calls it, what it is to us, and the rest of the sentence "NAME at URL …".
_Faults = tuple[tuple[type[httpx.HTTPError], type[RuntimeFault], str], ...]
_BEFORE_HEAD: Final[_Faults] = (
    (httpx.ConnectTimeout, RuntimeUnavailable, "did not take a connection within {connect_s:g} s"),
    (httpx.ConnectError, RuntimeUnavailable, "does not answer: nothing listens there"),
    (httpx.PoolTimeout, RuntimeUnavailable, f"has all of our {CONNECTIONS_MAX} connections in use"),
    (httpx.WriteTimeout, UpstreamTimeout, f"did not read the request for {WRITE_S:g} s"),
    (httpx.ProtocolError, UpstreamProtocolError, "broke off or does not speak HTTP"),
    (httpx.NetworkError, RuntimeUnavailable, "broke the connection before it answered"),
    (httpx.HTTPError, RuntimeUnavailable, "cannot be reached"),
)
_IN_BODY: Final[_Faults] = (
    (httpx.ProtocolError, UpstreamProtocolError, "sent a body that is not HTTP"),
    (httpx.HTTPError, UpstreamTruncated, "broke the connection inside its answer"),
)


def unix_socket(path: str) -> Transport:
    """The way to a server that listens on the socket at `path`; the host in its URL is only a name then."""
    return httpx.AsyncHTTPTransport(uds=path, verify=False, trust_env=False, limits=_LIMITS)


@attrs.frozen
class Answer:
    """A whole response."""

    status: int
    body: bytes
    retry_after: str | None = None


@attrs.define(eq=False)
class Upstream:
    """One runtime at `url`. `name` stands in its errors. `transport` is another way to it than TCP: `unix_socket`, or a
    network in memory for tests. `headers` go out with every request and nowhere else: they may hold a key.

    Raises RuntimeUnavailable, UpstreamTimeout and UpstreamProtocolError. Cancelled anywhere: the connection is closed.
    """

    name: str
    url: str
    transport: Transport | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    connect_s: float = CONNECT_S
    _client: httpx.AsyncClient = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._client = httpx.AsyncClient(
            base_url=self.url,
            transport=self.transport,
            trust_env=False,
            follow_redirects=False,
            verify=urlsplit(self.url).scheme == "https",  # reading all certificates costs 30 ms, and http has none
            headers={"accept-encoding": "identity", "user-agent": "wf-engine", **self.headers},
            limits=_LIMITS,
            # Waiting for the head and for the body is bounded per call, by trio deadlines.
            timeout=httpx.Timeout(connect=self.connect_s, write=WRITE_S, pool=POOL_S, read=None),
        )

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

    async def _send(self, method: str, path: str, body: bytes, timeout_s: float) -> httpx.Response:
        headers = {"content-type": "application/json"} if body else {}
        request = self._client.build_request(method, path, content=body, headers=headers)
        request.stream = _Body(body)
        try:
            with trio.fail_after(timeout_s):
                return await self._client.send(request, stream=True)
        except trio.TooSlowError:
            raise self._too_slow(timeout_s) from None
        except httpx.HTTPError as error:
            raise self.fault(error, _BEFORE_HEAD) from error

    def _too_slow(self, timeout_s: float) -> UpstreamTimeout:
        return UpstreamTimeout(f"{self.name} at {self.url} did not answer within {timeout_s:g} s", limit_s=timeout_s)

    def fault(self, error: httpx.HTTPError, table: _Faults) -> RuntimeFault:
        """What an error of the library is to the engine."""
        for kind, fault, text in table:
            if isinstance(error, kind):
                return fault(f"{self.name} at {self.url} {text.format(connect_s=self.connect_s)}")
        raise AssertionError("both tables end with httpx.HTTPError")


@attrs.define(eq=False)
class UpstreamResponse:
    """The head of a response, and its body as an iterator of the bytes of each read, unchanged."""

    _upstream: Upstream
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

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> bytes:
        """Raises UpstreamTruncated when the connection breaks inside the body."""
        self._reading = True
        try:
            return await anext(self._reads)
        except httpx.RemoteProtocolError as error:
            # h11's words for a connection that ended too early; its other faults are broken framing
            table = _IN_BODY[1:] if "peer closed connection" in str(error) else _IN_BODY
            raise self._upstream.fault(error, table) from error
        except httpx.HTTPError as error:
            raise self._upstream.fault(error, _IN_BODY) from error

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
        with trio.CancelScope() as scope:
            # httpx nests five async generators and closes none of the inner ones. Left to the garbage collector, trio
            # warns of each. One more step ends them all: it fails on the closed connection, or is cancelled.
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
