"""An Ollama that answers what the engine asks of it for itself, and plays `replies` to what clients ask; in virtual
time."""

from __future__ import annotations

import json
from typing import Any

import attrs
import httpx

from actors.clock import EngineClock
from tests.fakes.ollama import Reply, ScriptedOllama, whole
from transport.runtimes.ollama import OllamaRuntime

MODELS = ("m:latest", "n:1b")


@attrs.define(eq=False)
class ListeningOllama(ScriptedOllama):
    """`asked` are the clients' requests: path and the bytes of the body. Loads and lists are always answered; `running`
    is what it says is in its memory."""

    replies: dict[str, list[Reply | Exception]] = attrs.field(factory=dict)
    asked: list[tuple[str, bytes]] = attrs.field(factory=list)
    running: list[dict[str, Any]] = attrs.field(factory=list)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        own = self._own(request.url.path, await request.aread())
        if own is not None:
            return httpx.Response(own.status, headers=own.headers, stream=own.body)
        self.asked.append((request.url.path, await request.aread()))
        return await ScriptedOllama.handle(self, request)

    def runtime(self, clock: EngineClock) -> OllamaRuntime:
        """To be given to `running_api`."""
        return OllamaRuntime(clock, transport=self.transport)

    def plays(self, path: str, *replies: Reply | Exception) -> ListeningOllama:
        self.replies.setdefault(path, []).extend(replies)
        return self

    def body(self, index: int = -1) -> Any:
        """What a client's request became."""
        return json.loads(self.asked[index][1])

    def _own(self, path: str, body: bytes) -> Reply | None:
        match path:
            case "/api/version":
                return whole({"version": "0.13.0"})
            case "/api/tags":
                return whole({"models": [{"name": name, "model": name, "size": 1000} for name in MODELS]})
            case "/api/ps":
                return whole({"models": self.running})
            case "/api/generate" if "prompt" not in json.loads(body):
                return whole({"model": "m:latest", "response": "", "done": True, "done_reason": "load"})
        return None
