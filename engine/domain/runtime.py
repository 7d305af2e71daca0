"""What every model server must be to the engine: `Runtime`, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import attrs

from engine.domain.generation import Chunk, Dialect, GenerationRequest
from engine.domain.models import Loaded, MemoryUse, ModelInfo, Probe
from engine.domain.pull import PullProgress


@attrs.frozen
class ForwardRequest:
    """A request in a dialect that the runtime speaks itself, to be sent to its own `path` as it is. `model` is the
    runtime's own name for the model, and stands in `body` too."""

    dialect: Dialect
    path: str
    body: bytes
    model: str
    without_logprobs: bytes | None = None  # the body to send when the runtime refuses log-probabilities that are ours
    tools: bool = False  # it offers some
    as_it_comes: bool = False  # its bytes are handed on before they are read, also where they cannot be read
    at_once: bool = False  # its answer comes in one piece: no token of it tells beforehand that there is progress


@attrs.frozen
class Read:
    """What one read of a forwarded answer brought: the bytes as they are, and the chunks of the records that became
    whole with it. `as_it_comes`, the chunks come in a Read of their own, after that of the bytes."""

    data: bytes
    chunks: tuple[Chunk, ...]
    ends_body: bool = False  # the answer fails, and nothing of its body is missing: the runtime itself says so


@attrs.define(eq=False)
class Forwarded:
    """The runtime's answer to a ForwardRequest. With a status other than 200 the reads hold its refusal and no
    chunks."""

    status: int
    content_type: str
    reads: AsyncIterator[Read]
    retry_after: str | None = None


@attrs.frozen
class EmbedRequest:
    """Texts to be turned into vectors. `dimensions` cuts them where the model can."""

    model: str
    inputs: tuple[str, ...]
    truncate: bool = True
    dimensions: int | None = None
    keep_alive: str | int | None = None


@attrs.frozen
class Embeddings:
    """One vector per input, in order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int | None = None


@runtime_checkable
class ChunksTogether(Protocol):
    """The chunks of an answer, where several may come in one read of a socket."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __anext__(self) -> Chunk: ...

    def rest(self) -> tuple[Chunk, ...]:
        """What came in the same read as the last one and was not given out. With this it is."""


class Runtime(Protocol):
    """A model server, or something that acts like one. One module per wire dialect implements it, by itself: there is
    no tree of classes.

    All calls raise only errors of the `RuntimeFault` branch, `ModelNotFound`, `InvalidRequest` (the model cannot do
    what was asked) or `Overloaded`, and all can be cancelled at any time.
    """

    @property
    def name(self) -> str:
        """How config and the API call it, e.g. `ollama`, `embedded`."""

    @property
    def kind(self) -> str:
        """The dialect: `ollama`, `openai`, `llama_cpp`, `embedded`, `synthetic`."""

    @property
    def url(self) -> str | None:
        """Where it listens; None when it runs in this process."""

    @property
    def local(self) -> bool:
        """False when prompts leave the machine."""

    async def probe(self) -> Probe:
        """Is it there? Never raises; answers within 2 s and touches no model."""

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """The models it could run now."""

    async def resident(self) -> Mapping[str, MemoryUse] | None:
        """The models in its memory now, by its own names. None: it cannot tell what is in its memory. Quick, and
        touches no model."""

    async def load(self, model: str) -> Loaded:
        """Bring `model` into memory. Loading a loaded model is quick and harmless."""

    async def unload(self, model: str) -> int:
        """Take `model` out of memory; the bytes freed (0 when it was not loaded)."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Stream an answer. The iterator ends after the chunk that carries `end`; ending without one means truncated.

        Leaving the context (also by cancellation) stops the runtime before it returns.
        """


@runtime_checkable
class Checker(Protocol):
    """A runtime that can tell what its models cannot do before one of them is in memory."""

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest where `generate` would, as far as that shows in the request. Asks nobody."""


@runtime_checkable
class Puller(Protocol):
    """A runtime that can download models."""

    @property
    def name(self) -> str:
        """As of the runtime."""

    def can_pull(self, model: str) -> bool:
        """Whether `model` could be a model it knows where to get. Asks nobody."""

    def pulls_first(self, model: str) -> bool:
        """Whether it was told by its configuration where to get this very model."""

    def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download `model`, to be used under `aclosing`: leaving stops the download. Raises as Runtime does."""


@runtime_checkable
class Forwarder(Protocol):
    """A runtime that speaks dialects of clients itself."""

    @property
    def dialects(self) -> frozenset[Dialect]:
        """Those it speaks."""

    def forward(self, request: ForwardRequest) -> AbstractAsyncContextManager[Forwarded]:
        """Send a client's request to the runtime's own path and hand on its answer. Refusals are no errors here but
        answers. Leaving the context stops the runtime. Raises as Runtime does."""


@attrs.frozen
class Residence:
    """How a model is in the memory of an Ollama; null where it does not say. `vram_bytes` is the part of `size_bytes`
    on a GPU, `expires_at` when it goes (RFC 3339), `context_length` in tokens."""

    vram_bytes: int | None
    expires_at: str | None
    context_length: int | None
    size_bytes: int | None = None


@runtime_checkable
class OllamaServer(Protocol):
    """A runtime that is an Ollama, for programs that want to know what only an Ollama knows."""

    async def show_raw(self, model: str, *, verbose: bool = False) -> bytes:
        """What it says about a model, a JSON object as it came. Raises as Runtime does."""

    async def running(self) -> Mapping[str, Residence]:
        """How its models are in memory, by its own names."""


@runtime_checkable
class Embedder(Protocol):
    """A runtime that turns texts into vectors."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Raises InvalidRequest when the model cannot."""
