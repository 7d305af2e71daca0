"""The runtime `embedded`: three small language models of our own, so that there is always something real to measure.

They answer any question with made-up definitions, one a line, until `max_tokens`: a model that ends a definition is
asked again. Every token of the stream was drawn by the model from the distribution reported with it. Two things are
particular to this runtime, and `details` of each model says so:

- End-of-text is a generated token: it counts in `eval_count`, has its own log-probability, and its text is a newline.
- Tokens come at a declared pace, so that a person can watch. A slow reader slows the model: nothing is computed ahead.

`prompt_tokens` counts the question as it was read, once, however often it is asked, and the beginning of an answer that
is gone on with. What these models cannot do (tools, images, a format, penalties and so on) is refused; `system` and
what was said before are not read, see `prompt`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final, TypeVar, TypeVarTuple

import attrs
import trio

from engine.domain.errors import ModelLoadFailed, ModelNotFound
from engine.domain.generation import Chunk, Clock, Dialect, EndReason, GenerationEnd, GenerationRequest
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import Answer, Model
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import CONTEXT_MAX, Transformer
from transport.runtimes.embedded.prompt import Prompt, PromptReader, beginning_of, question_of
from transport.runtimes.embedded.sampler import Sampler
from transport.runtimes.embedded.text import TextStream
from transport.runtimes.keep_alive import Uses
from transport.wire.requests import refuse_all_but_words, refuse_penalties

MODELS: Final = {
    "lexicon": "WordNet 3.0 glosses",
    "hacker": "the Jargon File and some WordNet glosses",
    "mixed": "WordNet 3.0 glosses and the Jargon File",
}
WEIGHTS_DIR: Final = Path(__file__).parent / "weights"
MAX_TOKENS_DEFAULT: Final = 120
PACE_TPS_DEFAULT: Final = 30.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@attrs.define(eq=False)
class EmbeddedRuntime:
    """Implements `Runtime`. `pace_tps` is the most tokens a second of one stream; 0 means as fast as it goes.

    All file reading and arithmetic happens in worker threads, at most one per processor. A cancelled call returns when
    the step in hand is done: one token (about 1 ms), one prompt pass (at most some 20 ms) or one file.
    """

    clock: Clock
    pace_tps: float = PACE_TPS_DEFAULT
    weights_dir: Path | None = None
    _models: dict[str, Model] = attrs.field(factory=dict, init=False)
    _described: dict[str, ModelInfo] = attrs.field(factory=dict, init=False)
    _locks: dict[str, trio.Lock] = attrs.field(factory=lambda: {name: trio.Lock() for name in MODELS}, init=False)
    threads: trio.CapacityLimiter = attrs.field(init=False)
    _uses: Uses = attrs.field(init=False)

    name: ClassVar[str] = "embedded"
    kind: ClassVar[str] = "embedded"
    url: ClassVar[str | None] = None
    local: ClassVar[bool] = True
    dialects: ClassVar[frozenset[Dialect]] = frozenset()

    def __attrs_post_init__(self) -> None:
        self.threads = trio.CapacityLimiter(os.cpu_count() or 1)
        self._uses = Uses(self._let_go)

    async def probe(self) -> Probe:
        """Up when all model files are there."""
        missing = await self._in_thread(self._missing)
        return Probe(up=not missing, reason=f"model files are missing: {', '.join(missing)}" if missing else None)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Each model with the SHA-256 of its file; the files are read once."""
        for name in MODELS:
            async with self._locks[name]:
                if name not in self._described:
                    self._described[name] = await self._in_thread(self._describe, name)
        return tuple(self._described[name] for name in MODELS)

    async def resident(self) -> Mapping[str, MemoryUse]:
        await trio.lowlevel.checkpoint()
        return {name: MemoryUse(model.transformer.resident_bytes, 0) for name, model in self._models.items()}

    async def load(self, model: str) -> Loaded:
        """Read the weights. Raises `ModelNotFound` and, when the file is damaged, `ModelLoadFailed`."""
        begin_us = self.clock()
        loaded = await self._loaded(model)
        return Loaded(loaded.transformer.resident_bytes, (self.clock() - begin_us) / 1000, vram_bytes=0)

    async def unload(self, model: str) -> int:
        """Let go of the weights. Generations that run keep them until they end."""
        async with self._lock(model):
            loaded = self._models.pop(model, None)
            return loaded.transformer.resident_bytes if loaded else 0

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what these models cannot do."""
        refuse_all_but_words(request, self.name)
        refuse_penalties(request.parameters, self.name)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer: one chunk a token; the last one carries `end` with LENGTH or STOP. Loads the model first.

        Once the context is left no thread works for it any more, and with `keep_alive` 0 the model is out of memory
        unless somebody else uses it. Raises InvalidRequest for what these models cannot do.
        """
        self.check(request)
        with self._uses.of(request):
            model = await self._loaded(request.model)
            async with aclosing(self._chunks(model, request)) as chunks:
                yield chunks

    async def _chunks(self, model: Model, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        parameters = request.parameters
        max_tokens = parameters.max_tokens or MAX_TOKENS_DEFAULT
        prompt = await self._prompt(model, request)
        answer = Answer(model, prompt, Sampler.from_parameters(parameters), request.top_logprobs)
        await self._in_thread(answer.start)
        text_stream = TextStream.with_stops(parameters.stop)
        pace = Pace(self.pace_tps)
        for count in range(1, max_tokens + 1):
            await trio.sleep_until(pace.due(trio.current_time()))
            token = await self._in_thread(answer.next_token)
            t_us = self.clock()
            text, stopped = text_stream.push(token.written, last=count == max_tokens)
            end = None
            if stopped or count == max_tokens:
                reason = EndReason.STOP if stopped else EndReason.LENGTH
                end = GenerationEnd(reason, prompt.tokens, count, prompt.dropped)
            yield Chunk(text, t_us, logprobs=(token.logprob,), end=end)
            if end:
                return

    async def _prompt(self, model: Model, request: GenerationRequest) -> Prompt:
        limit = model.transformer.shape.context // 2  # the other half is for the definition
        prompt = await self._read(PromptReader.for_question(model.tokenizer, question_of(request), limit))
        if beginning := beginning_of(request):
            begun = await self._read(PromptReader.for_beginning(model.tokenizer, beginning, limit // 2))
            return Prompt(prompt.ids, prompt.dropped + begun.dropped, begun.ids)
        return prompt

    async def _read(self, reader: PromptReader) -> Prompt:
        while await self._in_thread(reader.step):
            pass
        return reader.prompt()

    async def _loaded(self, name: str) -> Model:
        async with self._lock(name):
            if name not in self._models:
                self._models[name] = await self._in_thread(_read_model, self._path(name))
            return self._models[name]

    def _let_go(self, name: str) -> None:
        self._models.pop(name, None)

    def _lock(self, name: str) -> trio.Lock:
        if name not in self._locks:
            known = list(MODELS)
            raise ModelNotFound(f"no built-in model has this name; there are {', '.join(known)}", models=known)
        return self._locks[name]

    def _path(self, name: str) -> Path:
        return (self.weights_dir or WEIGHTS_DIR) / f"{name}.gguf"

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self.threads)

    def _missing(self) -> list[str]:
        return [name for name in MODELS if not self._path(name).is_file()]

    def _describe(self, name: str) -> ModelInfo:
        details = {
            "about": "built-in demonstration models: they show the engine, they cannot help you",
            "trained_on": MODELS[name],
            "style": "repeated definitions",
            "end_of_text": "a token like any other; its text is a newline, then the question is asked again",
            "pace_tps": self.pace_tps,
            "max_tokens_default": MAX_TOKENS_DEFAULT,
            "license": "the engine's own; notices of the texts in weights/LICENSES.txt",
        }
        try:
            file, data = gguf.read(self._path(name))
        except ModelLoadFailed as error:  # listed all the same: a model that is silently gone helps nobody
            return ModelInfo(name, self.name, 0, details=details | {"fault": error.message})
        details |= {
            "parameters": sum(tensor.size for tensor in file.tensors.values()),
            "context_length": CONTEXT_MAX,
            "quantization": "f16",
        }
        return ModelInfo(
            name=name,
            runtime=self.name,
            size_bytes=len(data),
            digest=hashlib.sha256(data).hexdigest(),
            capabilities=(Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS),
            details=details,
        )


@attrs.define(eq=False)
class Pace:
    """When each token may come: a steady beat, begun anew after a wait, so that lost time is never made up."""

    tps: float
    _last: float | None = None

    def due(self, now: float) -> float:
        """The earliest moment for the next token, in seconds on the clock of `now`."""
        if self._last is None or self.tps == 0:
            self._last = now
        else:
            self._last = max(self._last + 1 / self.tps, now)
        return self._last


def _read_model(path: Path) -> Model:
    file, _ = gguf.read(path)
    return Model(Transformer.from_gguf(file), Tokenizer.from_gguf(file))
