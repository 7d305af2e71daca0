"""The constants of E and EU: the shipped values, what a user may change, and what is refused."""

from __future__ import annotations

import math

import attrs
import pytest

from engine.domain.energy import EnergyParams
from engine.domain.errors import ConfigError
from engine.domain.models import Tier
from policies.energy import EnergyPolicy, PerTier
from policies.load import load_policies, shipped
from policies.schema import Misfit
from policies.source import parse


def changed(text: str) -> EnergyPolicy:
    return load_policies(energy=attrs.evolve(parse(text, "wf.yaml"), root=("policies", "energy"))).energy


TABLE = {  # tier: tps_max, stall_ms, ceil_ms, alpha
    Tier.LOW: (15, 500, 1500, 0.30),
    Tier.MID: (30, 400, 1500, 0.35),
    Tier.HIGH: (60, 350, 1500, 0.40),
    Tier.HYBRID: (60, 350, 1500, 0.40),
}


@pytest.mark.parametrize("tier", Tier)
def test_shipped_constants(tier):
    tps_max, stall_ms, ceil_ms, alpha = TABLE[tier]
    assert load_policies().energy.params(tier) == EnergyParams(
        tier=tier.value,
        window_ms=1000,
        tps_max=tps_max,
        stall_ms=stall_ms,
        ceil_ms=ceil_ms,
        alpha=alpha,
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


def test_every_number_is_of_its_declared_type():
    for tier in Tier:
        params = load_policies().energy.params(tier)
        for field in attrs.fields(attrs.resolve_types(EnergyParams)):
            assert type(getattr(params, field.name)) is field.type, field.name


def test_shipped_weights_sum_to_one():
    policy = load_policies().energy
    for weights in (policy.weights, policy.weights_no_logprobs):
        assert math.isclose(math.fsum(attrs.astuple(weights)), 1.0, abs_tol=1e-9)


def test_one_key_can_be_changed_alone():
    policy = changed("tps_max: {mid: 25}\neu: {model_factor: 2}")
    assert policy.params(Tier.MID).tps_max == 25
    assert policy.params(Tier.MID).eu_model_factor == 2
    untouched = attrs.evolve(policy.params(Tier.MID), tps_max=30.0, eu_model_factor=1.0)
    assert untouched == load_policies().energy.params(Tier.MID)


REFUSED = [
    ("weights: {flow: 0.3}", "wf.yaml:1: policies.energy.weights must be numbers that sum to 1, not 1.1"),
    ("ceil_ms:\n  mid: 400", "wf.yaml:2: policies.energy.ceil_ms.mid must be more than stall_ms.mid (400), not 400"),
    ("alpha: {low: 0}", "wf.yaml:1: policies.energy.alpha.low must be more than 0 and at most 1, not 0"),
    ("alpha: {low: 1.01}", "wf.yaml:1: policies.energy.alpha.low must be more than 0 and at most 1, not 1.01"),
    ("alpha: 0.3", "wf.yaml:1: policies.energy.alpha must be a mapping, not 0.3"),
    ("unsaturate: 0.9", "wf.yaml:1: policies.energy.unsaturate must be at most saturate (0.85), not 0.9"),
    ("top_k: 11", "wf.yaml:1: policies.energy.top_k must be 2–10, not 11"),
    ("stall_tokens: 1.5", "wf.yaml:1: policies.energy.stall_tokens must be a whole number, not 1.5"),
    ("half_life_ms: 1e999", "wf.yaml:1: policies.energy.half_life_ms must be more than 0 and at most 600000, not inf"),
    ("half_lif_ms: 7", "wf.yaml:1: policies.energy.half_lif_ms is unknown; did you mean policies.energy.half_life_ms?"),
    ("display_alpha: 0.2", "wf.yaml:1: policies.energy.display_alpha is unknown"),
    ("eu: null", "wf.yaml:1: policies.energy.eu must be a mapping, not null"),
    ("schema_version: 1.0", "wf.yaml:1: policies.energy.schema_version must be text: '1.0', not 1"),
    ('schema_version: "2.0"', "wf.yaml:1: policies.energy.schema_version must be 1.0, not '2.0'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_with_place_path_and_expectation(text, message):
    with pytest.raises(ConfigError) as refusal:
        changed(text)
    assert refusal.value.message == message


def test_the_class_guards_itself():
    policy = load_policies().energy
    for wrong in ({"window_ms": 0.0}, {"saturate": 0.5}, {"alpha": attrs.evolve(policy.alpha, mid=0.5), "top_k": 1}):
        with pytest.raises(Misfit):
            attrs.evolve(policy, **wrong)


def test_hash_follows_values_and_nothing_else():
    shipped_hash = load_policies().policy_hash
    assert len(shipped_hash) == 12
    assert int(shipped_hash, 16) >= 0

    def hashed(text: str) -> str:
        return load_policies(energy=parse(text, "wf.yaml")).policy_hash

    assert hashed("{}") == hashed("window_ms: 1000.0") == hashed("# a remark\nwindow_ms: 1000") == shipped_hash
    assert hashed("window_ms: 1001") != shipped_hash
    assert load_policies(tiers=parse("low: {tick_hz: 30}", "wf.yaml")).policy_hash not in (shipped_hash, hashed("{}"))


def test_problems_of_both_files_are_told_together():
    with pytest.raises(ConfigError) as refusal:
        load_policies(energy=parse("top_k: 1", "a.yaml"), tiers=parse("low: 3", "b.yaml"))
    assert refusal.value.message.splitlines() == [
        "a.yaml:1: top_k must be 2–10, not 1",
        "b.yaml:1: low must be a mapping, not 3",
    ]


def test_every_shipped_key_has_a_row():
    assert set(shipped("energy").data) == {f.name for f in attrs.fields(EnergyPolicy)}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_is_finite_even_where_it_has_no_range(value):
    with pytest.raises(Misfit, match="finite"):
        PerTier(low=value, mid=1.0, high=1.0, hybrid=1.0)
