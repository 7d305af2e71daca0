"""A seeded source of tokens for tests and demonstrations. It is no model, and it says so wherever it is seen: the
runtime and its kind are called `synthetic`, `details` holds `synthetic: true`, and every text begins with SYNTHETIC.

Words, log-probabilities and timing follow from the seed, the model and the request's own seed alone. The prompt and the
parameters of sampling change nothing; max_tokens and stop are respected. What needs a model (tools, images, a format
and so on) is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import ClassVar, Final

import attrs
import msgspec
import trio

from engine.domain.errors import ModelNotFound
from engine.domain.generation import (
    TOP_K,
    Chunk,
    Clock,
    Dialect,
    EndReason,
    GenerationEnd,
    GenerationRequest,
    TokenLogprob,
    TopEntry,
)
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe
from transport.runtimes.embedded.text import StopFilter
from transport.wire.requests import refuse_all_but_words

MODELS: Final = {
    "steady": "one token every 40 ms",
    "stalling": "one token every 40 ms, and 1.5 s of silence before every 20th",
    "bursty": "ten tokens 10 ms apart, then ten 150 ms apart, and so on",
    "nologprobs": "one token every 40 ms, without log-probabilities",
}
ANSWER_TOKENS: Final = 120  # the length of an answer when max_tokens does not say
BEAT_MS: Final = 40
STALL_MS: Final = 1500
STALL_EVERY: Final = 20
BURST_TOKENS: Final = 10
BURST_MS: Final = 10
LULL_MS: Final = 150

_MARK: Final = "SYNTHETIC"
_WORDS: Final = tuple(
    "amber birch cedar delta ember fjord glade harbor island juniper kelp lantern meadow north opal pebble quartz "
    "river spruce tide umber valley willow yarrow".split()
)
_REST: Final = 0.9  # of what the likeliest word leaves, the share of the other entries; the tail is what remains


def gap_ms(model: str, position: int) -> int:
    """The silence before the token at `position` (from 0), in milliseconds."""
    if model == "stalling" and position and position % STALL_EVERY == 0:
        return STALL_MS
    if model == "bursty":
        return BURST_MS if position // BURST_TOKENS % 2 == 0 else LULL_MS
    return BEAT_MS


def tokens(seed: str) -> Iterator[TokenLogprob]:
    """The endless text of a seed: every token with TOP_K entries, likeliest first, whose mass is below 1."""
    random = Random(seed)
    for position in itertools.count():
        peak = random.uniform(0.25, 0.95)
        words = [f" {word}" for word in random.sample(_WORDS, TOP_K)]
        if position == 0:
            words[0] = _MARK
        shares = [0.5**rank for rank in range(1, TOP_K)]
        masses = [peak] + [(1 - peak) * _REST * share / sum(shares) for share in shares]
        entries = sorted(zip(masses, words, strict=True), reverse=True)
        chosen = _MARK if position == 0 else random.choices([w for _, w in entries], [m for m, _ in entries])[0]
        top = tuple(TopEntry(word, math.log(mass)) for mass, word in entries)
        yield TokenLogprob(chosen, next(entry.logprob for entry in top if entry.token == chosen), top)


@attrs.define(eq=False)
class SyntheticRuntime:
    """Implements `Runtime`. All waiting is `trio.sleep_until` on a fixed schedule, so it runs in virtual time as well.

    Like most servers it does not wait for a slow reader: what is overdue comes at once.
    """

    clock: Clock
    seed: int
    _loaded: set[str] = attrs.field(factory=set, init=False)

    name: ClassVar[str] = "synthetic"
    kind: ClassVar[str] = "synthetic"
    url: ClassVar[str | None] = None
    local: ClassVar[bool] = True
    dialects: ClassVar[frozenset[Dialect]] = frozenset()

    async def probe(self) -> Probe:
        await trio.lowlevel.checkpoint()
        return Probe(up=True, reason=f"SYNTHETIC source with seed {self.seed}")

    async def list_models(self) -> tuple[ModelInfo, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(self._info(name) for name in MODELS)

    async def resident(self) -> Mapping[str, MemoryUse]:
        """Those that were loaded; they take no room."""
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(self._loaded, MemoryUse(0, 0))

    async def load(self, model: str) -> Loaded:
        """Nothing is read, so nothing is resident."""
        await trio.lowlevel.checkpoint()
        _known(model)
        self._loaded.add(model)
        return Loaded(resident_bytes=0, load_ms=0.0, vram_bytes=0)

    async def unload(self, model: str) -> int:
        await trio.lowlevel.checkpoint()
        _known(model)
        self._loaded.discard(model)
        return 0

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what is more than words."""
        refuse_all_but_words(request, self.name)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream the words: one chunk a token, the last one with `end`: LENGTH at max_tokens, STOP, else FINISHED."""
        _known(request.model)
        self.check(request)
        async with aclosing(self._chunks(request)) as chunks:
            yield chunks

    async def _chunks(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        model, parameters = request.model, request.parameters
        count = parameters.max_tokens or ANSWER_TOKENS
        stop_filter = StopFilter(tuple(stop for stop in parameters.stop if stop))
        due_s = trio.current_time()
        for position, token in enumerate(tokens(f"{self.seed}/{model}/{parameters.seed}")):
            due_s += gap_ms(model, position) / 1000
            await trio.sleep_until(due_s)
            t_us = self.clock()
            text, stopped = stop_filter.push(token.token)
            last = position + 1 == count
            end = None
            if stopped:
                end = GenerationEnd(EndReason.STOP, eval_count=position + 1)
            elif last:
                text += stop_filter.flush()
                reason = EndReason.LENGTH if parameters.max_tokens else EndReason.FINISHED
                end = GenerationEnd(reason, eval_count=count)
            logprobs = (msgspec.structs.replace(token, top=token.top[: request.top_logprobs]),)
            yield Chunk(text, t_us, logprobs=() if model == "nologprobs" else logprobs, end=end)
            if end:
                return

    def _info(self, name: str) -> ModelInfo:
        capabilities = (Capability.COMPLETION, Capability.CHAT, Capability.LOGPROBS)
        return ModelInfo(
            name=name,
            runtime=self.name,
            size_bytes=0,
            capabilities=capabilities[:2] if name == "nologprobs" else capabilities,
            details={"synthetic": True, "seed": self.seed, "about": f"SYNTHETIC: {MODELS[name]}"},
        )


def _known(model: str) -> None:
    if model not in MODELS:
        known = list(MODELS)
        raise ModelNotFound(f"no synthetic model has this name; there are {', '.join(known)}", models=known)
