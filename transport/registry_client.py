"""A registry of agents somewhere else, over HTTP. Only what we say of our own services goes there."""

from __future__ import annotations

from typing import Final

import attrs
import msgspec

from actors.registrar import OwnAgent
from engine.domain.errors import NotFound, UpstreamProtocolError
from transport.runtimes.upstream import Transport, Upstream

ANSWER_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 65_536


@attrs.define(eq=False)
class RemoteRegistry:
    """The registry at `url`. Raises RuntimeUnavailable, UpstreamTimeout and UpstreamProtocolError; NotFound where it
    does not know the agent, or has no such call."""

    url: str
    transport: Transport | None = None
    _upstream: Upstream = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._upstream = Upstream("the registry", self.url.rstrip("/"), self.transport)

    async def register(self, agent: OwnAgent) -> None:
        await self._post("/register", msgspec.json.encode(attrs.asdict(agent.card())))  # fields in their order

    async def heartbeat(self, agent: OwnAgent) -> None:
        body = {"agent_id": agent.agent_id, "status": agent.status()}
        await self._post("/heartbeat", msgspec.json.encode(body))

    async def deregister(self, agent: OwnAgent) -> None:
        await self._post("/deregister", msgspec.json.encode({"agent_id": agent.agent_id}))

    async def _post(self, path: str, body: bytes) -> None:
        answer = await self._upstream.ask("POST", path, body, timeout_s=ANSWER_S, size_max=ANSWER_BYTES_MAX)
        if answer.status == 404:
            raise NotFound(f"the registry at {self.url} answers 404 to {path}")
        if not 200 <= answer.status < 300:
            raise UpstreamProtocolError(f"the registry at {self.url} answers {answer.status} to {path}")
