"""Tiers and levels: the shipped table, what a level unlocks, and which tier a machine gets."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError
from engine.domain.models import Tier
from policies.load import load_policies
from policies.source import parse
from policies.tiers import choose_tier, detect_tier

GB = 10**9
POLICY = load_policies().tiers

TABLE = {
    #                         low         mid          high         hybrid
    "max_parallel_models": (2, 4, 6, 6),
    "max_loaded_models": (4, 6, 8, 8),
    "max_model_size_bytes": (4 * GB, 8 * GB, 16 * GB, 16 * GB),
    "vram_budget_bytes": (6 * GB, 12 * GB, 24 * GB, 24 * GB),
    "ram_budget_bytes": (8 * GB, 16 * GB, 32 * GB, 32 * GB),
    "turbo_enabled": (False, True, True, True),
    "broker_enabled": (False, False, False, True),
    "tick_hz": (60, 60, 60, 60),
    "tps_minimum": (5, 15, 30, 30),
    "ttft_warm_ms": (2000, 2000, 2000, 2000),
    "ttft_cold_ms": (10_000, 10_000, 10_000, 10_000),
    "allow_resonance": (False, True, True, True),
    "context_length_max": (2048, 4096, 8192, 8192),
    "queue_depth_max": (3, 6, 12, 12),
    "requests_per_model": (1, 2, 4, 4),
    "suggested_model": ("llama3.2:1b", "llama3.2:3b", "llama3.1:8b", "llama3.1:8b"),
}  # fmt: skip


def test_the_table():
    found = {
        name: tuple(getattr(POLICY.limits(tier), name) for tier in (Tier.LOW, Tier.MID, Tier.HIGH, Tier.HYBRID))
        for name in (field.name for field in attrs.fields(type(POLICY.low)))
    }
    assert found == TABLE


def test_levels():
    assert [(POLICY.level(n).name, POLICY.level(n).max_models) for n in range(1, 6)] == [
        ("Lightning", 1), ("Streams", 3), ("Structure", 4), ("Fields", 4), ("Resonance", 6),
    ]  # fmt: skip
    assert POLICY.features(1) == {"single_stream", "token_timing"}
    assert "interference" in POLICY.features(2)
    assert [n for n in range(1, 6) if "resonance" in POLICY.features(n)] == [5]
    for n in range(1, 5):
        assert POLICY.features(n) < POLICY.features(n + 1)


@pytest.mark.parametrize("number", [0, 6, -1])
def test_there_is_no_other_level(number):
    with pytest.raises(ValueError, match="no level"):
        POLICY.level(number)


def test_a_request_gets_the_smaller_of_level_and_tier():
    assert {(tier, n): POLICY.models_max(tier, n) for tier in (Tier.LOW, Tier.HIGH) for n in (1, 2, 5)} == {
        (Tier.LOW, 1): 1, (Tier.LOW, 2): 2, (Tier.LOW, 5): 2,
        (Tier.HIGH, 1): 1, (Tier.HIGH, 2): 3, (Tier.HIGH, 5): 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ram_gb", "vram_gb", "tier"),
    [
        (4, None, Tier.LOW), (8, None, Tier.LOW), (16.5, None, Tier.MID), (31.9, None, Tier.MID), (33, None, Tier.HIGH),
        (64, 24, Tier.HIGH), (64, 12, Tier.MID), (64, 6, Tier.LOW), (12, 80, Tier.LOW), (16, 80, Tier.MID),
    ],
)  # fmt: skip
def test_detection(ram_gb, vram_gb, tier):
    found, reason = detect_tier(POLICY, int(ram_gb * GB), None if vram_gb is None else vram_gb * GB)
    assert found is tier
    assert f"{ram_gb:.1f} GB RAM" in reason


def test_the_reason_has_the_numbers():
    assert detect_tier(POLICY, 17 * GB, 13 * GB)[1] == (
        "17.0 GB RAM, 13.0 GB GPU memory: enough for mid, which asks for 16.0 GB RAM and 12.0 GB GPU memory"
    )
    assert detect_tier(POLICY, 7 * GB, None)[1] == "7.0 GB RAM, no GPU memory: less than any tier asks for"


ORDER = [Tier.LOW, Tier.MID, Tier.HIGH]
sizes = st.integers(0, 200 * GB)


@given(sizes, sizes, st.none() | sizes, sizes)
def test_more_memory_never_lowers_the_tier_and_hybrid_is_never_found(ram, more_ram, vram, more_vram):
    less, _ = detect_tier(POLICY, ram, vram)
    more, _ = detect_tier(POLICY, ram + more_ram, None if vram is None else vram + more_vram)
    assert ORDER.index(less) <= ORDER.index(more)


@given(st.none() | st.sampled_from(Tier), sizes, st.none() | sizes)
def test_the_user_decides_and_is_warned_when_it_is_more_than_was_found(wanted, ram, vram):
    found, _ = detect_tier(POLICY, ram, vram)
    choice = choose_tier(POLICY, wanted, ram, vram)
    assert choice.tier is (wanted or found)
    asked = ORDER.index(Tier.HIGH if choice.tier is Tier.HYBRID else choice.tier)
    assert (choice.warning is not None) == (asked > ORDER.index(found))


def test_budgets_can_be_changed_and_detection_follows():
    policy = load_policies(tiers=parse("high: {ram_budget_bytes: 64000000000}", "wf.yaml")).tiers
    assert detect_tier(policy, 40 * GB, None)[0] is Tier.MID
    assert policy.mid == POLICY.mid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low: {max_parallel_models: 7}", "wf.yaml:1: low.max_parallel_models must be 1–6, not 7"),
        ("low: {turbo_enabled: yes}", "wf.yaml:1: low.turbo_enabled must be true or false, not 'yes'"),
        ("medium: {}", "wf.yaml:1: medium is unknown"),
        ("levels:\n  level_6: {}", "wf.yaml:2: levels.level_6 is unknown; did you mean levels.level_5?"),
        ("levels: {level_1: {features: [Token Timing]}}",
         "wf.yaml:1: levels.level_1.features[0] must be a name like token_timing, not 'Token Timing'"),
        ("levels: {level_1: {name: \"\\e[2J\"}}",
         "wf.yaml:1: levels.level_1.name must be 1 to 40 letters, digits, spaces, _ or -, not '\\x1b[2J'"),
    ],
)  # fmt: skip
def test_refused(text, message):
    with pytest.raises(ConfigError) as refusal:
        load_policies(tiers=parse(text, "wf.yaml"))
    assert refusal.value.message == message


def test_a_choice_says_what_the_machine_has():
    choice = choose_tier(POLICY, Tier.LOW, 17 * GB, None)
    assert (choice.ram_bytes, choice.vram_bytes) == (17 * GB, None)
    assert choose_tier(POLICY, None, 17 * GB, 13 * GB).vram_bytes == 13 * GB
