"""A scripted runtime in virtual time: what it sends and when is a list; nothing about it is random."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
import trio.lowlevel

from engine.domain.errors import EngineError, ModelNotFound
from engine.domain.generation import Chunk, Clock, EndReason, GenerationEnd, GenerationRequest, TokenLogprob, TopEntry
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe
from engine.domain.pull import PullProgress


@attrs.frozen
class Say:
    """After `after_s`, one chunk of text (with one log-probability, unless None)."""

    text: str
    after_s: float = 0.05
    logprob: float | None = -0.5


@attrs.frozen
class Fail:
    error: Exception
    after_s: float = 0.05


@attrs.frozen
class End:
    reason: EndReason = EndReason.FINISHED
    after_s: float = 0.0


@attrs.frozen
class Cut:
    """The stream just stops, without a terminal record."""


Step = Say | Fail | End | Cut


def words(count: int, after_s: float = 0.05) -> tuple[Step, ...]:
    return (*(Say(f"w{i} ", after_s) for i in range(count)), End())


@attrs.define(eq=False)
class ScriptedRuntime:
    """`opened` and `closed` count streams, so that a test sees that a stop really closed the upstream."""

    clock: Clock
    script: Sequence[Step] = attrs.field(factory=lambda: words(5))
    by_model: Mapping[str, Sequence[Step]] = attrs.field(factory=dict, kw_only=True)  # of models with one of their own
    load_s: float = 0.0
    load_error: EngineError | None = None
    models: tuple[str, ...] = ("a", "b", "c")
    name: str = "scripted"
    kind: str = "scripted"
    url: str | None = None
    local: bool = True
    up: bool = True
    opened: int = 0
    closed: int = 0
    loads: list[str] = attrs.field(factory=list)
    unloads: list[str] = attrs.field(factory=list)
    in_memory: set[str] = attrs.field(factory=set)
    load_ms: float | None = None  # what its terminal record says
    silent: bool = False  # does not tell what is in its memory
    requests: list[GenerationRequest] = attrs.field(factory=list)

    async def probe(self) -> Probe:
        return Probe(self.up, None if self.up else "switched off")

    async def list_models(self) -> tuple[ModelInfo, ...]:
        return tuple(ModelInfo(m, self.name, 1000, capabilities=(Capability.COMPLETION,)) for m in self.models)

    async def resident(self) -> dict[str, MemoryUse] | None:
        await trio.lowlevel.checkpoint()
        return None if self.silent else dict.fromkeys(self.in_memory, MemoryUse(1000))

    async def load(self, model: str) -> Loaded:
        self.loads.append(model)
        await trio.sleep(self.load_s)
        if self.load_error is not None:
            raise self.load_error
        self.in_memory.add(model)
        return Loaded(resident_bytes=1000, load_ms=self.load_s * 1000)

    async def unload(self, model: str) -> int:
        self.unloads.append(model)
        await trio.lowlevel.checkpoint()
        freed_bytes = 1000 if model in self.in_memory else 0
        self.in_memory.discard(model)
        return freed_bytes

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        self.requests.append(request)
        self.opened += 1
        own = self.by_model.get(request.model)
        chunks = self._chunks() if own is None else self._say(own)
        try:
            yield chunks
        finally:
            self.closed += 1
            await chunks.aclose()

    def _chunks(self):
        return self._say(self.script)

    async def _say(self, script: Sequence[Step]):
        spoken = 0
        for step in script:
            match step:
                case Say():
                    await trio.sleep(step.after_s)
                    spoken += 1
                    yield Chunk(step.text, self.clock(), logprobs=_logprobs(step))
                case Fail():
                    await trio.sleep(step.after_s)
                    raise step.error
                case End():
                    await trio.sleep(step.after_s)
                    end = GenerationEnd(step.reason, prompt_tokens=3, eval_count=spoken, load_ms=self.load_ms)
                    yield Chunk("", self.clock(), end=end)
                case Cut():
                    return


def _logprobs(step: Say) -> tuple[TokenLogprob, ...]:
    if step.logprob is None:
        return ()
    return (TokenLogprob(step.text, step.logprob, (TopEntry(step.text, step.logprob), TopEntry("other", -2.0))),)


@attrs.define(eq=False)
class PullingRuntime(ScriptedRuntime):
    """Has a registry: `pull` takes `pull_s` in ten steps, and then the model is listed. A name with `missing` in it is
    not there."""

    pull_s: float = 10.0
    configured: tuple[str, ...] = ()
    pulls: list[str] = attrs.field(factory=list)
    pulls_left: int = 0

    def can_pull(self, model: str) -> bool:
        return not model.startswith("elsewhere")

    def pulls_first(self, model: str) -> bool:
        return model in self.configured

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        self.pulls.append(model)
        finished = False
        try:
            yield PullProgress("pulling manifest")
            if "missing" in model:
                raise ModelNotFound(f"nobody has {model}")
            for step in range(1, 11):
                await trio.sleep(self.pull_s / 10)
                yield PullProgress("pulling layers", step * 100, 1000)
            self.models = (*self.models, f"{model}:latest")
            finished = True
            yield PullProgress("success", 1000, 1000)
        finally:
            self.pulls_left += not finished
