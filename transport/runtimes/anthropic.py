"""The runtime `anthropic`: the Messages API of Anthropic, reached through the broker alone.

It answers, and no more: nothing loads or unloads there, and what its models are called is said by the configuration,
because asking for a list would leave this machine for nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar, Final
from urllib.parse import urlsplit

import attrs
import trio

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, Clock, GenerationRequest
from engine.domain.models import Loaded, ModelInfo, Probe
from policies.egress import Permit, stays_here
from transport.runtimes.forwarding import hear_out, next_read
from transport.runtimes.memory_untold import MemoryUntold
from transport.runtimes.upstream import Transport, Upstream, UpstreamResponse, check_credentials
from transport.wire import anthropic as wire
from transport.wire import anthropic_requests as asking

URL_DEFAULT: Final = "https://api.anthropic.com"
CONNECT_S: Final = 5.0  # with TLS, and over the internet
HEAD_S: Final = 300.0
_SECONDS: Final = re.compile(r"[0-9]{1,5}")


def _without_version(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


@attrs.define(eq=False)
class AnthropicRuntime(MemoryUntold):
    """Implements `Runtime`. `url` with or without `/v1`. `api_key` goes out in the header of every request and nowhere
    else. Creating one raises ConfigError when the key cannot stand in a header or the URL holds a password. Calls raise
    RuntimeFault, ModelNotFound, Overloaded (429, 529) and InvalidRequest."""

    clock: Clock
    url: str = attrs.field(default=URL_DEFAULT, converter=_without_version)
    name: str = "anthropic"
    api_key: str | None = attrs.field(default=None, repr=False)
    transport: Transport | None = None
    permit: Permit | None = None  # to reach it on another machine
    late_records: int = attrs.field(default=0, init=False)  # after `message_stop`
    _upstream: Upstream = attrs.field(init=False)

    kind: ClassVar[str] = "anthropic"

    def __attrs_post_init__(self) -> None:
        check_credentials(self.name, self.url, self.api_key)
        headers = {"anthropic-version": asking.VERSION}
        if self.api_key is not None:
            headers["x-api-key"] = self.api_key
        self._upstream = Upstream(self.name, self.url, self.transport, headers, CONNECT_S, self.permit)

    def under(self, permit: Permit) -> AnthropicRuntime:
        """The same server, to be reached with this permit."""
        twin = copy.copy(self)
        twin.permit, twin._upstream = permit, self._upstream.under(permit)
        return twin

    @property
    def local(self) -> bool:
        """True when the server is on this machine."""
        return stays_here(urlsplit(self.url).hostname or "")

    async def probe(self) -> Probe:
        """Asks nobody."""
        await trio.lowlevel.checkpoint()
        return Probe(up=True)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """None: the configuration names them."""
        await trio.lowlevel.checkpoint()
        return ()

    async def load(self, model: str) -> Loaded:
        """Loads nothing, and asks nobody."""
        await trio.lowlevel.checkpoint()
        return Loaded(resident_bytes=None, load_ms=None)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer. Refusals are raised on entering. A connection that breaks before `message_stop` raises
        UpstreamTruncated, and a stream that just stops ends the iterator. Leaving closes the connection."""
        body = asking.request_body(request)
        async with self._upstream.open_stream("POST", asking.MESSAGES_PATH, body, head_timeout_s=HEAD_S) as response:
            if response.status != 200:
                raise await self._refusal(response, request.model)
            stream = wire.ChunkStream(secret=self.api_key or "")
            try:
                async with aclosing(self._chunks(response, stream)) as chunks:
                    yield chunks
                if stream.ended:
                    await hear_out(response, stream)
            finally:
                self.late_records += stream.late_records

    async def _chunks(self, response: UpstreamResponse, stream: wire.ChunkStream) -> AsyncGenerator[Chunk, None]:
        """Stamped per read, which is what one read of the socket brought."""
        while (data := await next_read(response, stream)) is not None:
            t_us = self.clock()
            for chunk in stream.feed(data, t_us):
                yield chunk
            if stream.ended:
                return
        for chunk in stream.finish(self.clock()):
            yield chunk

    async def _refusal(self, response: UpstreamResponse, model: str) -> EngineError:
        text = wire.error_text(await response.read_error())
        error = wire.refusal(response.status, text, model, self.name, self.api_key or "")
        retry_after = response.header("retry-after") or ""
        if "retry_after_s" in error.details and _SECONDS.fullmatch(retry_after):
            error.details["retry_after_s"] = int(retry_after)
        return error
