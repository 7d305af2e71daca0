"""Providers: how all of them fare, and which of them answers where the one that was asked cannot. It is no task: it
hears what sessions tell where the signals pass, and decides between two awaits."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import trio

from actors.broker import Broker
from actors.catalog import Catalog, ModelRef, Seats
from actors.provider_health import ProviderHealth
from actors.pulls import ModelPulls
from actors.satellite import OCCASION, SatelliteRuntime
from actors.session import SessionRequest
from engine.domain.council import MemberEnded
from engine.domain.errors import (
    BrokerDisabled,
    EngineError,
    FallbackFailed,
    InvalidRequest,
    ModelNotFound,
    RuntimeFault,
    RuntimeUnavailable,
)
from engine.domain.events import AnswerResumed, MappedSignal, ModelChanged, SessionClosed, SessionOpened
from engine.domain.generation import Clock, EndReason, GenerationRequest, Origin, Seam
from engine.domain.models import Capability, ModelState
from engine.domain.usage import FALLBACK
from policies.breaker import Breaker, BreakerState
from policies.broker import BrokerMode, Occasion
from policies.retry import pause_s
from policies.selection import Choice, FallbackRules, Offer, Wants, choose


class Unasked(RuntimeUnavailable):
    """A provider that cannot be asked as it is configured."""


AGAIN_S: Final = 30.0  # from a session's start; then its model is not asked again
SESSIONS_MAX: Final = 8192  # followed at once; beyond it the oldest is forgotten
PROVIDERS: Final = frozenset({"openai", "anthropic", "openrouter"})  # names that can only mean a satellite, if nothing
# Codes by which a provider is at fault, and not the request or our own limits.
FAULTS: Final = frozenset(
    {
        "RUNTIME_UNAVAILABLE", "MODEL_LOAD_FAILED", "MODEL_LOAD_TIMEOUT", "UPSTREAM_PROTOCOL_ERROR",
        "UPSTREAM_TRUNCATED", "UPSTREAM_TIMEOUT",
    }
)  # fmt: skip
TELLS_LOGPROBS: Final = frozenset({"embedded", "synthetic", "ollama"})  # kinds that list the capability where it is
_OK: Final = frozenset({EndReason.FINISHED, EndReason.LENGTH, EndReason.STOP})

logger = logging.getLogger("wf.providers")


@attrs.define(eq=False)
class Providers:
    """`busy_share` tells how much of the local streams is in use, 0 to 1. `fallbacks` counts (asked, answered by)."""

    catalog: Catalog
    pulls: ModelPulls
    broker: Broker
    clock: Clock
    rules: FallbackRules = attrs.field(factory=FallbackRules)
    busy_share: Callable[[], float] = lambda: 0.0
    draw: Callable[[], float] = random.random
    health: dict[str, ProviderHealth] = attrs.field(factory=dict)
    fallbacks: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    _open: dict[str, tuple[str, str]] = attrs.field(factory=dict)  # session to its model and that one's provider

    def __attrs_post_init__(self) -> None:
        for name, runtime in self.catalog.runtimes.items():
            own = runtime.health if isinstance(runtime, SatelliteRuntime) else None
            rules = self.broker.policy.breaker.rules()
            self.health[name] = own or ProviderHealth(name, runtime.local, Breaker(rules))

    @property
    def satellites(self) -> list[SatelliteRuntime]:
        """Those that are configured, whether or not they may be asked."""
        return [runtime for runtime in self.catalog.runtimes.values() if isinstance(runtime, SatelliteRuntime)]

    # ── how they fare ──

    def observe(self, signal: MappedSignal) -> None:
        """Sessions of one model, and the members of councils. Never waits."""
        match signal:
            case SessionOpened(streams=(ref,)):
                provider = self._provider_of(ref.model)
                if provider is not None:
                    self._open[signal.session_id] = ref.model, provider
                    if len(self._open) > SESSIONS_MAX:
                        del self._open[next(iter(self._open))]
            case AnswerResumed(session_id=session_id, seam=seam) if seam.position == 0:
                self._replaced(session_id, seam)
            case SessionClosed():
                model, provider = self._open.pop(signal.session_id, (None, None))
                self._ended(model, provider, signal)
            case MemberEnded():
                self._ended(signal.stream.model, self._provider_of(signal.stream.model), signal)
            case ModelChanged(state=ModelState.READY):
                provider = self._provider_of(signal.model)
                if provider is not None:
                    self.health[provider].model(signal.model).last_load_us = self.clock()

    def report(self) -> list[dict[str, Any]]:
        """The entries of `/stats`, in the order in which the runtimes are asked."""
        now_us, now_s = self.clock(), trio.current_time()
        return [health.report(now_us, now_s) for health in self.health.values()]

    def _ended(self, model: str | None, provider: str | None, closed: SessionClosed | MemberEnded) -> None:
        if model is None or provider is None:
            return
        health, now_us = self.health[provider], self.clock()
        if closed.reason in _OK:
            health.answered(model, closed.ttft_ms, closed.duration_ms, now_us)
            if health.local:
                health.breaker = health.breaker.succeeded()
        elif closed.error is not None:
            self._erred(model, health, str(closed.error.get("code", "")))
        else:
            health.requests += 1

    def _replaced(self, session_id: str, seam: Seam) -> None:
        """The model that was asked could not begin to answer, and another one does."""
        model, provider = self._open.pop(session_id, (None, None))
        if model is not None and provider is not None:
            self._erred(model, self.health[provider], seam.reason)
        provider = self._provider_of(seam.model)
        if provider is not None:
            self._open[session_id] = seam.model, provider

    def _erred(self, model: str, health: ProviderHealth, code: str) -> None:
        health.erred(model, code, self.clock(), at_fault=code in FAULTS)
        if health.local and code in FAULTS:  # a satellite's breaker is told by whoever asks it
            health.breaker = health.breaker.failed_at(trio.current_time())

    def _provider_of(self, model: str) -> str | None:
        found = self.catalog.listed(model)
        return found.runtime.name if found is not None and found.runtime.name in self.health else None

    # ── who answers ──

    async def resolve(self, name: str, wants: Wants | None = None) -> ModelRef:
        """The model called `name`, downloaded first as ModelPulls.resolve does. With `wants`, where fallback is enabled
        and it cannot be had, or the machine is busy and the broker's mode is hybrid: the one that stands in for it.

        Raises as ModelPulls.resolve does; BrokerDisabled for a model elsewhere while nothing may leave; FallbackFailed
        when nobody is left."""
        if self._means_elsewhere(name):
            raise self._disabled(name)
        try:
            await self._refuse_unlisted(name)
            model = await self.pulls.resolve(name, explicit=False)
        except (ModelNotFound, Unasked) as error:
            if wants is None or not self.rules.enabled:
                raise
            return self._stand_in(name, error.message, wants, Occasion.NO_LOCAL)
        if wants is None or not self.rules.enabled or model.seats is not None or model.satellite:
            return model
        health = self.health.get(model.runtime.name)
        if health is not None and health.state(trio.current_time()) is BreakerState.OPEN:
            return self._stand_in(name, f"{health.name} has failed several times", wants, Occasion.NO_LOCAL)
        if self.broker.mode is BrokerMode.HYBRID and self.busy_share() >= self.broker.policy.busy_share:
            return self._relief(model, wants)
        return model

    def next_after(
        self, failed: ModelRef, error: EngineError, wants: Wants, tried: list[tuple[ModelRef, EngineError]]
    ) -> ModelRef:
        """Who answers in place of `failed`, which could not begin to: the next provider that can. `tried` keeps who
        was asked so far. Raises `error` itself where nobody stands in for it, and FallbackFailed when nobody is
        left."""
        if not self.rules.enabled or failed.seats is not None or error.code not in FAULTS:
            raise error
        tried.append((failed, error))
        asked = tried[0][0].name
        providers = frozenset(model.runtime.name for model, _ in tried)
        passed = [{"model": model.name, "reason": f"{reason.code}: {reason.message}"} for model, reason in tried]
        return self._stand_in(asked, error.message, wants, Occasion.NO_LOCAL, providers, passed)

    def stand_ins(self, model: ModelRef, wants: Wants) -> Callable[[EngineError], ModelRef] | None:
        """For a session of `model`: who answers where it cannot begin to. None where nobody would; the same rules as
        `next_after`."""
        if not self.rules.enabled or model.seats is not None:
            return None
        tried: list[tuple[ModelRef, EngineError]] = []
        asked = [model]

        def instead(error: EngineError) -> ModelRef:
            asked.append(self.next_after(asked[-1], error, wants, tried))
            return asked[-1]

        return instead

    def again(self, model: ModelRef) -> Callable[[EngineError], float | None] | None:
        """For a session of `model`, one of this machine: after how many seconds it is asked again where it could not
        begin; None where it is not. What our own limits refuse is not asked again, and satellites have rules of their
        own."""
        if self.rules.attempts_max == 1 or model.satellite or model.seats is not None:
            return None
        rules = attrs.evolve(self.broker.policy.retry.rules(), attempts_max=self.rules.attempts_max)
        until_s, attempts = trio.current_time() + AGAIN_S, itertools.count(1)

        def pause(error: EngineError) -> float | None:
            if not isinstance(error, RuntimeFault) and "status" not in error.details:
                return None
            left_s = until_s - trio.current_time()
            return pause_s(rules, error, next(attempts), began=False, left_s=left_s, draw=self.draw())

        return pause

    def admit(self, asked: SessionRequest) -> SessionRequest:
        """`asked` as it may begin. One of a satellite is marked as such, and each satellite of a council must be
        allowed too. Raises as Broker.check, and InvalidRequest for a council that would wait for one: without a member
        of this machine, or with a judge outside."""
        seats = asked.model.seats
        if seats is not None:
            self._admit_council(asked.request, seats)
        runtime = asked.model.runtime
        if not isinstance(runtime, SatelliteRuntime):
            return asked
        self.broker.check(runtime.satellite(asked.model.info.name), asked.request, OCCASION.get())
        return attrs.evolve(asked, origin=Origin.SATELLITE)

    def _admit_council(self, request: GenerationRequest, seats: Seats) -> None:
        if seats.judge is not None and seats.judge.satellite:
            raise InvalidRequest(f"judge: {seats.judge.name} is outside this machine, and all would wait for it")
        if all(member.satellite for member in seats.members):
            raise InvalidRequest("models: a council has a model of this machine in it; the others sit beside it")
        for member in seats.members:
            if isinstance(member.runtime, SatelliteRuntime):
                self.broker.check(member.runtime.satellite(member.info.name), request, OCCASION.get())

    def refuse_elsewhere(self, names: Iterable[str]) -> None:
        """Raises BrokerDisabled for the first of them that can only mean a model outside this machine, while nothing
        may leave."""
        for name in names:
            if self._means_elsewhere(name):
                raise self._disabled(name)

    def _means_elsewhere(self, name: str) -> bool:
        """A model of a satellite, while nothing may leave. One of this machine may have the same name."""
        provider, _, rest = name.partition("/")
        runtime = self.catalog.runtimes.get(provider)
        known = isinstance(runtime, SatelliteRuntime) or (runtime is None and provider in PROVIDERS)
        if not (rest and known and self.broker.mode is BrokerMode.DISABLED):
            return False
        try:
            return self.catalog.find(name).satellite
        except EngineError:
            return True

    async def _refuse_unlisted(self, name: str) -> None:
        """A model of a satellite that is not listed is nothing to be downloaded. Raises ModelNotFound, or Unasked where
        there is no key."""
        provider, _, rest = name.partition("/")
        runtime = self.catalog.runtimes.get(provider)
        if not rest or not isinstance(runtime, SatelliteRuntime):
            return
        await self.catalog.asked.wait()
        with suppress(EngineError):
            self.catalog.find(name)
            return
        if runtime.key_problem is not None:
            raise Unasked(f"{provider} has no key: {runtime.key_problem}", model=name)
        raise ModelNotFound(
            f"{rest} is not among the preferred_models of {provider}, and nobody is asked for a list",
            model=name,
            available=[f"{provider}/{model}" for model in runtime.models],
        )

    def _disabled(self, name: str) -> EngineError:
        need = "" if self.broker.tier_allows else " and the tier hybrid"
        return BrokerDisabled(
            f"{name} is outside this machine, and the broker is disabled; it takes `broker.mode`{need}, and consent",
            mode=self.broker.mode.value,
            model=name,
        )

    def _stand_in(
        self,
        name: str,
        why: str,
        wants: Wants,
        occasion: Occasion,
        besides: frozenset[str] = frozenset(),
        tried: Sequence[Mapping[str, str]] = (),
    ) -> ModelRef:
        """`besides` are providers that are out of the question, `tried` says why."""
        offered = [m for m in self.catalog.models if m.name != name and m.runtime.name not in besides]
        choice = self._choose(offered, wants, occasion)
        if choice.chosen is None:
            raise FallbackFailed(
                f"{name} cannot be had ({why}), and nobody can stand in for it",
                model=name,
                passed=[*tried, *({"model": model, "reason": reason} for model, reason in choice.passed)],
            )
        return self._taken(name, choice, why, occasion)

    def _relief(self, model: ModelRef, wants: Wants) -> ModelRef:
        """A satellite in place of a busy local model, where one may answer; else the model itself, which is waited
        for."""
        choice = self._choose([m for m in self.catalog.models if m.satellite], wants, Occasion.BUSY)
        return model if choice.chosen is None else self._taken(model.name, choice, "the machine is busy", Occasion.BUSY)

    def _taken(self, name: str, choice: Choice, why: str, occasion: Occasion) -> ModelRef:
        assert choice.chosen is not None
        found = self.catalog.find(choice.chosen.model)
        if found.satellite:
            OCCASION.set(occasion)
        self.fallbacks[name, found.name] += 1
        FALLBACK.set(occasion.value)  # the usage ledger counts it with the answer
        logger.warning("%s answers for %s: %s", found.name, name, why)
        return found

    def _choose(self, models: Iterable[ModelRef], wants: Wants, occasion: Occasion) -> Choice:
        return choose([self._offer(model, occasion) for model in models], wants, self.rules)

    def _offer(self, model: ModelRef, occasion: Occasion) -> Offer:
        info, probe = model.info, self.catalog.probes.get(model.runtime.name)
        health = self.health.get(model.runtime.name)
        state = BreakerState.CLOSED if health is None else health.state(trio.current_time())
        details: Mapping[str, Any] = info.details
        length = details.get("context_length")
        able = details.get("capabilities")
        known = able if isinstance(able, list | tuple) else None
        return Offer(
            model=model.name,
            provider=model.runtime.name,
            kind=model.runtime.kind,
            local=model.runtime.local,
            up=probe is not None and probe.up,
            breaker=state,
            context_length=length if isinstance(length, int) else None,
            tools=None if known is None else "tools" in known,
            vision=None if known is None else "vision" in known,
            logprobs=_gives_logprobs(model),
            why_not=self.broker.objection(occasion) if model.satellite else None,
        )


def _gives_logprobs(model: ModelRef) -> bool | None:
    """Null where it shows in answers only."""
    if Capability.LOGPROBS in model.info.capabilities:
        return True
    runtime = model.runtime
    if isinstance(runtime, SatelliteRuntime):
        return runtime.gives_logprobs
    return False if runtime.kind in TELLS_LOGPROBS else None
