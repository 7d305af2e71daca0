"""policies/ensemble.yaml: the constants in force, what may be changed, and what is refused."""

from __future__ import annotations

import attrs
import pytest

from engine.domain.ensemble_params import EnsembleParams
from engine.domain.errors import ConfigError
from policies.ensemble import EnsemblePolicy
from policies.load import load_policies, shipped
from policies.schema import Misfit
from policies.source import parse
from tests.domain.councils import PARAMS


def changed(text: str) -> EnsemblePolicy:
    return load_policies(ensemble=attrs.evolve(parse(text, "wf.yaml"), root=("policies", "ensemble"))).ensemble


def test_shipped_constants():
    assert load_policies().ensemble.params() == PARAMS


def test_every_number_is_of_its_declared_type():
    params = load_policies().ensemble.params()
    for field in attrs.fields(attrs.resolve_types(EnsembleParams)):
        assert type(getattr(params, field.name)) is field.type, field.name


def test_one_key_can_be_changed_alone():
    policy = changed("kappa: 0.5\nresonance: {energy_on: 0.9}")
    assert policy.params() == attrs.evolve(PARAMS, kappa=0.5, resonance_energy_on=0.9)


REFUSED = [
    ("kappa: 2", "kappa must be 0–1, not 2"),
    ("top_k: 11", "top_k must be 1–10, not 11"),
    ("window: {sync_lost_ms: 900}", "window.sync_lost_ms must be at least hold_ms (1000), not 900"),
    ("weights: {certain: 0}", "weights.certain must be more than 0 and at most 2, not 0"),
    ("weights: {uncertain_to: 0.7}", "weights.uncertain_to must be less than certain_from (0.7), not 0.7"),
    ("interference: {constructive: 0.7}", "interference.constructive must be less than destructive (0.7), not 0.7"),
    (
        "interference: {hysteresis: 0.4}",
        "interference.hysteresis must be at most 0.3, or neutral could never be left, not 0.4",
    ),
    ("resonance: {models: 1}", "resonance.models must be 2–6, not 1"),
    ("resonance: {coherence_off: 0.9}", "resonance.coherence_off must be at most coherence_on (0.85), not 0.9"),
    ("resonance: {energy_off: 0.71}", "resonance.energy_off must be at most energy_on (0.7), not 0.71"),
    ("resonanse: {}", "resonanse is unknown; did you mean policies.ensemble.resonance?"),
    ('schema_version: "2.0"', "schema_version must be 1.0, not '2.0'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_with_place_path_and_expectation(text, message):
    with pytest.raises(ConfigError) as refusal:
        changed(text)
    assert refusal.value.message == f"wf.yaml:1: policies.ensemble.{message}"


def test_the_class_guards_itself():
    policy = load_policies().ensemble
    with pytest.raises(Misfit):
        attrs.evolve(policy, kappa=-0.1)
    with pytest.raises(Misfit):
        attrs.evolve(policy.resonance, correlation=1.1)


def test_the_hash_follows_its_values():
    shipped_hash = load_policies().policy_hash

    def hashed(text: str) -> str:
        return load_policies(ensemble=parse(text, "wf.yaml")).policy_hash

    assert hashed("{}") == hashed("kappa: 0.25") == shipped_hash
    assert hashed("kappa: 0.26") != shipped_hash


def test_every_shipped_key_has_a_row():
    assert set(shipped("ensemble").data) == {f.name for f in attrs.fields(EnsemblePolicy)}
