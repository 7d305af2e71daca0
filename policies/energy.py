"""The constants of E(t) and EU as policies/energy.yaml gives them, and the set in force for one tier."""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

import math
from typing import Literal

import attrs

from engine.domain.energy import EnergyParams
from engine.domain.generation import TOP_K
from engine.domain.models import Tier
from policies.schema import Misfit, quoted, row, section


@attrs.frozen
class PerTier:
    """One number for each tier."""

    low: float = row(doc="low tier")
    mid: float = row(doc="mid tier")
    high: float = row(doc="high tier")
    hybrid: float = row(doc="hybrid tier")

    def of(self, tier: Tier) -> float:
        value: float = getattr(self, tier.value)
        return value


def _sums_to_one(_instance: object, field: attrs.Attribute[object], weights: Weights | FallbackWeights) -> None:
    total = math.fsum(attrs.astuple(weights))
    if abs(total - 1.0) > 1e-9:
        raise Misfit("numbers that sum to 1", f"{total:g}", (field.name,))


@attrs.frozen
class Weights:
    velocity: float = row(doc="of v", minimum=0, maximum=1)
    certainty: float = row(doc="of c * f", minimum=0, maximum=1)
    flow: float = row(doc="of f", minimum=0, maximum=1)


@attrs.frozen
class FallbackWeights:
    velocity: float = row(doc="of v", minimum=0, maximum=1)
    flow: float = row(doc="of f", minimum=0, maximum=1)


@attrs.frozen
class EuPolicy:
    base: float = row(doc="EU of a token at full factor", unit="EU", above=0, maximum=1000)
    offset: float = row(doc="what a token earns at E_base 0", minimum=0, maximum=10)
    model_factor: float = row(doc="factor of the model", above=0, maximum=1000)
    rate_alpha: float = row(doc="smoothing of eu_rate over frames", above=0, maximum=1)


@attrs.frozen
class EnergyPolicy:
    """policies/energy.yaml with the user's changes; the meaning of each constant stands there."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    window_ms: float = row(doc="span of the TPS count", unit="ms", minimum=10, maximum=60_000)
    tps_max: PerTier = row(doc="tokens per second of velocity 1", unit="tokens/s", above=0, maximum=100_000)
    stall_ms: PerTier = row(doc="stall line", unit="ms", above=0, maximum=600_000)
    ceil_ms: PerTier = row(doc="flow is 0 from here", unit="ms", above=0, maximum=600_000)
    alpha: PerTier = row(doc="share of the new token in E", above=0, maximum=1)
    weights: Weights = row(doc="of E_base", validator=_sums_to_one)
    weights_no_logprobs: FallbackWeights = row(doc="of E_base without log-probabilities", validator=_sums_to_one)
    half_life_ms: float = row(doc="half-life of E in silence", unit="ms", above=0, maximum=600_000)
    stall_tokens: int = row(doc="slow tokens that make a stall", unit="tokens", minimum=1, maximum=1000)
    silence_stall_factor: float = row(doc="stall lines of silence that make a stall", minimum=1, maximum=100)
    saturate: float = row(doc="E that saturates", minimum=0, maximum=1)
    saturate_dwell_ms: float = row(doc="how long E must stay there", unit="ms", minimum=0, maximum=600_000)
    unsaturate: float = row(doc="E that ends saturation", minimum=0, maximum=1)
    burst_fraction: float = row(doc="share of tps_max that is a burst", above=0, maximum=1)
    top_k: int = row(doc="entries certainty is taken from", unit="entries", minimum=2, maximum=TOP_K)
    eu: EuPolicy = section(doc="energy units")

    def __attrs_post_init__(self) -> None:
        for tier in Tier:
            if self.ceil_ms.of(tier) <= self.stall_ms.of(tier):
                raise Misfit(
                    f"more than stall_ms.{tier} ({self.stall_ms.of(tier):g})",
                    quoted(self.ceil_ms.of(tier)),
                    ("ceil_ms", tier.value),
                )
        if self.unsaturate > self.saturate:
            raise Misfit(f"at most saturate ({self.saturate:g})", quoted(self.unsaturate), ("unsaturate",))

    def params(self, tier: Tier) -> EnergyParams:
        """All constants in force for a stream on `tier`."""
        return EnergyParams(
            tier=tier.value,
            window_ms=self.window_ms,
            tps_max=self.tps_max.of(tier),
            stall_ms=self.stall_ms.of(tier),
            ceil_ms=self.ceil_ms.of(tier),
            alpha=self.alpha.of(tier),
            weight_velocity=self.weights.velocity,
            weight_certainty=self.weights.certainty,
            weight_flow=self.weights.flow,
            weight_velocity_no_logprobs=self.weights_no_logprobs.velocity,
            weight_flow_no_logprobs=self.weights_no_logprobs.flow,
            half_life_ms=self.half_life_ms,
            stall_tokens=self.stall_tokens,
            silence_stall_factor=self.silence_stall_factor,
            saturate=self.saturate,
            unsaturate=self.unsaturate,
            saturate_dwell_ms=self.saturate_dwell_ms,
            burst_fraction=self.burst_fraction,
            eu_base=self.eu.base,
            eu_offset=self.eu.offset,
            eu_model_factor=self.eu.model_factor,
            eu_rate_alpha=self.eu.rate_alpha,
            top_k=self.top_k,
        )
