"""The maths of E(t): golden vectors, then every property the specification lists, under Hypothesis."""

from __future__ import annotations

import itertools
import math

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.domain.energy import (
    EDGES,
    UNKNOWN,
    EnergyMeter,
    Phase,
    StreamEnergy,
    decayed,
    ema,
    energy_at,
    energy_base,
    eu_micro,
    flow,
    phase_at,
    read,
    uncertainty,
    velocity,
)
from tests.domain.strategies import PARAMS, sane_logprobs, shifted, token, token_streams, wild_logprobs

unit = st.floats(0, 1)
maybe_unit = st.none() | unit
tps_values = st.floats(0, 1e6)
deltas_ms = st.none() | st.floats(0, 1e12)


def run(tokens, params=PARAMS):
    meter = EnergyMeter.started(params, tokens[0].t_us)
    return meter, [meter.token(t) for t in tokens]


def figures(samples):
    """What was computed; the tokens themselves may hold a NaN, which equals nothing."""
    return [(s.energy, s.energy_base, s.uncertainty, s.tps, s.stall, s.burst, s.eu_micro) for s in samples]


# ── golden vectors ──


@pytest.mark.parametrize(
    ("tps", "delta_ms", "certainty", "expected"),
    [
        (20, 50, 1, 1.0),
        (10, 100, 0.5, 0.6),
        (10, 100, None, 0.65),
        (10.4, 96, 0.64, 0.652),
        (1.25, 800, 0.8, 0.31125),
        (0.667, 1500, 1, 0.016675),
        (2, 500, None, 0.07 + 0.3 * 10 / 11),
    ],
)
def test_energy_base_golden(tps, delta_ms, certainty, expected):
    assert energy_base(tps, delta_ms, certainty, PARAMS) == pytest.approx(expected, abs=1e-12)


def test_ema_golden():
    energies = itertools.accumulate((0.65, 0.65, 0.65, 0.9, 0.2), lambda e, b: ema(e, b, 0.35), initial=0.0)
    assert list(energies)[1:] == pytest.approx([0.2275, 0.375375, 0.471494, 0.621471, 0.473956], abs=5e-7)


@pytest.mark.parametrize(
    ("silence_ms", "expected"), [(400, 1.0), (750, 2**-0.5), (1100, 0.5), (1800, 0.25), (2500, 0.125)]
)
def test_silence_golden(silence_ms, expected):
    state = StreamEnergy(Phase.FLOWING, since_us=0, energy=1.0, last_us=1_000_000)
    assert energy_at(state, 1_000_000 + silence_ms * 1000, PARAMS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.05, 0.03, 0.01, 0.01], 0.725425),
        ([0.2] * 5, 0.0),
        ([0.01] * 10, 0.0),
        ([0.3] + [0.001] * 9, 0.282739),
    ],
)
def test_certainty_golden(probabilities, expected):
    found = uncertainty([math.log(p) for p in probabilities], 10)
    assert found.certainty == pytest.approx(expected, abs=5e-7)
    assert found.tail_mass == pytest.approx(1 - sum(probabilities), abs=1e-12)


def test_first_token_has_no_interarrival_time():
    _, (sample,) = run([token(0, 0, None)])
    assert sample.tps == 0.0
    assert sample.energy_base == pytest.approx(PARAMS.weight_flow_no_logprobs)
    assert sample.energy == pytest.approx(PARAMS.alpha * PARAMS.weight_flow_no_logprobs)  # E0 = 0


def test_tps_counts_intervals_of_the_last_second():
    tokens = [token(i, i * 100_000, 100_000 if i else None) for i in range(30)]
    _, samples = run(tokens)
    assert samples[5].tps == pytest.approx(10.0)
    assert samples[29].tps == pytest.approx(10.0)
    lone = run([token(0, 0, None), token(1, 2_000_000, 2_000_000)])[1]
    assert lone[1].tps == pytest.approx(0.5)  # one token in the window: 1000 / Δt


