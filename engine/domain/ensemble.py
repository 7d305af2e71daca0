"""Energy of a council: E of its members as one, how far they disagree, and what follows from that.

    energy      Σ γ_m · E_m / Σ γ_m over the members that have an energy
    γ_m         1.2 when the member's mean certainty over the last second is high, 0.8 when it is low, else 1.0
    modulated   energy · (1 + κ · (1 − 2·DI)), clamped: more than energy when the members agree, less when not

DI comes from the council's aligned windows (aligned_window.py). Constants stand in policies/ensemble.yaml. Nothing here
enters the EU ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from engine.domain.aligned_window import AlignedWindow, WindowAligner
from engine.domain.energy import EnergySample, clamp
from engine.domain.ensemble_params import DiMethod, EnsembleParams
from engine.domain.interference import Interference, InterferenceChange, interference_change
from engine.domain.resonance import Harmony, Resonance, ResonanceChange

__all__ = [
    "DiMethod",
    "EnsembleMeter",
    "EnsembleParams",
    "EnsembleReading",
    "EnsembleStep",
    "EnsembleWindow",
    "InterferenceChange",
    "ResonanceChange",
]


@attrs.frozen
class EnsembleReading:
    """`energy.update.ensemble`. `weights` are the shares γ_m / Σγ of the members that have an energy; they sum to 1.
    `di` is null for `reason`. `sync_latency_ms` is the time between the earliest and the latest token of the window,
    throttled ones left out."""

    energy: float
    modulated: float
    gain: float
    di: float | None
    di_method: DiMethod
    di_stale: bool
    mixture_uncertainty: float | None
    sync_latency_ms: float | None
    weights: Mapping[str, float]
    reason: str | None


@attrs.frozen
class EnsembleWindow:
    """`council.ensemble`: a new aligned window. `positions` are the tokens in it, by stream. `agreement` is 1 − JSD of
    every pair of members that both reported a top list, whatever the method of `di`."""

    positions: Mapping[str, int]
    energy: float
    di: float | None
    di_method: DiMethod
    sync_latency_ms: float | None
    agreement: tuple[tuple[str, str, float], ...]


@attrs.frozen
class EnsembleStep:
    """What one frame tells of a council. `reading` is null when no member has an energy."""

    reading: EnsembleReading | None
    windows: tuple[EnsembleWindow, ...] = ()
    interference: InterferenceChange | None = None
    resonance: ResonanceChange | None = None


def certainty_weight(mean_certainty: float | None, params: EnsembleParams) -> float:
    """γ of a member."""
    if mean_certainty is None:
        return params.weight_default
    if mean_certainty >= params.certain:
        return params.weight_certain
    return params.weight_uncertain if mean_certainty <= params.uncertain else params.weight_default


def weighted_mean(energies: Sequence[float], weights: Sequence[float]) -> float:
    """Σ γE / Σ γ, never outside the energies. Raises ZeroDivisionError when the weights sum to 0."""
    mean = sum([energy * weight for energy, weight in zip(energies, weights, strict=True)]) / sum(weights)
    return min(max(mean, min(energies)), max(energies))  # rounding must not leave the range


def modulate(energy: float, di: float | None, params: EnsembleParams) -> float:
    """What agreement makes of `energy`; itself at DI 0.5 and where DI is not known."""
    return energy if di is None else clamp(energy * (1.0 + params.kappa * (1.0 - 2.0 * di)))


@attrs.define(eq=False)
class EnsembleMeter:
    """The fold over one council: members join, bring tokens and leave; `step` reads it out once per frame.

    Deterministic: the same calls give the same figures. Joining again begins anew. Samples of who is not a member are
    counted in `orphans` and do nothing. After the last `leave`, step once more, so that a resonance is ended.
    """

    params: EnsembleParams
    orphans: int = 0
    _aligner: WindowAligner = attrs.field(init=False)
    _interference: Interference = attrs.field(init=False)
    _resonance: Resonance = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._aligner = WindowAligner(self.params)
        self._interference, self._resonance = Interference(self.params), Resonance(self.params)

    def join(self, stream_id: str) -> None:
        self._aligner.join(stream_id)

    def take(self, stream_id: str, samples: Sequence[EnergySample]) -> None:
        """Tokens of a member, in their order."""
        member = self._aligner.members.get(stream_id)
        if member is None:
            self.orphans += len(samples)
            return
        for sample in samples:
            member.take(sample)

    def leave(self, stream_id: str) -> None:
        """It finished or dropped out; from now on the others are the council."""
        self._aligner.leave(stream_id)

    def step(self, now_us: int, energies: Mapping[str, float | None], *, patterns: bool = True) -> EnsembleStep:
        """The council at `now_us`, which never goes back. `energies` are E of the members by stream at that moment,
        None for who has none yet. Without `patterns` disagreement, interference and resonance are left out to save
        their time; a resonance in force ends then."""
        aligner, new = self._aligner, False
        since_us = now_us - round(self.params.average_ms * 1000)
        for member in aligner.members.values():
            member.pace.forget(since_us)
        weights, energy = self._energy(energies)
        if patterns:
            new = aligner.step(now_us)
        else:
            aligner.set_aside()
        window = aligner.window
        interference = self._interfere(now_us, window, new)
        resonance = self._resonance.step(now_us, self._harmony(now_us, energy, window))
        if energy is None:
            return EnsembleStep(None, (), interference, resonance)
        di = None if window is None else window.di
        modulated = modulate(energy, di, self.params)
        reading = EnsembleReading(
            energy=energy,
            modulated=modulated,
            gain=modulated - energy,
            di=di,
            di_method=DiMethod.NONE if window is None else window.method,
            di_stale=aligner.stale and di is not None,
            mixture_uncertainty=None if window is None else window.mixture_uncertainty,
            sync_latency_ms=None if window is None else window.sync_latency_ms,
            weights=weights,
            reason=aligner.reason if window is None else window.reason,
        )
        return EnsembleStep(reading, (_told(window, energy),) if new and window else (), interference, resonance)

    def _energy(self, energies: Mapping[str, float | None]) -> tuple[dict[str, float], float | None]:
        """Shares and mean of the members that have an energy."""
        known: list[float] = []
        gammas: dict[str, float] = {}
        for stream_id, member in self._aligner.members.items():
            energy = energies.get(stream_id)
            if energy is not None:
                known.append(energy)
                gammas[stream_id] = certainty_weight(member.pace.mean_certainty(), self.params)
        if not known:
            return {}, None
        total = sum(gammas.values())
        shares = {stream_id: gamma / total for stream_id, gamma in gammas.items()}
        return shares, weighted_mean(known, list(gammas.values()))

    def _interfere(self, now_us: int, window: AlignedWindow | None, new: bool) -> InterferenceChange | None:
        if window is None or window.di is None:
            self._interference.interrupt()
            return None
        pattern = self._interference.window(window.di, window.method) if new else None
        if pattern is None:
            return None
        streams = tuple(window.positions)
        return interference_change(pattern, window.di, self._aligner.correlation(now_us, streams), streams)

    def _harmony(self, now_us: int, energy: float | None, window: AlignedWindow | None) -> Harmony:
        aligner, coherence = self._aligner, None
        streams = () if window is None else tuple([s for s in window.positions if s in aligner.members])
        if window is not None and window.di is not None and window.method is DiMethod.JSD_TOPK:
            coherence = 1.0 - window.di if len(streams) >= self.params.resonance_models else None
        return Harmony(coherence, energy, not aligner.stale, lambda: aligner.correlation(now_us, streams), streams)


def _told(window: AlignedWindow, energy: float) -> EnsembleWindow:
    return EnsembleWindow(window.positions, energy, window.di, window.method, window.sync_latency_ms, window.agreement)
