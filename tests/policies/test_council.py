from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    LevelLocked,
    ModelNotFound,
    TierLimitExceeded,
    TurboNotAvailable,
)
from engine.domain.models import ModelInfo, Tier, is_model_name
from policies.council import (
    GRACE_MAX_S,
    MEMBERS_MAX,
    CouncilMethod,
    CouncilSpec,
    admit_council,
    admit_size,
    is_council_name,
    parse_council,
)
from policies.load import load_policies
from policies.tiers import Level, TierLimits

POLICY = load_policies().tiers
MID = POLICY.limits(Tier.MID)
NAMES = ("llama3.1:8b", "qwen2.5", "embedded/hacker", "hf.co/org/model:Q4_K_M", "m5", "m6", "m7", "m8")
DEFAULT = CouncilSpec("council/default", NAMES[:3], CouncilMethod.BEST_CERTAINTY, quorum=2)
COUNCILS = {"default": DEFAULT}


def tier(models: int = 6, turbo: bool = True) -> TierLimits:
    return attrs.evolve(MID, max_parallel_models=models, turbo_enabled=turbo)


def level(models: int) -> Level:
    return Level("Somewhere", models, ("x",))


@pytest.mark.parametrize("name", ["llama3.1:8b", "council", "councils/a", "my/council:a", "Council/default", ""])
def test_a_model_is_no_council(name):
    assert parse_council(name, COUNCILS) is None
    assert not is_council_name(name)


@pytest.mark.parametrize("name", ["council/default", "council/default:latest"])
def test_a_configured_council_is_found_by_its_name(name):
    assert parse_council(name, COUNCILS) is DEFAULT


@pytest.mark.parametrize("name", ["council/", "council/other", "council/default:8b", "council/a+b", "council//default"])
def test_an_unknown_council_is_told_with_those_there_are(name):
    with pytest.raises(ModelNotFound, match="there are council/default") as caught:
        parse_council(name, COUNCILS)
    assert caught.value.details == {"available": ["council/default"]}
    with pytest.raises(ModelNotFound, match="none is configured"):
        parse_council(name, {})


@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=6, unique=True))
def test_listed_members_are_a_council_with_the_defaults(members):
    name = "council:" + "+".join(members)
    spec = parse_council(name, {})
    assert spec == CouncilSpec(name, tuple(members))
    assert spec.method is CouncilMethod.CONSENSUS
    assert spec.quorum_members == len(members)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("", "at least 2"),
        ("a", "at least 2"),
        ("a+", "the name of a model"),
        ("+a", "the name of a model"),
        ("a++b", "the name of a model"),
        ("a+b c", "the name of a model"),
        ("a+../b", "the name of a model"),
        ("a+b\n", "the name of a model"),
        ("a+b+a", "stands once"),
        ("a+council/default", "cannot be a member"),
        ("a+council:b", "cannot be a member"),
        ("a+b+c+d+e+f+g", "at most 6 models, not 7"),
    ],
)
def test_a_list_that_is_none_is_refused(listed, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        parse_council(f"council:{listed}", COUNCILS)
    assert caught.value.details == {"field": "model"}
    assert caught.value.message.startswith("model: ")


@given(st.text("ab+:/ ._-é", max_size=20))
def test_a_listed_council_is_well_formed_or_refused(listed):
    try:
        spec = parse_council(f"council:{listed}", {})
    except InvalidRequest:
        return
    assert spec is not None
    assert "+".join(spec.members) == listed
    assert all(is_model_name(member) for member in spec.members)
    assert 2 <= len(set(spec.members)) == len(spec.members) <= MEMBERS_MAX


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"members": ("a",)}, "members: "),
        ({"members": ("a", "a")}, "members: "),
        ({"quorum": 0}, "quorum: 1 to 3"),
        ({"quorum": 4}, "quorum: 1 to 3"),
        ({"grace_s": -0.1}, "grace_s"),
        ({"grace_s": GRACE_MAX_S + 1}, "grace_s"),
        ({"grace_s": float("nan")}, "grace_s"),
        ({"method": CouncilMethod.JUDGE}, "judge"),
        ({"judge": "m5"}, "judge"),
        ({"method": CouncilMethod.JUDGE, "judge": "no name"}, "judge"),
        ({"method": CouncilMethod.JUDGE, "judge": "council/default"}, "judge"),
    ],
)
def test_a_council_out_of_range_cannot_be_made(values, words):
    with pytest.raises(ValueError, match=words):
        attrs.evolve(DEFAULT, **values)


