"""The runtime `ollama`, by its native API: only that one reports a crash in the middle of an answer.

Only models that run where the server runs are used. Names that Ollama passes on to ollama.com, and entries that stand
for a model elsewhere, are not listed and are refused before anything is sent.

Ollama cuts a prompt that is too long and does not say so. Here it is first asked not to (`truncate: false`); when it
refuses, the same request goes out again as usual, and the end says how many tokens were dropped. Where the refusal
gives no number, `prompt_tokens_dropped` is 1: at least one.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoadTimeout,
    ModelNotFound,
    NobodyListens,
    Overloaded,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import Chunk, Clock, Dialect, GenerationRequest
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe, is_model_name
from engine.domain.pull import PullProgress
from engine.domain.runtime import Embeddings, EmbedRequest, Forwarded, ForwardRequest, Residence
from policies.egress import Permit, stays_here
from transport.runtimes.embeddings import EMBED_BYTES_MAX, EMBED_S, vectors_of
from transport.runtimes.forwarding import Instead, forwarding, hear_out, refuse_path
from transport.runtimes.reads import ChunkReads
from transport.runtimes.upstream import Answer, Transport, Upstream
from transport.wire import ollama as wire
from transport.wire import ollama_requests as asking
from transport.wire import openai as openai_wire
from transport.wire.lines import LineSplitter

URL_DEFAULT: Final = "http://127.0.0.1:11434"
PROBE_S: Final = 2.0
LIST_S: Final = 10.0  # an answer that touches no model
HEAD_S: Final = (
    86_400.0  # the head of an answer comes with the first token; how long that may take, the session decides
)
LOAD_S: Final = 86_400.0  # likewise the pool
PULL_HEAD_S: Final = 30.0
PULL_SILENCE_S: Final = 120.0
SHOW_BYTES_MAX: Final = 64 * 1024 * 1024  # verbose, it lists a whole vocabulary
FORWARD_PATHS: Final[Mapping[Dialect, frozenset[str]]] = {
    Dialect.OLLAMA: frozenset({asking.GENERATE_PATH, asking.CHAT_PATH}),
    Dialect.OPENAI: frozenset({"/v1/chat/completions", "/v1/completions"}),
}
TRIES_MAX: Final = 3
RETRY_AFTER_MAX_S: Final = 10.0
BACKOFF_S: Final = 0.25  # full jitter: a wait is between 0 and this, doubled with every try
LOGPROBS_SINCE: Final = (0, 12, 11)
_SECONDS: Final = re.compile(r"[0-9]{1,5}")


@attrs.define
class OllamaCounters:
    """What happened since the start; `remote_models` and `unnameable_models` are those of the last listing."""

    retries: int = 0  # after 503 or 429
    without_logprobs: int = 0  # requests repeated without log-probabilities
    prompts_cut: int = 0
    late_records: int = 0  # after a terminal record
    cut_streams: int = 0  # ended inside a record
    remote_models: int = 0
    unnameable_models: int = 0


@attrs.frozen
class _Ask:
    """What a try asks for. `prompt_tokens`: the prompt's length, known when it was refused for it."""

    logprobs: bool
    truncate: bool = False
    prompt_tokens: int = 0


