"""The runtime `openai`: any server, here or elsewhere, that speaks OpenAI's chat completions: llama.cpp's server, vLLM,
LM Studio and others; with `hosted` OpenAI itself and OpenRouter, whose servers refuse what the API has no word for.

The API says little about models: neither their size nor the memory they take, so both are null, and nothing loads or
unloads them.

Whether a model gives log-probabilities shows in its answers only; the capability is listed once one had them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import attrs
import msgspec

from engine.domain.errors import (
    EngineError,
    ModelNotFound,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
)
from engine.domain.generation import Chunk, Clock, Dialect, GenerationRequest
from engine.domain.models import Capability, Loaded, ModelInfo, Probe, is_model_name
from engine.domain.runtime import Embeddings, EmbedRequest, Forwarded, ForwardRequest
from policies.egress import Permit, stays_here
from transport.runtimes.embeddings import EMBED_BYTES_MAX, EMBED_S, vectors_of
from transport.runtimes.forwarding import Instead, forwarding, hear_out, next_read, refuse_path
from transport.runtimes.memory_untold import MemoryUntold
from transport.runtimes.reads import ChunkReads
from transport.runtimes.upstream import CONNECT_S, Transport, Upstream, UpstreamResponse, check_credentials
from transport.wire import openai as wire
from transport.wire import openai_requests as asking
from transport.wire.requests import gave_no_logprobs

PROBE_S: Final = 2.0
LIST_S: Final = 10.0
HOSTED_CONNECT_S: Final = 5.0  # with TLS, and over the internet
HEAD_S: Final = 300.0  # for the head of an answer: it may come with the first token
FORWARD_PATHS: Final = frozenset({asking.CHAT_PATH, asking.COMPLETIONS_PATH})
_SECONDS: Final = re.compile(r"[0-9]{1,5}")
_body_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@attrs.define
class OpenAICounters:
    """What happened since the start; `unnameable_models` are those of the last listing."""

    without_logprobs: int = 0  # requests repeated without log-probabilities
    late_records: int = 0  # after `[DONE]`
    cut_streams: int = 0  # ended inside an event
    done_missing: int = 0  # answers that ended with their `finish_reason` and no `[DONE]`
    unnameable_models: int = 0  # llama.cpp takes the path as name: start it with --alias


def _to_be_continued(body: bytes) -> bytes:
    """With the words of llama.cpp, vLLM and SGLang for going on with the last message. A server that does not know them
    refuses the request, or begins an answer of its own."""
    fields: dict[str, Any] = dict(_body_decoder.decode(body))
    return msgspec.json.encode(fields | {"continue_final_message": True, "add_generation_prompt": False})


def _without_version(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


@attrs.define(eq=False)
class OpenAIRuntime(MemoryUntold):
    """Implements `Runtime`, `Forwarder` and `Embedder`. `url` is the server's, with or without `/v1`. `api_key` goes
    out in the header of every request and nowhere else.

    Creating one raises ConfigError when the key cannot stand in a header or the URL holds a password. Calls raise
    RuntimeFault and ModelNotFound, and also Overloaded (429, 503) and InvalidRequest (400: the model cannot do what was
    asked). Nothing is tried again but a request refused for its log-probabilities: once, without them.
    """

    clock: Clock
    url: str = attrs.field(converter=_without_version)
    name: str = "openai"
    api_key: str | None = attrs.field(default=None, repr=False)
    transport: Transport | None = None
    permit: Permit | None = None  # to reach it on another machine
    list_s: float = LIST_S  # for its list of models
    hosted: bool = False  # a provider of the OpenAI API itself, or of OpenRouter's
    counters: OpenAICounters = attrs.field(factory=OpenAICounters, init=False)
    _upstream: Upstream = attrs.field(init=False)
    _with_logprobs: set[str] = attrs.field(factory=set, init=False)  # models that gave some, both of those listed
    _without_logprobs: set[str] = attrs.field(factory=set, init=False)  # models that refuse them
    _gave_no_logprobs: set[str] = attrs.field(factory=set, init=False)  # models that passed over the question
    _forwards_without_logprobs: set[tuple[str, str, bool]] = attrs.field(factory=set, init=False)  # model, path, tools
    _tools_without_logprobs: set[str] = attrs.field(factory=set, init=False)  # those that do so beside tools

    kind: ClassVar[str] = "openai"
    dialects: ClassVar[frozenset[Dialect]] = frozenset({Dialect.OPENAI})

    def __attrs_post_init__(self) -> None:
        check_credentials(self.name, self.url, self.api_key)
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        connect_s = HOSTED_CONNECT_S if self.hosted else CONNECT_S
        self._upstream = Upstream(self.name, self.url, self.transport, headers, connect_s, self.permit)

    def under(self, permit: Permit) -> OpenAIRuntime:
        """The same server, to be reached with this permit. What is learned of its models is shared."""
        twin = copy.copy(self)
        twin.permit, twin._upstream = permit, self._upstream.under(permit)
        return twin

    @property
    def local(self) -> bool:
        """True when the server is on this machine."""
        return stays_here(urlsplit(self.url).hostname or "")

    async def probe(self) -> Probe:
        try:
            answer = await self._upstream.ask("GET", wire.MODELS_PATH, timeout_s=PROBE_S)
        except RuntimeFault as error:
            return Probe(up=False, reason=error.message)
        asked = f"{self.url} (GET {wire.MODELS_PATH}: {answer.status})"
        if answer.status in (401, 403):
            return Probe(up=False, reason=f"{asked} refuses us; is its API key right?")
        if answer.status == 503:
            return Probe(up=False, reason=f"{asked} is busy; it may still be loading its model")
        with suppress(UpstreamProtocolError):
            if answer.status == 200:
                wire.listed_models(answer.body)
                return Probe(up=True)
        return Probe(up=False, reason=f"what answers at {asked} is no OpenAI-compatible server; set its URL")

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """In the server's order. Names outside the engine's grammar (such as paths) are left out and counted."""
        listed = await self._listed()
        names = {model.id for model in listed}
        self._with_logprobs &= names
        self._without_logprobs &= names
        self._gave_no_logprobs &= names
        self._tools_without_logprobs &= names
        self._forwards_without_logprobs = {key for key in self._forwards_without_logprobs if key[0] in names}
        named = {model.id: model for model in listed if is_model_name(model.id)}
        self.counters.unnameable_models = len(names) - len(named)
        return tuple(self._info(model) for model in named.values())

    async def load(self, model: str) -> Loaded:
        """Loads nothing: the server does that by itself, with the first request or before it listens. Raises
        ModelNotFound when it does not list `model`. Both figures are null: nobody can tell."""
        if all(listed.id != model for listed in await self._listed()):
            raise ModelNotFound(f"{self.name} has no model {model}", model=model)
        return Loaded(resident_bytes=None, load_ms=None)

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what cannot be said in this dialect, and for log-probabilities that the caller
        wants of a model that gave none before."""
        if request.logprobs_wanted and request.model in self._gave_no_logprobs:
            raise gave_no_logprobs(request.model)
        asking.check(request, hosted=self.hosted)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer. Refusals are raised on entering. An answer is whole with its `finish_reason`: from then on
        a broken connection, or 2 s of silence, only means that the counts are missing. Before it, a connection that
        breaks raises UpstreamTruncated and a stream that just stops ends the iterator. Leaving closes the
        connection.

        Log-probabilities that the caller wants are not left out: a model that refuses them, or gave none before,
        refuses the request."""
        self.check(request)
        without = self._tools_without_logprobs if request.tools else self._without_logprobs
        logprobs = request.logprobs_wanted or request.model not in without
        while True:
            body = asking.request_body(request, logprobs=logprobs, hosted=self.hosted)
            path = asking.request_path(request)
            body = _to_be_continued(body) if request.continues else body
            async with self._upstream.open_stream("POST", path, body, head_timeout_s=HEAD_S) as response:
                if response.status == 200:
                    if not logprobs:
                        without.add(request.model)
                    stream = wire.ChunkStream(secret=self.api_key or "")
                    try:
                        yield ChunkReads(partial(next_read, response, stream), stream, self.clock, self._told)
                        if stream.ended:
                            await hear_out(response, stream)
                    finally:
                        self._learn(request.model, stream, in_vain=logprobs and not request.tools and not request.raw)
                    return
                error, text = await self._refusal(response, request.model)
            if request.logprobs_wanted or not (logprobs and wire.about_logprobs(response.status, text)):
                raise error
            self.counters.without_logprobs += 1
            logprobs = False

    @asynccontextmanager
    async def forward(self, request: ForwardRequest) -> AsyncIterator[Forwarded]:
        """Hand on a client's request and the answer to it, see `forwarding`. The key goes out with it, and errors that
        are raised do not hold it; the bytes of the answer are the server's own. Raises InvalidRequest for a path that
        is not forwarded.

        `request.without_logprobs` is the same request, asking for no log-probabilities: it is sent when they are
        refused (as llama.cpp does beside tools), so that a client which never asked for them gets its answer. Nothing
        else is tried again."""
        paths = FORWARD_PATHS if request.dialect in self.dialects else frozenset[str]()
        refuse_path(paths, request, self.name)
        instead = Instead(self._concedes_logprobs, self._forwards_without_logprobs)
        stream = wire.ChunkStream(secret=self.api_key or "")
        whole_answer = partial(wire.whole_answer, secret=self.api_key or "")
        try:
            async with forwarding(self._upstream, request, self.clock, stream, whole_answer, instead=instead) as answer:
                yield answer
        finally:
            self._learn(request.model, stream)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors. Raises InvalidRequest when the model cannot, or a text is too long for it: this API
        has no word for cutting it."""
        body = asking.embed_body(request)
        answer = await self._upstream.ask("POST", asking.EMBED_PATH, body, timeout_s=EMBED_S, size_max=EMBED_BYTES_MAX)
        if answer.status != 200:
            error, _ = self._refused(answer.status, answer.body, answer.retry_after, request.model)
            raise error
        found = wire.embedded(answer.body)
        vectors = await vectors_of(found.in_order(), len(request.inputs), self.name)
        return Embeddings(vectors, found.usage.prompt_tokens if found.usage else None)

    # ── one answer ──

    def _told(self, chunk: Chunk) -> Chunk:
        """The chunk as it is, counted when it is an end that the server did not write."""
        self.counters.done_missing += chunk.end is not None and not chunk.raw
        return chunk

    def _concedes_logprobs(self, status: int, refusal: bytes) -> bool:
        conceded = wire.about_logprobs(status, wire.error_text(refusal))
        self.counters.without_logprobs += conceded
        return conceded

    def _learn(self, model: str, stream: wire.ChunkStream, *, in_vain: bool = False) -> None:
        """`in_vain`: log-probabilities were asked for, and an answer in words has to have some."""
        if stream.logprobs:
            self._with_logprobs.add(model)
            self._gave_no_logprobs.discard(model)
        elif in_vain and stream.unscored:
            self._gave_no_logprobs.add(model)
        self.counters.late_records += stream.late_records
        self.counters.cut_streams += stream.cut

    async def _refusal(self, response: UpstreamResponse, model: str) -> tuple[EngineError, str]:
        return self._refused(response.status, await response.read_error(), response.header("retry-after"), model)

    def _refused(self, status: int, body: bytes, retry_after: str | None, model: str) -> tuple[EngineError, str]:
        text = wire.error_text(body)
        error = wire.refusal(status, text, model, self.name, self.api_key or "")
        if "retry_after_s" in error.details and _SECONDS.fullmatch(retry_after or ""):
            error.details["retry_after_s"] = int(retry_after or "")
        return error, text

    # ── small calls ──

    async def _listed(self) -> list[wire.ListedModel]:
        answer = await self._upstream.ask("GET", wire.MODELS_PATH, timeout_s=self.list_s)
        if answer.status in (401, 403):
            raise RuntimeUnavailable(f"{self.name} refuses to be used ({answer.status}); is its API key right?")
        if answer.status == 503:
            raise RuntimeUnavailable(f"{self.name} is busy; it may still be loading its model", status=503)
        if answer.status != 200:
            raise UpstreamProtocolError(
                f"{self.name} answered {answer.status} to {wire.MODELS_PATH}", status=answer.status
            )
        return wire.listed_models(answer.body)

    def _info(self, model: wire.ListedModel) -> ModelInfo:
        capabilities = [Capability.COMPLETION, Capability.CHAT]
        if model.id in self._with_logprobs - self._without_logprobs:
            capabilities.append(Capability.LOGPROBS)
        details: dict[str, Any] = {}
        if model.owned_by:
            details["owned_by"] = wire.reported(model.owned_by)
        return ModelInfo(
            name=model.id, runtime=self.name, size_bytes=None, capabilities=tuple(capabilities), details=details
        )
