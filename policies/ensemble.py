"""The constants of councils as policies/ensemble.yaml gives them, and the set in force for a session."""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

from typing import Literal

import attrs

from engine.domain.cadence import PAIR_SAMPLES_MAX
from engine.domain.ensemble_params import EnsembleParams
from engine.domain.generation import TOP_K
from policies.schema import Misfit, quoted, row, section


@attrs.frozen
class WindowPolicy:
    minimum_ms: float = row(doc="tokens of a window are no older", unit="ms", minimum=1, maximum=60_000)
    deltas: float = row(doc="or than so many median times between arrivals", minimum=0, maximum=100)
    hold_ms: float = row(doc="how long the last disagreement is held", unit="ms", minimum=0, maximum=60_000)
    sync_lost_ms: float = row(doc="no window for so long is lost sync", unit="ms", minimum=0, maximum=600_000)

    def __attrs_post_init__(self) -> None:
        if self.sync_lost_ms < self.hold_ms:
            raise Misfit(f"at least hold_ms ({self.hold_ms:g})", quoted(self.sync_lost_ms), ("sync_lost_ms",))


@attrs.frozen
class WeightPolicy:
    default: float = row(doc="of a member", above=0, maximum=2)
    certain: float = row(doc="of a certain one", above=0, maximum=2)
    uncertain: float = row(doc="of an uncertain one", above=0, maximum=2)
    certain_from: float = row(doc="mean certainty that makes it certain", minimum=0, maximum=1)
    uncertain_to: float = row(doc="mean certainty that makes it uncertain", minimum=0, maximum=1)

    def __attrs_post_init__(self) -> None:
        if self.uncertain_to >= self.certain_from:
            raise Misfit(
                f"less than certain_from ({self.certain_from:g})", quoted(self.uncertain_to), ("uncertain_to",)
            )


@attrs.frozen
class InterferencePolicy:
    constructive: float = row(doc="disagreement at or below is constructive", minimum=0, maximum=1)
    destructive: float = row(doc="disagreement at or above is destructive", minimum=0, maximum=1)
    hysteresis: float = row(doc="how far past its edge a band is left", minimum=0, maximum=0.5)
    dwell_windows: int = row(doc="windows in a row that change it", unit="windows", minimum=1, maximum=1000)
    correlation_samples: int = row(
        doc="samples a cadence correlation needs", unit="samples", minimum=3, maximum=PAIR_SAMPLES_MAX
    )

    def __attrs_post_init__(self) -> None:
        if self.constructive >= self.destructive:
            raise Misfit(f"less than destructive ({self.destructive:g})", quoted(self.constructive), ("constructive",))
        room = min(self.constructive, 1 - self.destructive)
        if self.hysteresis > room:
            raise Misfit(f"at most {room:g}, or neutral could never be left", quoted(self.hysteresis), ("hysteresis",))


@attrs.frozen
class ResonancePolicy:
    models: int = row(doc="members at least", unit="models", minimum=2, maximum=6)
    coherence_on: float = row(doc="coherence to start", minimum=0, maximum=1)
    coherence_off: float = row(doc="coherence below ends it", minimum=0, maximum=1)
    energy_on: float = row(doc="ensemble energy to start", minimum=0, maximum=1)
    energy_off: float = row(doc="ensemble energy below ends it", minimum=0, maximum=1)
    correlation: float = row(doc="cadence correlation to start", minimum=-1, maximum=1)
    dwell_ms: float = row(doc="how long all of it must hold", unit="ms", minimum=0, maximum=600_000)
    interval_ms: float = row(doc="from start to start at least", unit="ms", minimum=0, maximum=3_600_000)

    def __attrs_post_init__(self) -> None:
        for name in ("coherence", "energy"):
            on, off = getattr(self, f"{name}_on"), getattr(self, f"{name}_off")
            if off > on:
                raise Misfit(f"at most {name}_on ({on:g})", quoted(off), (f"{name}_off",))


@attrs.frozen
class EnsemblePolicy:
    """policies/ensemble.yaml with the user's changes; the meaning of each constant stands there."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    top_k: int = row(doc="entries disagreement is taken from", unit="entries", minimum=1, maximum=TOP_K)
    average_ms: float = row(doc="span of means and correlation", unit="ms", minimum=10, maximum=60_000)
    kappa: float = row(doc="strength of the modulation", minimum=0, maximum=1)
    window: WindowPolicy = section(doc="aligned windows")
    weights: WeightPolicy = section(doc="of the ensemble energy")
    interference: InterferencePolicy = section(doc="bands of disagreement")
    resonance: ResonancePolicy = section(doc="agreement at high energy in one rhythm")

    def params(self) -> EnsembleParams:
        """All constants in force for a council."""
        return EnsembleParams(
            top_k=self.top_k,
            average_ms=self.average_ms,
            window_ms=self.window.minimum_ms,
            window_deltas=self.window.deltas,
            hold_ms=self.window.hold_ms,
            sync_lost_ms=self.window.sync_lost_ms,
            kappa=self.kappa,
            weight_default=self.weights.default,
            weight_certain=self.weights.certain,
            weight_uncertain=self.weights.uncertain,
            certain=self.weights.certain_from,
            uncertain=self.weights.uncertain_to,
            constructive=self.interference.constructive,
            destructive=self.interference.destructive,
            hysteresis=self.interference.hysteresis,
            dwell_windows=self.interference.dwell_windows,
            correlation_samples=self.interference.correlation_samples,
            resonance_models=self.resonance.models,
            resonance_coherence_on=self.resonance.coherence_on,
            resonance_coherence_off=self.resonance.coherence_off,
            resonance_energy_on=self.resonance.energy_on,
            resonance_energy_off=self.resonance.energy_off,
            resonance_correlation=self.resonance.correlation,
            resonance_dwell_ms=self.resonance.dwell_ms,
            resonance_interval_ms=self.resonance.interval_ms,
        )
