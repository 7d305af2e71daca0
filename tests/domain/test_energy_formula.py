"""The meter against the formulas written out as they are published, term by term and without any short cut."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.energy import EnergyMeter, uncertainty
from tests.domain.strategies import PARAMS, sane_logprobs, token, token_streams, wild_logprobs

EXACT = 1e-12
NEAR_ONE = st.floats(min_value=-1e-12, max_value=0)  # all but certain: the sums that cancel most
SMALL = st.floats(min_value=-745, max_value=-600)  # next to no mass at all


def clamped(value):
    return min(1.0, max(0.0, value))


def certainty_of(logprobs, top_k):
    """Certainty, entropy in bits and tail mass as defined: entropy of the shares, logarithms of the probabilities."""
    probabilities = [math.exp(min(lp, 0.0)) for lp in logprobs if not math.isnan(lp)]
    probabilities = sorted(probabilities, reverse=True)[:top_k]
    if len(probabilities) < 2:
        return (clamped(probabilities[0]) if probabilities else None), None, None
    mass = math.fsum(probabilities)
    if mass == 0:
        return 0.0, 0.0, 1.0
    shares = [p / mass for p in probabilities]
    entropy = -math.fsum(q * math.log(q) for q in shares if q > 0)
    certainty = clamped(min(1.0, mass) * (1 - entropy / math.log(len(shares))))
    tail = max(0.0, 1 - mass)
    bits = -math.fsum(p * math.log2(p) for p in [*probabilities, tail] if p > 0)
    return certainty, max(0.0, bits), tail


def energies_of(tokens, params):
    """E_base and E of each token; every term from the whole list of tokens, no state but the previous E."""
    found, energy, last_us, window_from = [], 0.0, None, 0
    for index, item in enumerate(tokens):
        window_from = index if item.throttled else window_from
        since_us = item.t_us - params.window_ms * 1000
        window = [t.t_us for t in tokens[window_from : index + 1] if t.t_us >= since_us]
        tps = 0.0
        if len(window) > 1:
            tps = (len(window) - 1) * 1e6 / max(1000, window[-1] - window[0])
        elif item.delta_us is not None and not item.throttled:
            tps = 1e6 / max(1000, item.delta_us)
        silence_ms = 0.0 if last_us is None else max(0.0, (item.t_us - last_us) / 1000 - params.stall_ms)
        last_us = item.t_us
        if item.throttled:
            found.append((None, energy))
            continue
        logprobs = [e.logprob for e in item.top] or ([] if item.logprob is None else [item.logprob])
        c, _, _ = certainty_of(logprobs, params.top_k)
        v = clamped(tps / params.tps_max)
        delta_ms = 0.0 if item.delta_us is None else item.delta_us / 1000
        f = 1 - clamped((delta_ms - params.stall_ms) / (params.ceil_ms - params.stall_ms))
        if c is None:
            base = params.weight_velocity_no_logprobs * v + params.weight_flow_no_logprobs * f
        else:
            base = params.weight_velocity * v + params.weight_certainty * c * f + params.weight_flow * f
        energy = params.alpha * clamped(base) + (1 - params.alpha) * energy * 0.5 ** (silence_ms / params.half_life_ms)
        found.append((clamped(base), energy))
    return found


def agrees(logprobs, top_k=10):
    found = uncertainty(logprobs, top_k)
    expected = certainty_of(logprobs, top_k)
    assert (found.certainty, found.entropy_bits, found.tail_mass) == pytest.approx(expected, abs=EXACT)


@given(wild_logprobs | sane_logprobs, st.integers(2, 12))
def test_certainty_is_the_published_formula(logprobs, top_k):
    agrees(logprobs, top_k)


@given(st.lists(NEAR_ONE, min_size=1, max_size=1), st.lists(st.floats(-60, -25), max_size=9))
def test_certainty_is_the_published_formula_where_everything_cancels(sure, rest):
    agrees(sure + rest)


@given(st.lists(SMALL | st.just(-math.inf), max_size=12))
def test_certainty_is_the_published_formula_where_no_mass_is_left(logprobs):
    agrees(logprobs)


@pytest.mark.parametrize(
    "logprobs",
    [
        [],
        [math.nan],
        [-math.inf],
        [-math.inf, -math.inf],
        [0.0, -math.inf],
        [math.inf, -1.0],
        [math.nan, -0.5, -1.0],
        [0.0, 0.0],
        [1e-3, -0.5],
        [-1e308, -1e308, -0.1],
        [-0.5],
    ],
)
def test_certainty_is_the_published_formula_at_the_edges(logprobs):
    agrees(logprobs)


@given(token_streams())
def test_the_meter_is_the_published_formula(tokens):
    meter = EnergyMeter.started(PARAMS, tokens[0].t_us)
    samples = [meter.token(item) for item in tokens]
    for sample, (base, energy) in zip(samples, energies_of(tokens, PARAMS), strict=True):
        assert sample.energy == pytest.approx(energy, abs=EXACT)
        assert sample.energy_base == (None if base is None else pytest.approx(base, abs=EXACT))


def test_the_chosen_tokens_own_probability_counts_when_there_is_no_list():
    without_list = msgspec.structs.replace(token(0, 0, None, [-0.7]), top=())
    sample = EnergyMeter.started(PARAMS, 0).token(without_list)
    assert sample.uncertainty.certainty == pytest.approx(math.exp(-0.7), abs=EXACT)
