"""One service of a table over the slice: real actors, a scripted runtime that reads what it is asked, virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from actors.clock import EngineClock
from engine.app import handles
from engine.config import policies_of
from engine.domain.generation import (
    Chunk,
    EndReason,
    GenerationEnd,
    GenerationRequest,
    TokenLogprob,
    TopEntry,
)
from engine.settings import Settings
from policies.services import ServiceTable, load_services
from policies.source import parse
from policies.taxonomy import load_taxonomy
from tests.fakes.api import TOKEN, WS_PORT, Api
from tests.fakes.runtime import End, ScriptedRuntime, Step
from tests.fakes.slice import MID, running_slice
from web.app import app_of
from web.services.blueprint import blueprint
from web.services.service import Service

LLAMA, TINY, CLASSIFIER = "llama31_8b", "tinyllama", "tlc_domain_classifier"
MODELS = ("llama3.1:8b", "tinyllama:1.1b")
TOKEN_S = 0.05


@attrs.frozen
class Says:
    """A token with its probability (None: no log-probability is given) and the candidates beside it."""

    text: str
    chance: float | None = None
    others: Mapping[str, float] = attrs.field(factory=dict)

    def chunk(self, t_us: int) -> Chunk:
        if self.chance is None:
            return Chunk(self.text, t_us)
        top = [TopEntry(text, math.log(chance)) for text, chance in ({self.text: self.chance} | self.others).items()]
        return Chunk(self.text, t_us, logprobs=(TokenLogprob(self.text, math.log(self.chance), tuple(top)),))


Answering = Callable[[GenerationRequest], list[Says | Exception]]


@attrs.define(eq=False)
class AnsweringRuntime(ScriptedRuntime):
    """Answers what `answering` makes of the request, a token every 50 ms, each with its log-probabilities."""

    answering: Answering = lambda _: [Says("MEDICINE")]
    prompt_tokens: int | None = 7

    @asynccontextmanager
    async def generate(self, request):
        self.requests.append(request)
        self.opened += 1
        chunks = self._answer(request)
        try:
            yield chunks
        finally:
            self.closed += 1
            await chunks.aclose()

    async def _answer(self, request):
        said = self.answering(request)
        for token in said:
            await trio.sleep(TOKEN_S)
            if isinstance(token, Exception):
                raise token
            yield token.chunk(self.clock())
        yield Chunk("", self.clock(), end=GenerationEnd(EndReason.FINISHED, self.prompt_tokens, len(said)))


def answering(answer: Answering, **more):
    return lambda clock: AnsweringRuntime(clock, models=more.pop("models", MODELS), answering=answer, **more)


def scripted(*steps: Step, models: tuple[str, ...] = MODELS, **more):
    return lambda clock: ScriptedRuntime(clock, steps or (End(),), models=models, **more)


SILENT: Final = scripted()


def question_of(request: GenerationRequest) -> str:
    """What the model was asked last."""
    return request.messages[-1].content


def table_of(text: str = "") -> ServiceTable:
    return load_services(parse(text, "wf.yaml"))


@asynccontextmanager
async def running_service(
    name: str = LLAMA,
    make_runtime: Callable[[EngineClock], ScriptedRuntime] = SILENT,
    table: ServiceTable | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Api]:
    """The app of one service."""
    async with with_service(name, make_runtime, table, settings) as (api, _):
        yield api


@asynccontextmanager
async def with_service(
    name: str = LLAMA,
    make_runtime: Callable[[EngineClock], ScriptedRuntime] = SILENT,
    table: ServiceTable | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[tuple[Api, Service]]:
    settings, table = settings or Settings(), table or table_of()
    async with running_slice(make_runtime, settings) as running:
        engine = handles(running.core, settings, policies_of(settings), MID, TOKEN, WS_PORT, {})
        service = Service.of(name, table, load_taxonomy(), engine, table.entries[name].port)
        app = app_of(
            [blueprint(service)],
            body_bytes_max=settings.limits.body_bytes_max,
            lens_body_bytes_max=settings.lens.body_bytes_max,
            body_timeout_s=settings.limits.body_timeout_s,
        )
        yield Api(running, engine, app), service
