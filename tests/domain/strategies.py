"""Parameters and token streams for the domain's property tests."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from engine.domain.energy import EnergyParams
from engine.domain.generation import Token, TokenKind, TopEntry

# The figures of the golden vectors (reference profile: TPS_max 20, stall 400 ms, ceiling 1500 ms, α .35).
PARAMS = EnergyParams(
    tier="golden",
    window_ms=1000,
    tps_max=20,
    stall_ms=400,
    ceil_ms=1500,
    alpha=0.35,
    weight_velocity=0.5,
    weight_certainty=0.3,
    weight_flow=0.2,
    weight_velocity_no_logprobs=0.7,
    weight_flow_no_logprobs=0.3,
    half_life_ms=700,
    stall_tokens=2,
    silence_stall_factor=2,
    saturate=0.85,
    unsaturate=0.70,
    saturate_dwell_ms=800,
    burst_fraction=0.6,
    eu_base=0.1,
    eu_offset=0.5,
    eu_model_factor=1.0,
    eu_rate_alpha=0.2,
    top_k=10,
)

# what a broken runtime can report: NaN, infinities, positive "log-probabilities", duplicates, any order
wild_logprobs = st.lists(st.floats(max_value=1.0) | st.just(float("nan")), max_size=25)
sane_logprobs = st.lists(st.floats(min_value=-30, max_value=0), max_size=10)
gaps_us = st.lists(
    st.integers(0, 4_000_000) | st.sampled_from([0, 1, 400_000, 800_000, 10**12]), min_size=1, max_size=40
)


def token(
    position: int, t_us: int, delta_us: int | None, logprobs: list[float] | None = None, throttled: bool = False
) -> Token:
    top = tuple(TopEntry(f"t{i}", lp) for i, lp in enumerate(logprobs or ()))
    return Token(
        text="x",
        kind=TokenKind.ANSWER,
        position=position,
        offset=position,
        t_us=t_us,
        delta_us=delta_us,
        logprob=logprobs[0] if logprobs else None,
        top=top,
        throttled=throttled,
    )


@st.composite
def token_streams(draw: st.DrawFn, logprobs: st.SearchStrategy[list[float]] = wild_logprobs) -> list[Token]:
    at, tokens = draw(st.integers(0, 10**9)), []
    for position, gap in enumerate(draw(gaps_us)):
        at += gap if position else 0
        throttled = draw(st.booleans()) and draw(st.booleans()) and draw(st.booleans())
        tokens.append(token(position, at, gap if position else None, draw(logprobs), throttled))
    return tokens


def shifted(tokens: list[Token], by_us: int) -> list[Token]:
    return [msgspec.structs.replace(t, t_us=t.t_us + by_us) for t in tokens]