def test_tokens_of_one_chunk_do_not_divide_by_zero():
    _, samples = run([token(0, 5, None), token(1, 5, 0), token(2, 5, 0)])
    assert samples[2].tps == 2000.0  # the span is never taken as shorter than a millisecond


# ── 1: ranges, whatever comes ──


@given(token_streams())
def test_everything_stays_in_range(tokens):
    meter, samples = run(tokens)
    for sample in samples:
        assert 0.0 <= sample.energy <= 1.0
        assert sample.energy_base is None or 0.0 <= sample.energy_base <= 1.0
        assert math.isfinite(sample.tps)
        assert sample.tps >= 0
        assert sample.eu_micro >= 0
    assert meter.state.tokens == len(tokens)


@given(tps_values, deltas_ms, maybe_unit)
def test_terms_stay_in_range(tps, delta_ms, certainty):
    assert 0.0 <= velocity(tps, PARAMS) <= 1.0
    assert 0.0 <= energy_base(tps, delta_ms, certainty, PARAMS) <= 1.0
    if delta_ms is not None:
        assert 0.0 <= flow(delta_ms, PARAMS) <= 1.0


# ── 2: monotone ──


@given(tps_values, tps_values, deltas_ms, maybe_unit)
def test_energy_base_grows_with_tps(a, b, delta_ms, certainty):
    low, high = sorted((a, b))
    assert energy_base(low, delta_ms, certainty, PARAMS) <= energy_base(high, delta_ms, certainty, PARAMS)


@given(tps_values, deltas_ms, unit, unit)
def test_energy_base_grows_with_certainty(tps, delta_ms, a, b):
    low, high = sorted((a, b))
    assert energy_base(tps, delta_ms, low, PARAMS) <= energy_base(tps, delta_ms, high, PARAMS)


@given(tps_values, st.floats(0, 1e12), st.floats(0, 1e12), maybe_unit)
def test_energy_base_falls_with_delta(tps, a, b, certainty):
    short, long = sorted((a, b))
    assert energy_base(tps, long, certainty, PARAMS) <= energy_base(tps, short, certainty, PARAMS)


# ── 3: limits ──


@given(st.integers(10**8, 10**14), sane_logprobs)
def test_a_long_silence_leaves_no_energy_base(gap_us, logprobs):
    _, samples = run([token(0, 0, None, logprobs), token(1, gap_us, gap_us, logprobs)])
    assert samples[1].energy_base <= 0.7 / (gap_us / 1e6) / PARAMS.tps_max + 1e-12  # only v is left, and it is 1/Δt


@given(st.floats(20, 1e6), st.floats(0, 400))
def test_full_speed_and_certainty_give_one(tps, delta_ms):
    assert energy_base(tps, delta_ms, 1.0, PARAMS) == pytest.approx(1.0)


# ── 4: the average ──


@given(unit, unit, st.floats(0.01, 1))
def test_ema_is_convex(previous, value, alpha):
    result = ema(previous, value, alpha)
    assert min(previous, value) - 1e-15 <= result <= max(previous, value) + 1e-15
    assert ema(value, value, alpha) == pytest.approx(value, abs=1e-15)


# ── 5: silence ──


@given(unit, st.floats(0, 1e5), st.floats(0, 1e5))
def test_decay_composes_and_halves(energy, a_ms, b_ms):
    assert decayed(decayed(energy, a_ms, PARAMS), b_ms, PARAMS) == pytest.approx(decayed(energy, a_ms + b_ms, PARAMS))
    assert decayed(energy, a_ms + PARAMS.half_life_ms, PARAMS) == pytest.approx(decayed(energy, a_ms, PARAMS) / 2)


@given(st.floats(0.01, 1), st.integers(0, 20_000), st.integers(1, 20_000))
def test_energy_holds_then_strictly_falls(energy, at_ms, more_ms):
    state = StreamEnergy(Phase.FLOWING, since_us=0, energy=energy, last_us=0)
    now, later = energy_at(state, at_ms * 1000, PARAMS), energy_at(state, (at_ms + more_ms) * 1000, PARAMS)
    if at_ms + more_ms <= PARAMS.stall_ms:
        assert now == later == energy
    else:
        assert later < now


