"""SatelliteRuntime: a model outside this machine, as a runtime like any other. It is asked only with the broker's
leave, in a time that is bounded, and while its breaker lets it be asked. It takes no place in the pool and waits for
nobody."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import ClassVar, Final, Protocol

import attrs
import trio

from actors.broker import Broker, Call, Satellite
from actors.provider_health import ProviderHealth
from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    Overloaded,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import Chunk, GenerationEnd, GenerationRequest
from engine.domain.models import Capability, Loaded, MemoryUse, ModelInfo, Probe
from engine.domain.runtime import Runtime
from policies.broker import BrokerMode, Occasion
from policies.egress import ConnectionFigures, Permit
from policies.retry import pause_s

KIND: Final = "satellite"

# Why a satellite is asked on behalf of the request at hand; the tasks it starts inherit it.
OCCASION: Final[ContextVar[Occasion]] = ContextVar("wf_broker_occasion", default=Occasion.NAMED)


class CloudRuntime(Protocol):
    """A runtime that needs a permit for what it asks."""

    @property
    def url(self) -> str: ...

    def under(self, permit: Permit) -> Runtime:
        """The same one, with that permit."""


class Connections(Protocol):
    """Those that are kept open to a provider, while `run` runs."""

    @property
    def figures(self) -> ConnectionFigures: ...

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...

    def close_idle(self) -> None: ...


@attrs.define(eq=False)
class _Answer:
    """What has come of one call."""

    end: GenerationEnd | None = None
    began: bool = False  # a token has come


@attrs.define(eq=False)
class SatelliteRuntime:
    """Implements `Runtime`. `models` are those that the configuration names: nobody is asked for a list. `key_problem`
    says why there is no key, null when there is one. `timeout_s` bounds a call beside the policy of the broker."""

    name: str
    runtime: CloudRuntime
    host: str
    port: int
    models: tuple[str, ...]
    broker: Broker
    health: ProviderHealth
    key_problem: str | None = None
    timeout_s: float = 30.0
    draw: Callable[[], float] = random.random
    connections: Connections | None = None  # null: each call has its own
    gives_logprobs: bool | None = None  # null: it shows in its answers only

    kind: ClassVar[str] = KIND
    local: ClassVar[bool] = False

    @property
    def url(self) -> str | None:
        return self.runtime.url

    async def probe(self) -> Probe:
        """Asks nobody. It counts as there while the broker is on; what it is really like shows when it is asked."""
        await trio.lowlevel.checkpoint()
        if self.broker.mode is BrokerMode.DISABLED:
            return Probe(up=False, reason="the broker is disabled: nothing is asked of it")
        return Probe(
            up=self.key_problem is None, reason=self.key_problem or "not asked before somebody wants an answer"
        )

    async def list_models(self) -> tuple[ModelInfo, ...]:
        await trio.lowlevel.checkpoint()
        able = (Capability.COMPLETION, Capability.CHAT)
        return tuple(
            ModelInfo(model, self.name, None, capabilities=able, details={"satellite": True, "host": self.host})
            for model in self.models
        )

    async def resident(self) -> Mapping[str, MemoryUse] | None:
        """None: there is nothing of it in memory here."""
        await trio.lowlevel.checkpoint()
        return None

    async def load(self, model: str) -> Loaded:
        """Raises InvalidRequest: nothing of it comes into the memory of this machine, and it may take nobody's place
        there."""
        await trio.lowlevel.checkpoint()
        raise InvalidRequest(f"{self.name}/{model} is outside this machine: there is nothing to load", model=model)

    async def unload(self, model: str) -> int:
        """Unloads nothing."""
        await trio.lowlevel.checkpoint()
        return 0

    def satellite(self, model: str) -> Satellite:
        return Satellite(self.name, self.host, self.port, model)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream an answer. What fails before its first token is tried again, while there is time; a call that takes
        too long raises UpstreamTimeout, whatever has come of it. Raises also as Broker.admit does, and
        RuntimeUnavailable without a key or while the breaker is open."""
        self._refuse_unready()
        call = await self.broker.admit(self.satellite(request.model), request, OCCASION.get())
        answer, outcome = _Answer(), "cancelled"
        try:
            deadline = trio.current_time() + min(self.broker.policy.call_max_s, self.timeout_s)
            async with AsyncExitStack() as stack:
                first, rest = await self._first(call, stack, deadline, answer)
                async with aclosing(self._timely(first, rest, deadline, answer)) as chunks:
                    yield chunks
            outcome = "finished" if answer.end is not None else UpstreamTruncated.code
        except EngineError as error:
            outcome = error.code
            if answer.began and isinstance(error, UpstreamTruncated | UpstreamProtocolError):
                self._failed()  # the attempt itself went well
            raise
        finally:
            await self.broker.settle(call, answer.end, "finished" if answer.end is not None else outcome)

    def _refuse_unready(self) -> None:
        if self.key_problem is not None:
            raise RuntimeUnavailable(f"{self.name} has no key: {self.key_problem}", status=401)
        now_s = trio.current_time()
        if not self.health.breaker.allows(now_s):
            wait_s = self.health.breaker.wait_s(now_s)
            raise RuntimeUnavailable(
                f"{self.name} has failed several times and is left alone for {wait_s:.0f} s more",
                breaker=self.health.state(now_s).value,
                retry_after_s=max(1, round(wait_s)),
            )

    async def _first(
        self, call: Call, stack: AsyncExitStack, deadline: float, answer: _Answer
    ) -> tuple[list[Chunk], AsyncIterator[Chunk]]:
        """The chunks up to the first token, and the stream behind them; `stack` closes it. Tried as often as the policy
        allows."""
        rules = self.broker.policy.retry.rules()
        while True:
            self._refuse_unready()
            self.broker.attempt(call)
            try:
                return await self._attempt(call, stack, deadline, answer)
            except EngineError as error:
                left_s = deadline - trio.current_time()
                pause = pause_s(rules, error, call.attempts, began=answer.began, left_s=left_s, draw=self.draw())
                if pause is None:
                    raise
            await trio.sleep(pause)

    async def _attempt(
        self, call: Call, stack: AsyncExitStack, deadline: float, answer: _Answer
    ) -> tuple[list[Chunk], AsyncIterator[Chunk]]:
        limit_s = min(self.broker.policy.first_token_s, deadline - trio.current_time())
        self.health.breaker = self.health.breaker.began(trio.current_time())
        try:
            async with AsyncExitStack() as attempt:
                with trio.fail_after(max(0.0, limit_s)):
                    runtime = self.runtime.under(call.permit)
                    chunks = await attempt.enter_async_context(runtime.generate(call.leaving.request))
                    first = await _to_first_token(chunks, answer)
                stack.push_async_exit(attempt.pop_all().__aexit__)
        except trio.TooSlowError:
            self._failed()
            raise UpstreamTimeout(f"{self.name} gave no token within {limit_s:g} s", limit_s=limit_s) from None
        except (RuntimeFault, Overloaded):
            self._failed()
            raise
        except BaseException:  # cancelled, or the request is at fault: it says nothing about the provider
            self.health.breaker = self.health.breaker.left()
            raise
        self.health.breaker = self.health.breaker.succeeded()
        return first, chunks

    async def _timely(
        self, first: list[Chunk], rest: AsyncIterator[Chunk], deadline: float, answer: _Answer
    ) -> AsyncGenerator[Chunk, None]:
        for chunk in first:
            yield chunk
        while answer.end is None:
            with trio.move_on_at(deadline) as patience:
                chunk_or_none = await anext(rest, None)
            if patience.cancelled_caught:
                raise UpstreamTimeout(f"{self.name} took longer than a call may take", limit_s=self.timeout_s)
            if chunk_or_none is None:
                return
            answer.end = chunk_or_none.end
            yield chunk_or_none

    def _failed(self) -> None:
        self.health.breaker = self.health.breaker.failed_at(trio.current_time())


async def _to_first_token(chunks: AsyncIterator[Chunk], answer: _Answer) -> list[Chunk]:
    """Up to the first chunk with text, or to the end. Raises UpstreamTruncated when there is neither."""
    found = []
    async for chunk in chunks:
        found.append(chunk)
        answer.end = chunk.end
        answer.began = bool(chunk.text)
        if answer.began or chunk.end is not None:
            return found
    raise UpstreamTruncated("the provider broke off before its first token")
