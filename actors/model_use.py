"""ModelUse: one model for one session. Its turn in the pool, its load, its stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import attrs

from actors.catalog import ModelRef
from actors.kernel import Outlet
from actors.lease import Grant, PoolHandle
from actors.reply_line import ReplySink
from actors.resume import Place
from actors.stream import ModelStream, Timeouts
from engine.domain.errors import InvalidRequest
from engine.domain.events import ModelChanged, SessionSignal
from engine.domain.generation import Clock, GenerationEnd, GenerationRequest, StreamRef
from engine.domain.models import ModelState
from engine.domain.runtime import Checker, ForwardRequest
from policies.reload import reload_reason
from policies.timing import Timing, timing_of

QUEUED: Final = "queued"
LOADING: Final = "loading"
STREAMING: Final = "streaming"
ELSEWHERE: Final = Grant("", None, None, None, ())  # of a model that is not here: it takes no room and no turn


def refusal_of(model: ModelRef, request: GenerationRequest) -> InvalidRequest | None:
    """Why `model` cannot do what is asked, as far as its runtime knows that without it in memory."""
    if isinstance(model.runtime, Checker):
        try:
            model.runtime.check(attrs.evolve(request, model=model.info.name))
        except InvalidRequest as refusal:
            return refusal
    return None


@attrs.define(eq=False)
class ModelUse:
    """`state` is queued, loading or streaming. `waited_ms` is the wait for the model: its turn, and its load."""

    ref: StreamRef
    model: ModelRef
    request: GenerationRequest
    pool: PoolHandle
    signals: Outlet[SessionSignal]
    clock: Clock
    timeouts: Timeouts
    reply: ReplySink | None = None
    forward: ForwardRequest | None = None
    find: Callable[[str], ModelRef] | None = None  # other models, that may go on where this one broke off
    state: str = QUEUED
    cold: bool | None = None
    load_ms: float | None = None
    waited_ms: float = 0.0
    stream: ModelStream = attrs.field(init=False)
    asked_us: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.stream = ModelStream(
            self.ref,
            self.model.runtime,
            self.request,
            self.signals,
            self.timeouts,
            self.reply,
            self.forward,
            None if self.find is None else partial(self._elsewhere, self.find),
        )
        self.asked_us = self.clock()

    @property
    def refs(self) -> tuple[StreamRef, ...]:
        return (self.ref,)

    @property
    def tokens(self) -> int:
        return self.stream.tokens

    @property
    def answer(self) -> ModelUse:
        """Whose figures a reply shows."""
        return self

    async def run(self) -> GenerationEnd:
        """Wait for the model, and stream its answer. Raises as the lease and the stream do. Cancelled here: the place
        in the queue is given up, the runtime is stopped."""
        if self.model.satellite:
            return await self.speak(ELSEWHERE)
        async with self.pool.lease(self.model, self.tell, self.request.runner_options) as grant:
            return await self.speak(grant)

    async def speak(self, grant: Grant) -> GenerationEnd:
        """Stream the answer, with the model at hand."""
        self.take(grant)
        end = await self.stream.run()
        reason = reload_reason(end.load_ms, grant.cold, grant.options_before, self.request.runner_options)
        if reason is not None:
            self.cold = True
            self.pool.pool.counters.reloads += 1
            changed = ModelChanged(self.ref.session_id, self.ref.model, ModelState.READY, reason=reason)
            await self.signals.put(changed)
        return end

    def take(self, grant: Grant) -> None:
        """The model is at hand, and its wait over."""
        self.cold, self.load_ms = grant.cold, grant.load_ms
        self.waited_ms = (self.clock() - self.asked_us) / 1000
        self.state = STREAMING

    async def tell(self, state: ModelState, position: int | None, reason: str | None) -> None:
        """News of the model while it is waited for."""
        self.state = LOADING if state is ModelState.LOADING else QUEUED
        changed = ModelChanged(self.ref.session_id, self.ref.model, state, position=position, reason=reason)
        await self.signals.put(changed)

    @contextlib.asynccontextmanager
    async def _elsewhere(self, find: Callable[[str], ModelRef], name: str) -> AsyncIterator[Place]:
        """The model called `name`, for the rest of this answer. Raises as `find` and the lease do."""
        model = find(name)

        async def tell(state: ModelState, position: int | None, reason: str | None) -> None:
            changed = ModelChanged(self.ref.session_id, model.name, state, position=position, reason=reason)
            await self.signals.put(changed)

        async with self.pool.lease(model, tell, self.request.runner_options):
            yield Place(model.runtime, model.info.name)

    def timing(self) -> Timing | None:
        """Whether arrivals show the model's own pace; null before there are any."""
        arrivals = self.stream.arrivals
        return timing_of(*zip(*arrivals, strict=True)) if arrivals else None

    def forget(self) -> None:
        """Drop what was asked: records outlive sessions, prompts must not."""
        asked = self.request
        self.request = GenerationRequest(asked.model, parameters=asked.parameters, runner_options=asked.runner_options)
        self.reply = self.forward = None
        stream = self.stream
        stream.request, stream.forward, stream.reply, stream.arrivals = self.request, None, None, []
        stream._resumption = None  # it has the prompt, and the answer so far