@given(token_streams(), st.lists(st.integers(0, 10**7), max_size=20))
def test_energy_does_not_depend_on_how_often_frames_look(tokens, looks_us):
    """Reading between tokens, at any moments, changes nothing."""
    _, undisturbed = run(tokens)
    meter = EnergyMeter.started(PARAMS, tokens[0].t_us)
    looked = []
    for t in tokens:
        for look in looks_us:
            read(meter.state, t.t_us + look, PARAMS)
        looked.append(meter.token(t))
    assert figures(looked) == figures(undisturbed)


def test_over_means_decay_at_once():
    state = StreamEnergy(Phase.DRAINED, since_us=0, energy=1.0, last_us=1_000_000, end_us=1_000_000)
    assert energy_at(state, 1_700_000, PARAMS) == pytest.approx(0.5)


# ── 6: missing and malformed log-probabilities ──


@given(wild_logprobs)
def test_malformed_logprobs_never_raise(logprobs):
    found = uncertainty(logprobs, 10)
    usable = [lp for lp in logprobs if not math.isnan(lp)]
    if not usable:
        assert found == UNKNOWN
        return
    assert 0.0 <= found.certainty <= 1.0
    if found.entropy_bits is not None:
        assert 0.0 <= found.entropy_bits <= math.log2(11) + 1e-9
        assert 0.0 <= found.tail_mass <= 1.0


def test_no_logprobs_is_null_not_a_guess():
    _, (sample,) = run([token(0, 0, None)])
    assert sample.uncertainty == UNKNOWN


def test_only_the_chosen_logprob_gives_its_probability():
    assert uncertainty([math.log(0.4)], 10).certainty == pytest.approx(0.4)
    assert uncertainty([math.log(0.4)], 10).entropy_bits is None


# ── 7, 8, 9: symmetry and determinism ──


@given(wild_logprobs.flatmap(lambda xs: st.tuples(st.just(xs), st.permutations(xs))))
def test_order_of_the_top_list_does_not_matter(pair):
    one, other = pair
    assert uncertainty(one, 10) == uncertainty(other, 10)


@given(token_streams(), st.integers(0, 10**12))
def test_shifting_time_changes_nothing(tokens, by_us):
    _, here = run(tokens)
    _, there = run(shifted(tokens, by_us))
    assert [(s.energy, s.energy_base, s.tps, s.eu_micro) for s in here] == [
        (s.energy, s.energy_base, s.tps, s.eu_micro) for s in there
    ]


@given(token_streams())
def test_same_tokens_same_energies(tokens):
    assert figures(run(tokens)[1]) == figures(run(tokens)[1])


# ── 10: the EU ledger ──


@given(token_streams(), st.data())
def test_eu_adds_up_under_any_partition(tokens, data):
    meter, samples = run(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=5)))
    frames = [samples[a:b] for a, b in itertools.pairwise([0, *cuts, len(samples)])]
    assert sum(sum(s.eu_micro for s in frame) for frame in frames) == meter.state.eu_micro
    totals = list(itertools.accumulate(s.eu_micro for s in samples))
    assert totals == sorted(totals)


@given(unit)
def test_eu_of_a_token_is_between_a_twentieth_and_three_twentieths(base):
    assert 50_000 <= eu_micro(base, PARAMS) <= 150_000
    assert eu_micro(None, PARAMS) == 0


# ── 11: the state machine ──


@given(token_streams())
def test_only_listed_edges(tokens):
    meter = EnergyMeter.started(PARAMS, tokens[0].t_us)
    for t in tokens:
        between = phase_at(meter.state, t.t_us, PARAMS)
        assert between == meter.state.phase or between in EDGES[meter.state.phase]
        meter.token(t)
        after = meter.state.phase
        assert after == between or after in EDGES[between]
    meter.end(tokens[-1].t_us)
    assert meter.state.phase is Phase.DRAINED
    assert phase_at(meter.state, tokens[-1].t_us + 10**9, PARAMS) is Phase.DRAINED