@attrs.define(eq=False)
class OllamaRuntime:
    """Implements `Runtime`, `Puller`, `Forwarder` and `Embedder`. `random_unit` gives the jitter, in [0, 1).
    `keep_alive` (a duration such as "30m", or seconds; negative: for ever) is sent with loads, and with generations and
    embeddings that have none of their own; None leaves the server's own.

    Calls raise RuntimeFault and ModelNotFound, and also Overloaded (503 to the end) and InvalidRequest (400: the model
    cannot do what was asked).
    """

    clock: Clock
    url: str = URL_DEFAULT
    name: str = "ollama"
    keep_alive: str | int | None = None
    random_unit: Callable[[], float] = random.random
    transport: Transport | None = None
    permit: Permit | None = None  # to reach it on another machine
    hint: Callable[[], str] = lambda: "start it with `ollama serve`"  # what to do while it does not answer
    counters: OllamaCounters = attrs.field(factory=OllamaCounters, init=False)
    _upstream: Upstream = attrs.field(init=False)
    _version: str | None = attrs.field(default=None, init=False)
    _remote: frozenset[str] = attrs.field(default=frozenset(), init=False)  # full names of the last listing
    _without_logprobs: set[str] = attrs.field(factory=set, init=False)  # full names of installed models
    _forwards_without_logprobs: set[tuple[str, str, bool]] = attrs.field(factory=set, init=False)  # model, path, tools

    kind: ClassVar[str] = "ollama"
    dialects: ClassVar[frozenset[Dialect]] = frozenset(FORWARD_PATHS)

    def __attrs_post_init__(self) -> None:
        self._upstream = Upstream(self.name, self.url, self.transport, permit=self.permit)

    @property
    def local(self) -> bool:
        """True when the server is on this machine."""
        return stays_here(urlsplit(self.url).hostname or "")

    async def probe(self) -> Probe:
        try:
            answer = await self._upstream.ask("GET", "/api/version", timeout_s=PROBE_S)
        except RuntimeFault as error:
            hint = self.hint() if isinstance(error, RuntimeUnavailable) else "is that Ollama?"
            return Probe(up=False, reason=f"{error.message}; {hint}", gone=isinstance(error, NobodyListens))
        if answer.status == 403:
            reason = (
                f"{self.url} refuses us (403): it may not accept this host name, see OLLAMA_HOST and OLLAMA_ORIGINS"
            )
            return Probe(up=False, reason=reason)
        try:
            version = wire.decode(answer.body, wire.Version).version
        except UpstreamProtocolError:
            reason = f"what answers at {self.url} is no Ollama (GET /api/version: {answer.status}); set its URL"
            return Probe(up=False, reason=reason)
        if version != self._version:
            self._version = version
            self._without_logprobs.clear()
            self._forwards_without_logprobs.clear()
        return Probe(up=True, version=wire.reported(version))

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Models that can answer first, otherwise in the server's order."""
        answer = await self._ask("GET", "/api/tags")
        listed = wire.decode(answer.body, wire.Tags).models or []
        here = [model for model in listed if not model.remote]
        named = [model for model in here if is_model_name(model.name)]
        self._remote = frozenset(wire.full_name(model.name) for model in listed if model.remote)
        self._without_logprobs &= {wire.full_name(model.name) for model in here}
        self.counters.remote_models = len(self._remote)
        self.counters.unnameable_models = len(here) - len(named)
        infos = (self._info(model) for model in named)
        return tuple(sorted(infos, key=lambda info: not info.capabilities))

    async def resident(self) -> Mapping[str, MemoryUse]:
        """What is loaded, whoever loaded it, by `/api/ps`."""
        return {loaded.name: MemoryUse(loaded.size, loaded.size_vram) for loaded in await self._loaded()}

    async def running(self) -> Mapping[str, Residence]:
        return {
            loaded.name: Residence(loaded.size_vram, loaded.expires_at, loaded.context_length or None, loaded.size)
            for loaded in await self._loaded()
        }

    async def _loaded(self) -> list[wire.LoadedModel]:
        answer = await self._ask("GET", "/api/ps")
        return wire.decode(answer.body, wire.Running).models or []

    async def load(self, model: str) -> Loaded:
        """Raises also ModelLoadFailed. Cancelled here: Ollama gives up the load, for everybody who waits for it."""
        self._refuse_remote(model)
        begin_us = self.clock()
        await self._load(model, self.keep_alive)
        load_ms = (self.clock() - begin_us) / 1000
        use = await self._memory_of(model)
        return Loaded(use.size_bytes, load_ms, use.vram_bytes)

    async def unload(self, model: str) -> int:
        """A model that is answering goes when it has answered."""
        self._refuse_remote(model)
        freed_bytes = (await self._memory_of(model)).size_bytes or 0
        if freed_bytes:
            await self._load(model, 0)
        return freed_bytes

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what cannot be said in this dialect."""
        asking.check(request)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer. Refusals are raised on entering: up to three tries while the server is busy, and one again
        without what it cannot do. Once it answers nothing is tried again. A connection that breaks raises
        UpstreamTruncated; a stream that just stops ends the iterator. Leaving closes the connection."""
        self._refuse_remote(request.model)
        known_without = wire.full_name(request.model) in self._without_logprobs
        ask = _Ask(logprobs=request.logprobs_wanted or not known_without)
        failures = 0
        while True:
            body = asking.request_body(
                request, logprobs=ask.logprobs, truncate=ask.truncate, keep_alive=self.keep_alive
            )
            path = asking.request_path(request)
            async with self._upstream.open_stream("POST", path, body, head_timeout_s=HEAD_S) as response:
                if response.status == 200:
                    self._remember(request.model, ask)
                    records = wire.RecordStream()
                    try:
                        told = partial(self._told, ask=ask) if ask.truncate else None
                        yield ChunkReads(response.next, records, self.clock, told)
                        if records.ended:
                            await hear_out(response, records)
                    finally:
                        self._count(records)
                    return
                text = wire.error_text(await response.read_error())
                retry_after = response.header("retry-after")
            next_ask = self._concession(response.status, text, ask)
            if next_ask is None or (request.logprobs_wanted and not next_ask.logprobs):
                error = wire.refusal(response.status, text, request.model, self.name)
                failures += 1
                await self._back_off(error, failures, retry_after)
            else:
                ask = next_ask

    @asynccontextmanager
    async def forward(self, request: ForwardRequest) -> AsyncIterator[Forwarded]:
        """Hand on a client's request and the answer to it, see `forwarding`. A prompt that is too long is cut unless
        the client has it refused. Raises InvalidRequest for a path that is not forwarded, and for a body that Ollama
        could take to be for another model than `request.model`.

        `request.without_logprobs` is the same request, asking for no log-probabilities: it is sent when they are
        refused, so that a client which never asked for them gets its answer. Nothing else is tried again."""
        refuse_path(FORWARD_PATHS.get(request.dialect, frozenset()), request, self.name)
        self._refuse_remote(request.model)
        for body in (request.body, request.without_logprobs):
            if body is not None and not wire.names_only(body, request.model):
                raise InvalidRequest("model: the body must name it once, and in lower case", field="model")
        instead = Instead(self._concedes_logprobs, self._forwards_without_logprobs)
        reader: wire.RecordStream | openai_wire.ChunkStream = wire.RecordStream()
        whole_answer: Callable[[bytes, int], tuple[Chunk, ...]] = wire.whole_answer
        if request.dialect is Dialect.OPENAI:
            reader, whole_answer = openai_wire.ChunkStream(), openai_wire.whole_answer
        try:
            async with forwarding(self._upstream, request, self.clock, reader, whole_answer, instead=instead) as answer:
                yield answer
        finally:
            self._count(reader)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors; waits for a busy server as `generate` does. Raises InvalidRequest when the model
        cannot, or a text is too long and may not be cut."""
        self._refuse_remote(request.model)
        body = asking.embed_body(request, keep_alive=self.keep_alive)
        failures = 0
        while True:
            answer = await self._upstream.ask(
                "POST", asking.EMBED_PATH, body, timeout_s=EMBED_S, size_max=EMBED_BYTES_MAX
            )
            if answer.status == 200:
                break
            text = wire.error_text(answer.body)
            if answer.status == 404 and not text:
                raise InvalidRequest(f"{self.name} has no {asking.EMBED_PATH}: this server makes no embeddings")
            error = wire.refusal(answer.status, text, request.model, self.name)
            failures += 1
            await self._back_off(error, failures, answer.retry_after)
        found = wire.decode(answer.body, wire.Embedded)
        vectors = await vectors_of(found.embeddings, len(request.inputs), self.name)
        return Embeddings(vectors, found.prompt_eval_count)

    async def show_raw(self, model: str, *, verbose: bool = False) -> bytes:
        """What Ollama says about a model, a JSON object as it came; `verbose` with its vocabulary and tensors. Raises
        ModelNotFound, also for one that runs elsewhere."""
        self._refuse_remote(model)
        body = asking.show_body(model, verbose=verbose)
        answer = await self._upstream.ask("POST", asking.SHOW_PATH, body, timeout_s=LIST_S, size_max=SHOW_BYTES_MAX)
        if answer.status != 200:
            raise wire.refusal(answer.status, wire.error_text(answer.body), model, self.name)
        shown = wire.decode(answer.body, wire.Shown)
        if shown.remote_host or shown.remote_model:
            self._remote |= {wire.full_name(model)}
            self._refuse_remote(model)
        return answer.body

    def can_pull(self, model: str) -> bool:
        return not wire.is_cloud_name(model)

    def pulls_first(self, model: str) -> bool:
        return False

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download `model`; the last one has the status `success`. The counts are of all layers heard of so far. Use it
        under `aclosing`: leaving stops the download. Raises ModelNotFound, UpstreamProtocolError for another reported
        error, UpstreamTimeout after 120 s of silence, UpstreamTruncated when it stops without `success`."""
        self._refuse_remote(model)
        body = msgspec.json.encode({"model": model, "stream": True})
        async with self._upstream.open_stream("POST", "/api/pull", body, head_timeout_s=PULL_HEAD_S) as response:
            if response.status != 200:
                text = wire.error_text(await response.read_error())
                raise wire.refusal(response.status, text, model, self.name)
            lines, status = LineSplitter(), ""
            layers: dict[str, tuple[int, int]] = {}
            while (data := await response.next_within(PULL_SILENCE_S)) is not None:
                for line in lines.feed(data):
                    progress = wire.decode(line, wire.PullProgress)
                    if progress.error is not None:
                        raise wire.pull_refusal(progress.error, model, self.name)
                    status = progress.status
                    if progress.digest:
                        layers[progress.digest] = (progress.completed, progress.total or 0)
                    done, total = (sum(counts) for counts in zip(*layers.values(), strict=True)) if layers else (0, 0)
                    yield PullProgress(wire.reported(status), done if total else None, total or None)
            if status != "success":
                raise UpstreamTruncated(f"{self.name} broke off pulling {model}")

    # ── one answer ──

    def _count(self, reader: wire.RecordStream | openai_wire.ChunkStream) -> None:
        self.counters.late_records += reader.late_records
        self.counters.cut_streams += reader.cut

    def _told(self, chunk: Chunk, ask: _Ask) -> Chunk:
        """The chunk; a terminal one says that the prompt was cut."""
        if chunk.end is None:
            return chunk
        self.counters.prompts_cut += 1
        dropped = max(1, ask.prompt_tokens - (chunk.end.prompt_tokens or ask.prompt_tokens))
        return msgspec.structs.replace(chunk, end=attrs.evolve(chunk.end, prompt_tokens_dropped=dropped))

    def _concession(self, status: int, text: str, ask: _Ask) -> _Ask | None:
        """What to ask for instead, when the refusal is about something we can do without. Each thing once."""
        prompt_tokens = wire.context_excess(status, text)
        if prompt_tokens is not None and not ask.truncate:
            return attrs.evolve(ask, truncate=True, prompt_tokens=prompt_tokens)
        if wire.about_logprobs(status, text) and ask.logprobs:
            self.counters.without_logprobs += 1
            return attrs.evolve(ask, logprobs=False)
        return None

    def _concedes_logprobs(self, status: int, refusal: bytes) -> bool:
        conceded = wire.about_logprobs(status, wire.error_text(refusal))
        self.counters.without_logprobs += conceded
        return conceded

    def _remember(self, model: str, ask: _Ask) -> None:
        if not ask.logprobs:
            self._without_logprobs.add(wire.full_name(model))

    async def _back_off(self, error: EngineError, failures: int, retry_after: str | None) -> None:
        """Wait for the next try, or raise `error`. A server that names a time is given it, up to 10 s."""
        delay_s = self.random_unit() * BACKOFF_S * 2 ** (failures - 1)
        if retry_after is not None and _SECONDS.fullmatch(retry_after):
            delay_s = float(retry_after)
            error.details["retry_after_s"] = int(retry_after)
        if not isinstance(error, Overloaded) or failures >= TRIES_MAX or delay_s > RETRY_AFTER_MAX_S:
            raise error
        self.counters.retries += 1
        await trio.sleep(delay_s)

    # ── small calls ──

    async def _load(self, model: str, keep_alive: str | int | None) -> None:
        body = asking.load_body(model, keep_alive)
        failures = 0
        while True:
            try:
                answer = await self._upstream.ask("POST", "/api/generate", body, timeout_s=LOAD_S)
            except UpstreamTimeout:
                raise ModelLoadTimeout(f"{self.name} did not load {model} within {LOAD_S:g} s") from None
            if answer.status == 200:
                break
            error = wire.refusal(answer.status, wire.error_text(answer.body), model, self.name)
            failures += 1
            if isinstance(error, UpstreamProtocolError):
                raise ModelLoadFailed(error.message, model=model, **error.details)
            await self._back_off(error, failures, answer.retry_after)
        if not wire.load_done(answer.body):
            raise UpstreamProtocolError(f"{self.name} did not say whether {model} is loaded")

    async def _memory_of(self, model: str) -> MemoryUse:
        found = [loaded for loaded in await self._loaded() if wire.full_name(loaded.name) == wire.full_name(model)]
        return MemoryUse(sum(loaded.size for loaded in found), sum(loaded.size_vram for loaded in found))

    async def _ask(self, method: str, path: str) -> Answer:
        answer = await self._upstream.ask(method, path, timeout_s=LIST_S)
        if answer.status != 200:
            raise UpstreamProtocolError(f"{self.name} answered {answer.status} to {path}", status=answer.status)
        return answer

    def _refuse_remote(self, model: str) -> None:
        if wire.is_cloud_name(model) or wire.full_name(model) in self._remote:
            raise ModelNotFound(
                f"{model} runs on another machine and a prompt for it would leave this one; only local models are used",
                model=model,
            )

    def _info(self, model: wire.ListedModel) -> ModelInfo:
        details: dict[str, Any] = {key: value for key, value in msgspec.structs.asdict(model.details).items() if value}
        if model.capabilities is not None:
            details["capabilities"] = list(model.capabilities)
        return ModelInfo(
            name=model.name,
            runtime=self.name,
            size_bytes=model.size,
            modified_at=model.modified_at,
            digest=model.digest,
            capabilities=self._capabilities(model),
            details=details,
            may_use_gpu=True,
        )

    def _capabilities(self, model: wire.ListedModel) -> tuple[Capability, ...]:
        """Servers that state none are taken to complete and chat: that is what they were."""
        if model.capabilities is not None and "completion" not in model.capabilities:
            return ()
        known_without = wire.full_name(model.name) in self._without_logprobs
        if known_without or not gives_logprobs(self._version):
            return (Capability.COMPLETION, Capability.CHAT)
        return (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)


