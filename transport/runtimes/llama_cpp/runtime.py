"""The runtime `llama_cpp`: one process of llama.cpp per loaded model, spoken to in OpenAI's dialect over a unix socket.

A native crash ends a process and not the engine: answers in flight break off with the reason, the model is no longer in
memory, and the next use starts it again. Loading is starting a process, unloading is ending it: all of its memory comes
back.

Prompts go to `/v1/chat/completions` as the message of a user, with the model's own chat template. llama.cpp's paths for
bare prompts give log-probabilities and a terminal record too, but a chat model would continue the text there instead of
answering it.

Every process makes vectors too: as the model's file says, and where it says nothing by the last token. Such files hold
models for text; those that say how to pool were made for vectors and answer nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import attrs
import trio

from engine.domain.errors import (
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import Chunk, Clock, Dialect, GenerationRequest
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe
from engine.domain.pull import PullProgress
from engine.domain.runtime import Embeddings, EmbedRequest, Forwarded, ForwardRequest
from transport.runtimes.embeddings import shortened
from transport.runtimes.keep_alive import Uses
from transport.runtimes.llama_cpp.header import GgufHeader, read_header
from transport.runtimes.llama_cpp.hub import HuggingFace
from transport.runtimes.llama_cpp.process import (
    HOST,
    NAME,
    ModelProcess,
    ServerSettings,
    fits_socket,
    socket_folder,
    socket_path,
)
from transport.runtimes.llama_cpp.source import GgufSource, distinct, downloaded_sources, repo_source
from transport.runtimes.openai import OpenAIRuntime
from transport.runtimes.upstream import Upstream, unix_socket
from transport.wire import openai as wire
from transport.wire.openai_requests import check
from transport.wire.requests import offered, refused

PROBE_S: Final = 2.0
PROPS_S: Final = 30.0  # it may be busy with a prompt
EXIT_S: Final = 1.0  # from a broken stream to the news that the process has ended
ANSWERS: Final = (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)
INSTALL: Final = "pip install 'wf-engine[llama]'"
FAULTS_SHOWN: Final = 3
TOO_LONG: Final = "too large to process"  # llama.cpp's 500 for a text that is to be computed in one go
PULLS_MAX: Final = 4  # at a time

T = TypeVar("T")


@attrs.define
class LlamaCppCounters:
    """What happened since the start."""

    starts: int = 0
    hung: int = 0  # processes that did nothing before they answered, and were ended
    crashes: int = 0  # processes that ended by themselves after they had answered


@attrs.define(eq=False)
class LlamaCppRuntime:
    """Implements `Runtime`, `Puller`, `Forwarder` and `Embedder`. `models` come from `parse_source`; `downloads` is
    where pulled files are and `sockets` a folder for sockets (closed to other users; a temporary one takes its place
    when its path is too long for a socket).

    `run` owns all processes: nothing can be loaded before it has started, and they end with it. Calls raise
    RuntimeFault and ModelNotFound, and also Overloaded and InvalidRequest.
    """

    clock: Clock
    models: tuple[GgufSource, ...]
    downloads: Path
    sockets: Path
    settings: ServerSettings = attrs.field(factory=ServerSettings)
    hub: HuggingFace = attrs.field(factory=HuggingFace)
    counters: LlamaCppCounters = attrs.field(factory=LlamaCppCounters, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _folder: Path = attrs.field(init=False)  # of the sockets, while `run` runs
    _processes: dict[str, ModelProcess] = attrs.field(factory=dict, init=False)
    _with_tools: dict[Path, bool] = attrs.field(factory=dict, init=False)  # by socket: which take tools
    _locks: dict[Path, trio.Lock] = attrs.field(factory=dict, init=False)  # those in use
    _uses: Uses = attrs.field(default=attrs.Factory(lambda self: Uses(self._let_go), takes_self=True), init=False)
    _pulls: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(PULLS_MAX), init=False)
    _headers: dict[Path, tuple[tuple[int, int], GgufHeader | ModelLoadFailed]] = attrs.field(factory=dict, init=False)

    name: ClassVar[str] = NAME
    kind: ClassVar[str] = "llama_cpp"
    url: ClassVar[str | None] = None
    local: ClassVar[bool] = True
    dialects: ClassVar[frozenset[Dialect]] = OpenAIRuntime.dialects

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the processes until cancelled; they are gone when it returns. Raises RuntimeUnavailable when there can be
        no folder for sockets."""
        folder = await trio.to_thread.run_sync(socket_folder, self.sockets)
        temporary = None
        if not fits_socket(folder):
            folder = temporary = Path(tempfile.mkdtemp(prefix="wf-llama-"))
        self._folder = folder
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    # ── what there is ──

    async def probe(self) -> Probe:
        """Up when llama.cpp is installed and one model can be used; `reason` also names the files that cannot."""
        version = await trio.to_thread.run_sync(_installed_version)
        if version is None:
            return Probe(up=False, reason=f"llama.cpp is not installed; install it with {INSTALL}")
        usable, faults = 0, list[str]()
        with trio.move_on_after(PROBE_S - 0.2) as scope:
            for source in await self._sources():
                found = await self._header(source)
                usable += isinstance(found, GgufHeader)
                if isinstance(found, ModelLoadFailed):
                    faults.append(found.message)
        if scope.cancelled_caught:
            faults.append("reading the model files takes long")
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        reason = "; ".join(faults[:FAULTS_SHOWN]) + more
        if not usable and not reason:
            reason = "no GGUF file is configured; give the path of one, or a repository of Hugging Face"
        return Probe(up=usable > 0, reason=reason or None, version=version)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Those whose files are there and are GGUF files, models for vectors last: the first is offered by itself.
        `probe` says what is wrong with the others."""
        found = [(source, await self._header(source)) for source in await self._sources()]
        infos = [self._info(source, header) for source, header in found if isinstance(header, GgufHeader)]
        return tuple(sorted(infos, key=lambda info: not info.capabilities))

    async def resident(self) -> Mapping[str, MemoryUse] | None:
        """Each model with a process, and the memory of that process (RSS: with what it has mapped of the file)."""
        running = [process for process in self._processes.values() if process.running]
        return {process.source.name: await self._memory_of(process) for process in running}

    # ── memory ──

    async def load(self, model: str) -> Loaded:
        """Start the model's process and wait until it answers. Raises ModelNotFound, ModelLoadFailed (with llama.cpp's
        own words), ModelLoadTimeout. Cancelled during a start, the process is ended."""
        begin_us = self.clock()
        process = await self._running(model)
        use = await self._memory_of(process)
        return Loaded(use.size_bytes, (self.clock() - begin_us) / 1000, use.vram_bytes)

    async def unload(self, model: str) -> int:
        """End the model's process; answers in flight break off. Returns what it held in memory. Cancelled: it ends all
        the same, later."""
        process = self._processes.get(model)
        if process is None:
            await trio.lowlevel.checkpoint()
            return 0
        size_bytes = await process.resident_bytes() or 0
        process.stop()
        await process.gone.wait()
        return size_bytes

    async def _memory_of(self, process: ModelProcess) -> MemoryUse:
        """What a process holds on a GPU shows nowhere, so where it was sent there nothing is known of either."""
        if self._on_gpu:
            return MemoryUse(None)
        return MemoryUse(await process.resident_bytes(), 0)

    @property
    def _on_gpu(self) -> bool:
        return self.settings.device == "cuda"

    def _let_go(self, model: str) -> None:
        process = self._processes.get(model)
        if process is not None:
            process.stop()

    async def _running(self, model: str) -> ModelProcess:
        """The model's process, started if there is none."""
        process = self._processes.get(model)
        if process is not None and process.running:
            await trio.lowlevel.checkpoint()
            return process
        source = await self._source(model)
        async with self._alone(source):
            process = self._processes.get(model)
            if process is not None and process.running:
                return process
            if process is not None:
                await process.gone.wait()
            return await self._start(source)

    async def _start(self, source: GgufSource) -> ModelProcess:
        header = await self._header(source)
        if isinstance(header, ModelLoadFailed):
            raise ModelLoadFailed(header.message, model=source.name)
        if self._nursery is None:
            raise RuntimeUnavailable(f"{NAME} is not running; it starts no processes before and after")
        self.counters.starts += 1
        context = min(self.settings.context_length, header.context_length or self.settings.context_length)
        socket = socket_path(self._folder, self.counters.starts, os.getpid())
        process = ModelProcess(
            source, self.settings, context, socket, self.clock, pooling=header.pools, answers=header.answers
        )
        self._processes[source.name] = process
        self._nursery.start_soon(self._attend, process, name=f"{NAME} {source.name}")
        try:
            await process.ready.wait()
        except trio.Cancelled:
            process.stop()
            raise
        if process.failure is not None:
            raise process.failure
        if not process.running:
            raise ModelLoadFailed(f"the process of {source.name} {process.ending}", model=source.name)
        return process

    async def _attend(self, process: ModelProcess) -> None:
        """From start to end; afterwards the model is not in memory."""
        try:
            await process.serve()
        finally:
            self._processes.pop(process.source.name)
            self._with_tools.pop(process.socket, None)
            self.counters.hung += process.hung
        self.counters.crashes += process.failure is None and not process.stopped

    # ── answers ──

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what cannot be said in this dialect."""
        check(request)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer; loads the model first. As in `openai`, and a process that ends inside the answer raises
        UpstreamTruncated with the reason. Leaving closes the connection, and llama.cpp stops at once; with `keep_alive`
        0 the process is told to end unless somebody else uses it. Raises InvalidRequest for a model for vectors, and
        for tools when the model's chat template has no place for them: llama.cpp would leave them out."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._uses.of(request))
            process = await self._speaking(request.model)
            chunks = await _entered(stack, self._answer(process, request), process)
            yield await stack.enter_async_context(aclosing(_explaining(chunks, process)))

    @asynccontextmanager
    async def _answer(self, process: ModelProcess, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        if offered(request)[0] and not await self._takes_tools(process):
            raise refused("tools", f"{request.model} cannot call any: its chat template has no place for them")
        async with process.api.generate(request) as chunks:
            yield chunks

    async def _takes_tools(self, process: ModelProcess) -> bool:
        """Asked once of a process."""
        if process.socket not in self._with_tools:
            upstream = Upstream(process.api.name, HOST, unix_socket(str(process.socket)))
            answer = await upstream.ask("GET", wire.PROPS_PATH, timeout_s=PROPS_S)
            self._with_tools[process.socket] = answer.status != 200 or wire.takes_tools(answer.body)
        return self._with_tools[process.socket]

    @asynccontextmanager
    async def forward(self, request: ForwardRequest) -> AsyncIterator[Forwarded]:
        """Hand on a client's request and the answer to it, as in `openai`; loads the model first. Raises InvalidRequest
        for a model for vectors."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._uses.of_model(request.model))
            process = await self._speaking(request.model)
            answer = await _entered(stack, process.api.forward(request), process)
            reads = await stack.enter_async_context(aclosing(_explaining(answer.reads, process)))
            yield Forwarded(answer.status, answer.content_type, reads, answer.retry_after)

    async def _speaking(self, model: str) -> ModelProcess:
        """As `_running`, of a model for text. Of another llama.cpp would make an answer that it never learned to give,
        or fail."""
        process = self._processes.get(model)
        if process is None:
            header = await self._header(await self._source(model))
            answers = not isinstance(header, GgufHeader) or header.answers
        else:
            answers = process.answers
        if not answers:
            raise InvalidRequest(
                f"{model} makes vectors and no text, as its file says; ask /api/embed or /v1/embeddings, "
                "or use another model"
            )
        return await self._running(model)

    # ── vectors ──

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors of length 1; loads the model first, `keep_alive` as in `generate`. Raises
        InvalidRequest when a text is longer than the model's context (llama.cpp cuts none), or `dimensions` are more
        than its vectors have. Cancelled: the connection is closed, and llama.cpp stops."""
        with self._uses.of(request):
            process = await self._running(request.model)
            try:
                async with _alive(process):
                    made = await process.api.embed(attrs.evolve(request, dimensions=None))  # it would pass over them
                return await shortened(made, request.dimensions)
            except UpstreamProtocolError as error:
                if TOO_LONG not in error.message:
                    raise
                raise InvalidRequest(
                    f"input: a text is longer than the {process.context_length} tokens that {request.model} takes here",
                    field="input",
                ) from error

    # ── downloads ──

    def can_pull(self, model: str) -> bool:
        return repo_source(model, self.downloads) is not None

    def pulls_first(self, model: str) -> bool:
        return any(source.name == model and source.repo is not None for source in self.models)

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download `org/name` or `org/name:QUANT` from Hugging Face, with reports; see `HuggingFace.download`. It is
        listed afterwards, and still after a restart. Use it under `aclosing`. Raises also InvalidRequest when `model`
        is no such name."""
        source = repo_source(model, self.downloads)
        if source is None or source.repo is None:
            raise InvalidRequest(
                f"only models of Hugging Face can be downloaded here: org/name or org/name:QUANT, not {model[:100]}"
            )
        if not self._pulls.available_tokens:
            yield PullProgress("waiting for other downloads")
        async with self._alone(source), self._pulls:
            if await trio.to_thread.run_sync(source.path.is_file):
                yield PullProgress("success")
                return
            async with aclosing(self.hub.download(source.repo, source.quant, source.path)) as reports:
                async for progress in reports:
                    yield progress

    # ── sources ──

    async def _sources(self) -> tuple[GgufSource, ...]:
        """The configured ones, then what else was downloaded."""
        downloaded = await trio.to_thread.run_sync(downloaded_sources, self.downloads)
        return distinct((*self.models, *downloaded))

    async def _source(self, model: str) -> GgufSource:
        for source in await self._sources():
            if source.name == model:
                if source.repo is not None and not await trio.to_thread.run_sync(source.path.is_file):
                    raise ModelNotFound(f"{model} is not downloaded yet; pull it first", model=model)
                return source
        raise ModelNotFound(f"{NAME} has no model {model}", model=model)

    @asynccontextmanager
    async def _alone(self, source: GgufSource) -> AsyncIterator[None]:
        """One start or download of a file at a time."""
        lock = self._locks.setdefault(source.path, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(source.path) is lock:
                del self._locks[source.path]

    async def _header(self, source: GgufSource) -> GgufHeader | ModelLoadFailed:
        """Read once, and again when the file has changed. An answer that is an error says what is wrong with it."""
        return await trio.to_thread.run_sync(self._read_header, source, abandon_on_cancel=True)

    def _read_header(self, source: GgufSource) -> GgufHeader | ModelLoadFailed:
        """In a worker thread, perhaps in two at once: both come to the same."""
        try:
            stat = source.path.stat()
        except OSError:
            if source.repo is not None:
                return ModelLoadFailed(f"{source.name} is not downloaded yet; pull it", model=source.name)
            return ModelLoadFailed(f"{source.path} is not there, or cannot be reached", model=source.name)
        version = stat.st_mtime_ns, stat.st_size
        known = self._headers.get(source.path)
        if known is not None and known[0] == version:
            return known[1]
        found: GgufHeader | ModelLoadFailed
        try:
            found = read_header(source.path)
        except ModelLoadFailed as error:
            found = ModelLoadFailed(error.message, **error.details)  # without its traceback
        self._headers[source.path] = version, found
        return found

    def _info(self, source: GgufSource, header: GgufHeader) -> ModelInfo:
        details: dict[str, Any] = {
            "format": "gguf",
            "family": header.architecture,
            "parameters": header.parameters,
            "quantization": header.quantization,
            "context_length": header.context_length,
            "context_length_used": min(header.context_length or 1 << 62, self.settings.context_length),
            "chat_template": header.chat_template,
            "embedding_length": header.embedding_length,
            "pooling": header.pools.name,
        }
        if not header.answers:
            details["capabilities"] = ["embedding"]  # in Ollama's words
        return ModelInfo(
            name=source.name,
            runtime=self.name,
            size_bytes=header.size_bytes,
            modified_at=header.modified_at,
            capabilities=ANSWERS if header.answers else (),
            details={key: value for key, value in details.items() if value is not None},
            may_use_gpu=self._on_gpu,
        )


async def _entered(stack: AsyncExitStack, answer: AbstractAsyncContextManager[T], process: ModelProcess) -> T:
    """What an answer of the process is, on entering. Raises RuntimeUnavailable when the process ends before it."""
    async with _alive(process):
        return await stack.enter_async_context(answer)


@asynccontextmanager
async def _alive(process: ModelProcess) -> AsyncIterator[None]:
    """Around a question to the process. Raises RuntimeUnavailable when the process ends before it has answered."""
    try:
        yield
    except RuntimeFault as error:
        if await _has_ended(process, error):
            end = _end_of(process, "before it answered")
            raise RuntimeUnavailable(end, model=process.source.name) from error
        raise


async def _explaining(parts: AsyncIterator[T], process: ModelProcess) -> AsyncGenerator[T, None]:
    try:
        async for part in parts:
            yield part
    except RuntimeFault as error:
        if await _has_ended(process, error):
            raise UpstreamTruncated(_end_of(process, "inside its answer"), model=process.source.name) from error
        raise


async def _has_ended(process: ModelProcess, error: RuntimeFault) -> bool:
    """Whether the end of the process is the reason for the fault; a broken connection may be felt before it."""
    if not isinstance(error, UpstreamTimeout):
        with trio.move_on_after(EXIT_S):
            await process.gone.wait()
    return process.gone.is_set()


def _end_of(process: ModelProcess, when: str) -> str:
    return f"the process of {process.source.name} {process.ending} {when}; the next use starts it again"


def _installed_version() -> str | None:
    """Of llama.cpp's package, without importing it: its code runs in processes of its own."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