@given(st.floats(0.7001, 0.8499), st.sampled_from([Phase.FLOWING, Phase.SATURATED]))
def test_no_flip_inside_the_hysteresis_band(energy, phase):
    state = StreamEnergy(phase, since_us=0, energy=energy, last_us=0, high_since_us=-(10**9))
    assert phase_at(state, round(PARAMS.stall_ms * 1000), PARAMS) is phase


def test_two_slow_tokens_stall_and_one_quick_one_ends_it():
    gaps = [100, 500, 600, 700, 100]
    at, meter, phases = 0, EnergyMeter.started(PARAMS, 0), []
    meter.token(token(0, 0, None))
    for position, gap in enumerate(gaps, 1):
        at += gap * 1000
        meter.token(token(position, at, gap * 1000))
        phases.append(meter.state.phase)
    assert phases == [Phase.FLOWING, Phase.FLOWING, Phase.STALLING, Phase.STALLING, Phase.FLOWING]


def test_silence_stalls_by_itself_and_the_next_token_ends_it():
    meter, _ = run([token(0, 0, None), token(1, 100_000, 100_000)])
    assert phase_at(meter.state, 100_000 + 799_999, PARAMS) is Phase.FLOWING
    assert phase_at(meter.state, 100_000 + 800_000, PARAMS) is Phase.STALLING
    meter.token(token(2, 1_100_000, 1_000_000))
    assert meter.state.phase is Phase.FLOWING


def test_saturation_needs_the_dwell():
    certain = [0.0, -40.0]
    tokens = [token(i, i * 20_000, 20_000 if i else None, certain) for i in range(100)]
    meter = EnergyMeter.started(PARAMS, 0)
    first_high = saturated = None
    for t in tokens:
        sample = meter.token(t)
        if first_high is None and sample.energy >= PARAMS.saturate:
            first_high = t.t_us
        if saturated is None and meter.state.phase is Phase.SATURATED:
            saturated = t.t_us
    assert first_high is not None
    assert saturated is not None
    assert 800_000 <= saturated - first_high <= 820_000
    assert phase_at(meter.state, tokens[-1].t_us + 780_000, PARAMS) is Phase.FLOWING  # decayed below .70


def test_waiting_for_the_first_token_is_charging_not_stalling():
    meter = EnergyMeter.started(PARAMS, 0)
    now = read(meter.state, 60_000_000, PARAMS)
    assert (now.phase, now.stall, now.energy, now.silence_ms) == (Phase.CHARGING, False, 0.0, 60_000.0)


# ── throttled and unmeasured tokens ──


@given(token_streams())
def test_a_throttled_token_holds_energy_and_earns_nothing(tokens):
    before = 0.0
    for sample in run(tokens)[1]:
        if sample.token.throttled:
            assert (sample.energy, sample.energy_base, sample.eu_micro, sample.stall) == (before, None, 0, False)
        before = sample.energy


@given(token_streams())
def test_an_unmeasured_token_leaves_the_stream_usable(tokens):
    assume(len(tokens) >= 2)
    meter = EnergyMeter.started(PARAMS, tokens[0].t_us)
    failed = meter.unmeasured(tokens[0])
    assert (failed.energy, failed.energy_base, failed.eu_micro) == (None, None, 0)
    assert meter.state.phase is Phase.FLOWING
    assert 0.0 <= meter.token(tokens[1]).energy <= 1.0


def test_a_silent_stream_does_not_show_its_last_good_speed():
    tokens = [token(i, i * 50_000, 50_000 if i else None) for i in range(20)]
    meter, _ = run(tokens)
    last = tokens[-1].t_us
    assert read(meter.state, last + 300_000, PARAMS).tps == pytest.approx(20.0)
    assert read(meter.state, last + 1_500_000, PARAMS).tps == 0.0


def test_params_are_the_only_source_of_constants():
    changed = attrs.evolve(PARAMS, alpha=1.0)
    _, (sample,) = run([token(0, 0, None)], changed)
    assert sample.energy == sample.energy_base
