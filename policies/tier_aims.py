"""What was measured of a model, beside what its tier aims at. A miss is told, and nothing is refused for it. Pure."""

from __future__ import annotations

from typing import Final

import attrs

from engine.domain.telemetry import ModelFigures
from policies.tiers import TierLimits

NO_ANSWER: Final = "no answer of it was measured yet"
NO_PACE: Final = "no answer of it had two tokens to measure between"
NOT_TOLD: Final = "its runtime does not tell whether it had to be loaded"
NEVER_WARM: Final = "no answer is known to have found it in memory"
NEVER_COLD: Final = "no answer is known to have waited for its load"


@attrs.frozen
class Held:
    """One figure, and the aim it is held against, in the same unit. What was not measured is null, `missed` with it,
    and then `reason` says why."""

    measured: float | None
    aim: float
    missed: bool | None
    reason: str | None


@attrs.frozen
class AgainstTier:
    """`tps` in tokens/s should be no less than its aim; the times to the first token, with the model in memory and with
    its load, no more. Both times are the last of their kind."""

    tps: Held
    ttft_warm_ms: Held
    ttft_cold_ms: Held

    @property
    def below(self) -> bool | None:
        """Slower than the tier aims at, in any of them; null when nothing was measured."""
        known = [held.missed for held in (self.tps, self.ttft_warm_ms, self.ttft_cold_ms) if held.missed is not None]
        return any(known) if known else None


def hold(limits: TierLimits, figures: ModelFigures | None) -> AgainstTier:
    """The figures of one model against the tier's; `figures` null for a model that nobody has asked yet."""
    figures = figures or ModelFigures()
    tps, warm_ms, cold_ms = figures.tps_average, figures.ttft_warm_ms, figures.ttft_cold_ms
    if not figures.ttft_ms:
        no_pace = not_warm = not_cold = NO_ANSWER
    else:
        no_pace, not_warm, not_cold = NO_PACE, NEVER_WARM, NEVER_COLD
        if warm_ms is None and cold_ms is None:
            not_warm = not_cold = NOT_TOLD
    return AgainstTier(
        Held(tps, limits.tps_minimum, None, no_pace)
        if tps is None
        else Held(tps, limits.tps_minimum, tps < limits.tps_minimum, None),
        _late(warm_ms, limits.ttft_warm_ms, not_warm),
        _late(cold_ms, limits.ttft_cold_ms, not_cold),
    )


def _late(ttft_ms: float | None, aim_ms: float, why_not: str) -> Held:
    return Held(ttft_ms, aim_ms, None, why_not) if ttft_ms is None else Held(ttft_ms, aim_ms, ttft_ms > aim_ms, None)
