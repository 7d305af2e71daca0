"""How a provider of models fares, here or elsewhere: what its answers took, how many failed, and whether it is asked at
all. Folded from what sessions tell, so that all providers are measured alike."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import attrs

from engine.domain.telemetry import RECENT_MAX, percentile
from policies.breaker import Breaker, BreakerState

MODELS_MAX: Final = 256  # of one provider with a state of health; the longest unused one goes first


@attrs.define(eq=False)
class ModelHealth:
    """Times are µs on the engine clock, null where it never happened. `last_error` is a code."""

    last_load_us: int | None = None
    last_answer_us: int | None = None
    last_error_us: int | None = None
    last_error: str | None = None

    def report(self, now_us: int) -> dict[str, Any]:
        """Ages in seconds."""
        return {
            "last_load_s": _age_s(self.last_load_us, now_us),
            "last_answer_s": _age_s(self.last_answer_us, now_us),
            "last_error": self.last_error,
            "last_error_s": _age_s(self.last_error_us, now_us),
        }


@attrs.define(eq=False)
class ProviderHealth:
    """`requests` are sessions of one model that ended; of those, some were stopped and say nothing about it: they
    neither `succeeded` nor `failed`. Times to the first token and of whole answers are of those that succeeded."""

    name: str
    local: bool
    breaker: Breaker = attrs.field(factory=Breaker)
    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    ttft_ms: deque[float] = attrs.field(factory=lambda: deque(maxlen=RECENT_MAX))
    latency_ms: deque[float] = attrs.field(factory=lambda: deque(maxlen=RECENT_MAX))
    models: dict[str, ModelHealth] = attrs.field(factory=dict)

    @property
    def success_rate(self) -> float | None:
        ended = self.succeeded + self.failed
        return self.succeeded / ended if ended else None

    def state(self, now_s: float) -> BreakerState:
        return self.breaker.state(now_s)

    def model(self, name: str) -> ModelHealth:
        health = self.models.pop(name, None) or ModelHealth()
        self.models[name] = health  # last used last
        if len(self.models) > MODELS_MAX:
            del self.models[next(iter(self.models))]
        return health

    def answered(self, model: str, ttft_ms: float | None, latency_ms: float, now_us: int) -> None:
        self.requests += 1
        self.succeeded += 1
        if ttft_ms is not None:
            self.ttft_ms.append(ttft_ms)
        self.latency_ms.append(latency_ms)
        self.model(model).last_answer_us = now_us

    def erred(self, model: str, code: str, now_us: int, *, at_fault: bool) -> None:
        """`at_fault`: it is the provider's, not the caller's."""
        self.requests += 1
        self.failed += at_fault
        health = self.model(model)
        health.last_error, health.last_error_us = code, now_us

    def report(self, now_us: int, now_s: float) -> dict[str, Any]:
        """Its entry in `/stats`."""
        return {
            "name": self.name,
            "local": self.local,
            "requests": self.requests,
            "success_rate": self.success_rate,
            "ttft_ms": {"p50": percentile(self.ttft_ms, 50), "p95": percentile(self.ttft_ms, 95)},
            "latency_ms": {"p50": percentile(self.latency_ms, 50), "p95": percentile(self.latency_ms, 95)},
            "breaker": self.state(now_s).value,
            "models": [{"name": name, **health.report(now_us)} for name, health in self.models.items()],
        }


def _age_s(then_us: int | None, now_us: int) -> float | None:
    return None if then_us is None else max(0.0, (now_us - then_us) / 1e6)
