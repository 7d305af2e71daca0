"""The constants of councils in force for a session, and how a disagreement was measured."""

from __future__ import annotations

import enum

import attrs


class DiMethod(enum.StrEnum):
    """What a disagreement was measured from."""

    JSD_TOPK = "jsd_topk"  # top lists of all members in the window
    TIMING = "timing"  # their pace alone, where some report no lists
    NONE = "none"  # not measured: di is null


@attrs.frozen
class EnsembleParams:
    """All constants in force for a council; published with its session so that anybody can recompute its figures.
    What each is for stands in policies/ensemble.yaml."""

    top_k: int
    average_ms: float
    window_ms: float
    window_deltas: float
    hold_ms: float
    sync_lost_ms: float
    kappa: float
    weight_default: float
    weight_certain: float
    weight_uncertain: float
    certain: float
    uncertain: float
    constructive: float
    destructive: float
    hysteresis: float
    dwell_windows: int
    correlation_samples: int
    resonance_models: int
    resonance_coherence_on: float
    resonance_coherence_off: float
    resonance_energy_on: float
    resonance_energy_off: float
    resonance_correlation: float
    resonance_dwell_ms: float
    resonance_interval_ms: float
