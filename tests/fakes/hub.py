"""Hugging Face on a network in memory."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import attrs
import httpx

from tests.fakes.ollama import Body, Send, Step
from transport.runtimes.llama_cpp.hub import HuggingFace

REPO = "org/model-GGUF"
TREE = f"/api/models/{REPO}/tree/main"
STORE = "https://cas-bridge.xethub.hf.co"
TOKEN = "hf_this-is-secret"
WEIGHTS = bytes(range(256)) * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listed(path: str, data: bytes = WEIGHTS, **values: Any) -> dict[str, Any]:
    stored = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return {"type": "file", "oid": "0" * 40, "size": len(data), "path": path, "lfs": stored} | values


def answer(status: int, data: object = b"", **headers: str) -> httpx.Response:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, stream=Body([Send(body)] if body else []))


@attrs.define(eq=False)
class FakeHub:
    """Hugging Face and its store. `steps` are the bodies of the next answers of the store, in order; without one it
    sends what was asked for. `answers` take the place of an answer, by path."""

    files: list[dict[str, Any]]
    data: bytes = WEIGHTS
    steps: list[list[Step]] = attrs.field(factory=list)
    answers: dict[str, httpx.Response | Exception] = attrs.field(factory=dict)
    location: str = f"{STORE}/blob/1?X-Signature=a%2Fb&x=1"
    ranges: bool = True
    requests: list[httpx.Request] = attrs.field(factory=list)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path in self.answers:
            instead = self.answers[request.url.path]
            if isinstance(instead, Exception):
                raise instead
            return instead
        if request.url.path == TREE:
            return answer(200, self.files)
        if request.url.host == "huggingface.co":
            return answer(302, location=self.location)
        begin = int(request.headers.get("range", "bytes=0-")[6:-1]) if self.ranges else 0
        body = Body(self.steps.pop(0) if self.steps else [Send(self.data[begin:])])
        if begin == 0:
            return httpx.Response(200, stream=body)
        content_range = f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}"
        return httpx.Response(206, headers={"content-range": content_range}, stream=body)

    @property
    def hub(self) -> HuggingFace:
        return HuggingFace(token=TOKEN, transport=httpx.MockTransport(self.handle))

    @property
    def asked(self) -> list[str]:
        return [str(request.url) for request in self.requests]