def test_a_judge_comes_with_its_method():
    assert attrs.evolve(DEFAULT, method=CouncilMethod.JUDGE, judge="m5").judge == "m5"


GATES: list[tuple[type[EngineError], str | None]] = [
    (InvalidRequest, "models"),
    (InvalidRequest, "mode"),
    (InvalidRequest, "on_excess"),
    (LevelLocked, None),
    (TurboNotAvailable, None),
    (TierLimitExceeded, None),
]


@pytest.mark.parametrize("closed", [c for n in range(len(GATES) + 1) for c in itertools.combinations(range(6), n)])
def test_the_first_closed_gate_decides(closed):
    members = NAMES[:1] if 0 in closed else NAMES[:4]
    mode = "single" if 1 in closed else "turbo"
    on_excess = "ignore" if 2 in closed else "refuse"
    unlocked = level(1 if 3 in closed else 6)
    limits = tier(models=3 if 5 in closed else 6, turbo=4 not in closed)
    if not closed:
        assert admit_council(members, mode, limits, "mid", unlocked, on_excess).members == members
        return
    error, field = GATES[closed[0]]
    with pytest.raises(EngineError) as caught:
        admit_council(members, mode, limits, "mid", unlocked, on_excess)
    assert type(caught.value) is error
    assert caught.value.details.get("field") == field


@pytest.mark.parametrize("members", [(), ("a",), ("a", "a"), ("a", "b c"), ("a", "council/default"), NAMES[:7]])
def test_a_list_out_of_shape_is_refused_before_anything_is_cut(members):
    with pytest.raises(InvalidRequest, match=r"^models: "):
        admit_council(members, "council", tier(), "mid", level(6), "truncate")


@given(
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=6, unique=True),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from(["council", "turbo"]),
)
def test_the_first_ones_stay_and_the_rest_is_told(members, of_level, of_tier, mode):
    given_ = tier(of_tier), "mid", level(of_level)
    admission = admit_council(members, mode, *given_, "truncate")
    assert admission.members + admission.dropped == tuple(members)
    assert len(admission.members) == min(len(members), of_level, of_tier)
    if admission.dropped:
        with pytest.raises(TierLimitExceeded) as caught:
            admit_council(members, mode, *given_, "refuse")
        assert caught.value.details["requested"] == len(members)
        assert caught.value.details["max_models"] == len(admission.members)
    else:
        assert admit_council(members, mode, *given_, "refuse") == admission


@pytest.mark.parametrize("on_excess", ["truncate", "refuse"])
def test_a_tier_of_one_model_has_no_councils(on_excess):
    with pytest.raises(TierLimitExceeded):
        admit_council(NAMES[:2], "council", tier(1), "low", level(6), on_excess)


@pytest.mark.parametrize("name", list(Tier))
def test_with_the_shipped_policy(name):
    limits = POLICY.limits(name)
    for number in range(1, 6):
        call = (NAMES[:6], "council", limits, name, POLICY.level(number), "truncate")
        if number == 1:
            with pytest.raises(LevelLocked):
                admit_council(*call)
            continue
        assert len(admit_council(*call).members) == POLICY.models_max(name, number)
        turbo = (call[0], "turbo", *call[2:])
        if name is Tier.LOW:
            with pytest.raises(TurboNotAvailable):
                admit_council(*turbo)
        else:
            assert admit_council(*turbo) == admit_council(*call)


def model(name: str, size_bytes: int | None) -> ModelInfo:
    return ModelInfo(name, "fake", size_bytes)


def test_a_model_of_the_largest_size_or_of_no_known_size_passes():
    admit_size([model("a", MID.max_model_size_bytes), model("b", None), model("c", 0)], MID, "mid")


def test_a_larger_model_is_refused_with_the_numbers():
    models = [model("a", 1), model("big", 8_100_000_000), model("bigger", 9_000_000_000)]
    with pytest.raises(TierLimitExceeded, match=r"big has 8\.1 GB; tier mid allows models of 8\.0 GB") as caught:
        admit_size(models, MID, "mid")
    assert caught.value.details == {
        "model": "big",
        "size_bytes": 8_100_000_000,
        "max_model_size_bytes": 8_000_000_000,
        "tier": "mid",
    }