def gives_logprobs(version: str | None) -> bool:
    """Log-probabilities came with 0.12.11. A version that is no number (a build of one's own) is taken as new."""
    try:
        parts = tuple(int(part) for part in (version or "").partition("-")[0].split("."))
    except ValueError:
        return True
    return parts >= LOGPROBS_SINCE or not any(parts)


def ollama_url(environ: Mapping[str, str]) -> str:
    """Where the server is, by the rules of OLLAMA_HOST: scheme, host, port and path are all optional; blanks and quotes
    around it are trimmed; an address that means "all interfaces" is reached on loopback; a port that is none is the
    default."""
    value = environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
    default_port = {"http": 80, "https": 443}.get(scheme, 11434) if separator else 11434
    address, slash, path = rest.partition("/")
    host, port = _host_and_port(address)
    if host in ("", "0.0.0.0", "::"):
        host = "::1" if host == "::" else "127.0.0.1"
    number = int(port) if port.isascii() and port.isdecimal() and int(port) <= 65535 else default_port
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{number}{slash}{path}".rstrip("/")


def _host_and_port(address: str) -> tuple[str, str]:
    """`host`, `host:port`, `[v6]`, `[v6]:port` or a bare v6 address."""
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        return host, port.removeprefix(":")
    if address.count(":") > 1:
        return address, ""
    host, _, port = address.partition(":")
    return host, port
