"""The actors of an engine in a process of their own, with up to six models that speak at a fixed pace.

`python -m bench.council_engine` takes a `Job` as JSON on stdin, says `ready` once it is warm, and on the next line of
stdin measures for `seconds` and prints a `Ran`. No socket is in it: the models hand over chunks that are there already,
and the one client takes every frame whole, as one that is always level, with all events and top lists as the page asks
for them. What both cost is in the figures; the job `pacing` tells what the models cost alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import attrs
import trio

from actors.clock import EngineClock
from actors.session import Session, SessionRequest
from bench.watchers import MARK
from engine.app import GC_THRESHOLDS
from engine.config import policies_of
from engine.core import Core
from engine.domain.ensemble import EnsembleMeter
from engine.domain.generation import Chunk, Clock, GenerationRequest, Origin, TokenLogprob, TopEntry
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe, Tier
from engine.domain.synthesis import CouncilMethod, MemberAnswer, MemberState, choose
from engine.settings import Settings
from policies.tiers import TierChoice

MODELS = ("a", "b", "c", "d", "e", "f")
TPS = 60
TOP = 10
SHARED_OF = 3  # every third candidate of a model is one that others have too; the rest are its own
SCRIPT_TOKENS = 61
WARM_UP_S = 2.0
PAUSE_S = 0.4  # between two choices
ANSWER_BYTES = 8_192
SUBSCRIBE = b'{"type":"subscribe","patterns":["*"],"top":true,"rate_hz":60}'


@attrs.frozen
class Job:
    """`kind`: one council of `streams` models, as many sessions of one model, or only the pacing of so many streams.
    `choosing`: six long answers are compared again and again in a worker thread meanwhile."""

    kind: str  # council | sessions | pacing
    streams: int
    seconds: float
    choosing: bool = False


@attrs.frozen
class Ran:
    """`frames`: number, lateness, composing time and deadline (ms) of each, as it says itself. `windows`: events
    `council.ensemble`; `steps_ms`: processor time of EnsembleMeter.step for each. `choices`: from when to when (ms, as
    the deadlines) an answer was chosen."""

    seconds: float
    cpu_s: float
    tokens: int
    frames: list[tuple[int, float, float, float]]
    windows: int
    steps_ms: list[float]
    choices: list[tuple[float, float]]

    @property
    def cores(self) -> float:
        return self.cpu_s / self.seconds

    @property
    def missed(self) -> int:
        return self.frames[-1][0] - self.frames[0][0] + 1 - len(self.frames)


@attrs.define(eq=False)
class PacedRuntime:
    """Six models, in memory from the start. Each stream gets TPS chunks a second on a grid of its own; they are
    staggered, and never end."""

    clock: Clock
    name: str = "paced"
    kind: str = "paced"
    url: str | None = None
    local: bool = True
    tokens: int = 0
    _streams: int = 0

    async def probe(self) -> Probe:
        return Probe(True, None)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        able = (Capability.COMPLETION, Capability.LOGPROBS)
        return tuple(ModelInfo(model, self.name, 1000, capabilities=able) for model in MODELS)

    async def resident(self) -> dict[str, MemoryUse]:
        return dict.fromkeys(MODELS, MemoryUse(1000))

    async def load(self, model: str) -> Loaded:
        return Loaded(resident_bytes=1000, load_ms=0.0)

    async def unload(self, model: str) -> int:
        return 0

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        chunks = self._chunks(script(request.model))
        try:
            yield chunks
        finally:
            await chunks.aclose()

    async def _chunks(self, said: list[TokenLogprob]):
        self._streams += 1
        began = trio.current_time() + self._streams * 0.618 % 1 / TPS
        number = 0
        while True:
            await trio.sleep_until(began + number / TPS)
            entry = said[number % SCRIPT_TOKENS]
            number, self.tokens = number + 1, self.tokens + 1
            yield Chunk(entry.token, self.clock(), logprobs=(entry,))


def script(model: str) -> list[TokenLogprob]:
    """What a model says over and over: its first candidate of each place."""
    said = []
    for place in range(SCRIPT_TOKENS):
        turn = place + ord(model)
        who = ["word" if (turn + rank) % SHARED_OF == 0 else model for rank in range(TOP)]
        words = [f" {own}{place}.{rank}" for rank, own in enumerate(who)]
        first = 0.5 + 0.04 * (turn % 7)
        masses = [first * (1 - first) ** rank for rank in range(TOP)]
        top = tuple(TopEntry(word, math.log(mass)) for word, mass in zip(words, masses, strict=True))
        said.append(TokenLogprob(words[0], top[0].logprob, top))
    return said


def long_answers() -> list[MemberAnswer]:
    """Six of ANSWER_BYTES: sentences drawn from one stock, in its order, so that each has about half in common with
    each other one."""
    draw = random.Random(7)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(800)]
    stock = [" ".join(draw.choices(words, k=draw.randint(6, 16))).capitalize() + "." for _ in range(400)]
    texts = [" ".join(sorted(draw.sample(stock, 200), key=stock.index))[:ANSWER_BYTES] for _ in MODELS]
    assert all(len(text) == ANSWER_BYTES for text in texts)
    return [
        MemberAnswer(f"s:{n}", model, text, 0.5 + n / 20, 2_000, MemberState.FINISHED, n)
        for n, (model, text) in enumerate(zip(MODELS, texts, strict=True))
    ]


@attrs.define(eq=False)
class Client:
    """Takes everything at once and looks at it later."""

    messages: list[bytes] = attrs.field(factory=list)

    def push(self, frame: bytes) -> bool:
        self.messages.append(frame)
        return True

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}: {reason}")


def head_of(message: bytes) -> tuple[int, float, float, float] | None:
    """Number, lateness, composing time and deadline of a frame; None for a message that is none."""
    at = {126: 4, 127: 10}.get(message[1], 2)
    head = json.loads(message[at:].partition(MARK)[0] + b"}")
    if head["frame"] is None:
        return None
    return head["frame"], head["perf"]["lateness_ms"], head["perf"]["frame_ms"], head["mono_ms"]


async def run(job: Job) -> None:
    clock = EngineClock.start()
    runtime = PacedRuntime(clock)
    if job.kind == "pacing":
        await paced_alone(job, runtime)
        return
    settings, tier = Settings(), TierChoice(Tier.HIGH, "the one with councils of six")
    core = Core.build({runtime.name: runtime}, clock, settings, policies_of(settings), tier)
    client, steps_ms = Client(), time_steps()
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await core.catalog.asked.wait()
        core.hub.connect(client).receive(SUBSCRIBE)
        sessions = asked(core, job)
        spans: list[tuple[float, float]] = []
        background = partial(choose_on, spans, clock) if job.choosing else None
        told = await measured(job, runtime, client, steps_ms, background)
        assert not any(session.closed.is_set() for session in sessions), "one has ended"
        print(json.dumps(attrs.asdict(attrs.evolve(told, choices=spans))), flush=True)
        nursery.cancel_scope.cancel()


def time_steps() -> list[float]:
    """From now on the processor time, in ms, of each step of a council that finds a new window: where it runs, among
    everything else, with what that has left in the caches."""
    took, step = [], EnsembleMeter.step

    def timed(meter: EnsembleMeter, now_us: int, energies: Mapping[str, float | None], *, patterns: bool = True):
        began = time.thread_time_ns()
        told = step(meter, now_us, energies, patterns=patterns)
        if told.windows:
            took.append((time.thread_time_ns() - began) / 1e6)
        return told

    EnsembleMeter.step = timed
    return took


def asked(core: Core, job: Job) -> list[Session]:
    models = MODELS[: job.streams]
    names = ["council:" + "+".join(models)] if job.kind == "council" else models
    found = [core.catalog.find(name) for name in names]
    return [
        core.sessions.start(SessionRequest(model, GenerationRequest(model.info.name, prompt="on"), Origin.API))
        for model in found
    ]


async def paced_alone(job: Job, runtime: PacedRuntime) -> None:
    """The models with a reader that throws away what they say."""

    async def read(model: str) -> None:
        async with runtime.generate(GenerationRequest(model, prompt="on")) as chunks:
            async for _ in chunks:
                pass

    async with trio.open_nursery() as nursery:
        for model in MODELS[: job.streams]:
            nursery.start_soon(read, model)
        print(json.dumps(attrs.asdict(await measured(job, runtime, Client(), [], None))), flush=True)
        nursery.cancel_scope.cancel()


async def measured(
    job: Job, runtime: PacedRuntime, client: Client, steps_ms: list[float], background: Callable | None
) -> Ran:
    await trio.sleep(WARM_UP_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as the engine does
    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    client.messages.clear()
    steps_ms.clear()
    used, tokens, began = time.process_time(), runtime.tokens, time.perf_counter()
    async with trio.open_nursery() as nursery:
        if background is not None:
            nursery.start_soon(background)
        await trio.sleep(job.seconds)
        used, seconds = time.process_time() - used, time.perf_counter() - began
        tokens, messages, steps = runtime.tokens - tokens, list(client.messages), list(steps_ms)
        nursery.cancel_scope.cancel()
    heads = [head for message in messages if (head := head_of(message)) is not None]
    windows = sum(message.count(b'"type":"council.ensemble"') for message in messages)
    return Ran(seconds, used, tokens, heads, windows, steps, [])


async def choose_on(spans: list[tuple[float, float]], clock: Clock) -> None:
    """As a council does at its end."""
    answers = long_answers()
    while True:
        await trio.sleep(PAUSE_S)
        began_us = clock()
        await trio.to_thread.run_sync(choose, CouncilMethod.CONSENSUS, answers)
        spans.append((began_us / 1000, clock() / 1000))


@contextmanager
def engine_for(job: Job) -> Iterator[Callable[[], Ran]]:
    """A warm engine as a child process; call what this gives to measure it."""
    command = [sys.executable, "-m", "bench.council_engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(attrs.asdict(job)) + "\n")
        process.stdin.flush()
        ready = process.stdout.readline()
        assert ready == "ready\n", ready

        def ran() -> Ran:
            process.stdin.write("go\n")
            process.stdin.flush()
            return Ran(**json.loads(process.stdout.readline()))

        try:
            yield ran
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.kill()


if __name__ == "__main__":
    trio.run(run, Job(**json.loads(sys.stdin.readline())))
