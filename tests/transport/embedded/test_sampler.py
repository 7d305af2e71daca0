"""The choice follows the parameters, the seed, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.domain.generation import Parameters
from transport.runtimes.embedded.sampler import TEMPERATURE_DEFAULT, Sampler, log_softmax, ranked

scores = arrays(np.float32, st.integers(1, 40), elements=st.floats(-60, 60, width=32))
parameters = st.builds(
    Parameters,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    top_k=st.none() | st.integers(1, 100),
    seed=st.integers(-(2**70), 2**70),
)
SKEWED = log_softmax(np.log(np.array([0.05, 0.5, 0.2, 0.15, 0.1])))


def drawn(count: int = 2000, **values: float) -> Counter[int]:
    sampler = Sampler.from_parameters(Parameters(seed=3, **values))  # type: ignore[arg-type]
    return Counter(sampler.pick(SKEWED) for _ in range(count))


@given(scores)
def test_log_softmax_is_a_distribution(values: np.ndarray):
    logprobs = log_softmax(values)
    assert np.exp(logprobs).sum() == pytest.approx(1)
    assert (logprobs <= 0).all()
    assert logprobs - logprobs[0] == pytest.approx(values.astype(np.float64) - np.float64(values[0]))


@given(scores, st.integers(0, 50))
def test_ranked_is_the_head_of_the_sorted_list(values: np.ndarray, count: int):
    values = values.astype(np.float64)
    ids = ranked(values, min(count, len(values)))
    assert values[ids].tolist() == sorted(values.tolist(), reverse=True)[:count]
    assert len(set(ids.tolist())) == len(ids)


@given(scores, parameters)
def test_the_same_seed_gives_the_same_tokens(values: np.ndarray, params: Parameters):
    logprobs = log_softmax(values)
    one, two = Sampler.from_parameters(params), Sampler.from_parameters(params)
    assert [one.pick(logprobs) for _ in range(5)] == [two.pick(logprobs) for _ in range(5)]


@given(scores, parameters)
def test_the_choice_is_among_the_allowed(values: np.ndarray, params: Parameters):
    logprobs = log_softmax(values)
    token = Sampler.from_parameters(params).pick(logprobs)
    better = logprobs[logprobs > logprobs[token]]
    assert len(better) < (params.top_k or 101)
    if params.temperature:
        bent = log_softmax(logprobs / params.temperature) if params.temperature > 0.01 else None
        if bent is not None and params.top_p is not None and params.top_k is None:
            assert np.exp(bent[bent > bent[token]]).sum() < params.top_p + 1e-9
    elif params.temperature == 0:
        assert len(better) == 0


def test_temperature_1_draws_the_distribution_itself():
    counts = drawn(20_000, temperature=1.0)
    shares = [counts[n] / 20_000 for n in range(5)]
    assert shares == pytest.approx([0.05, 0.5, 0.2, 0.15, 0.1], abs=0.012)


def test_temperature_bends_it():
    counts = drawn(20_000, temperature=0.5)
    expected = np.array([0.05, 0.5, 0.2, 0.15, 0.1]) ** 2
    assert [counts[n] / 20_000 for n in range(5)] == pytest.approx(list(expected / expected.sum()), abs=0.012)
    assert drawn(temperature=TEMPERATURE_DEFAULT) == drawn()


def test_temperature_0_and_almost_0_take_the_best():
    assert set(drawn(temperature=0.0)) == set(drawn(temperature=5e-324)) == {1}


def test_top_k_and_top_p_cut():
    assert set(drawn(temperature=1.0, top_k=1)) == {1}
    assert set(drawn(temperature=1.0, top_k=3)) == {1, 2, 3}
    assert set(drawn(temperature=1.0, top_p=0.6)) == {1, 2}
    assert set(drawn(temperature=1.0, top_p=0.0)) == {1}
    assert set(drawn(temperature=1.0, top_p=0.99, top_k=2)) == {1, 2}
    assert set(drawn(temperature=1.0, top_p=1.0)) == {0, 1, 2, 3, 4}


def test_without_a_seed_two_answers_differ():
    flat = log_softmax(np.zeros(2000))
    one, two = (Sampler.from_parameters(Parameters()) for _ in range(2))
    assert [one.pick(flat) for _ in range(20)] != [two.pick(flat) for _ in range(20)]
