"""Tokens, constants and whole runs of councils for the domain's tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from engine.domain.energy import EnergySample, Uncertainty
from engine.domain.ensemble import EnsembleMeter, EnsembleParams, EnsembleStep
from engine.domain.generation import Token, TokenKind, TopEntry

# The reference figures.
PARAMS = EnsembleParams(
    top_k=10,
    average_ms=1000,
    window_ms=100,
    window_deltas=1.5,
    hold_ms=1000,
    sync_lost_ms=2000,
    kappa=0.25,
    weight_default=1.0,
    weight_certain=1.2,
    weight_uncertain=0.8,
    certain=0.7,
    uncertain=0.3,
    constructive=0.3,
    destructive=0.7,
    hysteresis=0.05,
    dwell_windows=3,
    correlation_samples=5,
    resonance_models=2,
    resonance_coherence_on=0.85,
    resonance_coherence_off=0.75,
    resonance_energy_on=0.70,
    resonance_energy_off=0.60,
    resonance_correlation=0.7,
    resonance_dwell_ms=800,
    resonance_interval_ms=5000,
)
MS = 1000  # microseconds
FRAME_US = 16_667
CAT = {"cat": 1.0}
DOG = {"dog": 1.0}


def entries(probabilities: Mapping[str, float]) -> tuple[TopEntry, ...]:
    return tuple(TopEntry(text, math.log(p) if p > 0 else -math.inf) for text, p in probabilities.items())


def sample(
    position: int,
    t_us: int,
    delta_us: int | None,
    top: Mapping[str, float] | None = None,
    *,
    certainty: float | None = None,
    throttled: bool = False,
) -> EnergySample:
    said = entries(top or {})
    token = Token(
        text="x",
        kind=TokenKind.ANSWER,
        position=position,
        offset=position,
        t_us=t_us,
        delta_us=delta_us,
        logprob=said[0].logprob if said else None,
        top=said,
        coalesced=delta_us == 0,
        throttled=throttled,
    )
    return EnergySample(token, 0.5, 0.5, Uncertainty(certainty), 20.0, False, False, 1)


class Council:
    """A meter with members, and the positions and stamps of what they said."""

    def __init__(self, *streams: str, params: EnsembleParams = PARAMS, energy: float | None = 0.8) -> None:
        self.meter = EnsembleMeter(params)
        self.energies: dict[str, float | None] = dict.fromkeys(streams, energy)
        self.last: dict[str, tuple[int, int]] = {}
        for stream in streams:
            self.meter.join(stream)

    def say(
        self,
        stream: str,
        t_us: int,
        top: Mapping[str, float] | None = None,
        *,
        certainty: float | None = None,
        throttled: bool = False,
    ) -> None:
        position, last_us = self.last.get(stream, (-1, 0))
        delta_us = t_us - last_us if stream in self.last else None
        self.last[stream] = (position + 1, t_us)
        said = sample(position + 1, t_us, delta_us, top, certainty=certainty, throttled=throttled)
        self.meter.take(stream, [said])

    def step(self, now_us: int, *, patterns: bool = True) -> EnsembleStep:
        return self.meter.step(now_us, self.energies, patterns=patterns)

    def leave(self, stream: str) -> None:
        self.meter.leave(stream)
        self.energies.pop(stream)


words = st.sampled_from([" the", "the", "▁the", "Ġcat", " cat", "é", "e\u0301", "\n", " ", "▁", "", "x", "y", "z"])


@st.composite
def top_lists(draw: st.DrawFn, texts: st.SearchStrategy[str] = words) -> dict[str, float]:
    """Distinct texts with probabilities that sum to at most 1, some of them 0."""
    chosen = draw(st.lists(texts, min_size=1, max_size=10, unique=True))
    shares = draw(st.lists(st.integers(0, 1000), min_size=len(chosen), max_size=len(chosen)))
    uncovered = draw(st.sampled_from([0, 0, 1, 50, 1000]))
    total = sum(shares) + uncovered
    if sum(shares) == 0:
        shares[0], total = 1, 1 + uncovered
    return {text: share / total for text, share in zip(chosen, shares, strict=True)}


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[int, list[tuple[str, Mapping[str, float] | None, float | None, bool]]]]:
    """Frames of a run of up to four members: (time since the frame before in ms, what was said in it)."""
    streams = [f"s{i}" for i in range(draw(st.integers(1, 4)))]
    said = st.tuples(
        st.sampled_from(streams),
        st.none() | top_lists() | st.just(CAT) | st.just(CAT),
        st.none() | st.floats(0, 1),
        st.sampled_from([False, False, False, True]),
    )
    return draw(
        st.lists(
            st.tuples(st.sampled_from([16, 17, 40, 100, 300, 1500]), st.lists(said, max_size=5)),
            min_size=1,
            max_size=40,
        )
    )


def play(script: Sequence[tuple[int, list]], streams: Sequence[str], energy: float = 0.8) -> list[EnsembleStep]:
    """The steps of a script, each token a little before its frame."""
    council, now_us, steps = Council(*streams, energy=energy), 1_000_000, []
    for gap_ms, said in script:
        now_us += gap_ms * MS
        for index, (stream, top, certainty, throttled) in enumerate(said):
            t_us = now_us - (len(said) - index) * MS
            council.say(stream, t_us, top, certainty=certainty, throttled=throttled)
        steps.append(council.step(now_us))
    return steps
