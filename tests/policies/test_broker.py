"""What may leave this machine: no, unless everything says yes; and what of a request goes when it does."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import BrokerDisabled, ConfigError, Overloaded
from engine.domain.generation import GenerationRequest, Message, Parameters, ResumeRules, Tool, ToolCall
from engine.domain.usage import Price
from policies.broker import BrokerMode, Leaving, Occasion, Spent, Wanted, may_assist, minimised, question_of, usd
from policies.load import load_policies
from policies.source import Document, parse

POLICY = load_policies().broker
PRICE = Price(input_nusd=150, output_nusd=600)
WANTED = Wanted(Occasion.NAMED, True, 100, 1000, PRICE)
ALLOWED = {
    BrokerMode.DISABLED: set(),
    BrokerMode.ADVISORY: {Occasion.NAMED},
    BrokerMode.FALLBACK: {Occasion.NAMED, Occasion.NO_LOCAL},
    BrokerMode.HYBRID: {Occasion.NAMED, Occasion.NO_LOCAL, Occasion.BUSY},
}


def refusal(mode=BrokerMode.HYBRID, tier=True, wanted=WANTED, spent=Spent(), policy=POLICY):  # noqa: B008
    return may_assist(policy, mode, tier, wanted, spent)


# ── the shipped numbers ──


def test_the_shipped_policy_is_that_of_the_specification():
    assert (POLICY.requests_per_hour, POLICY.first_token_s, POLICY.call_max_s) == (100, 5, 10)
    assert POLICY.context == "question"
    assert POLICY.busy_share == 0.9


def test_a_policy_of_ones_own():
    changes = parse("daily_usd: 5\nretry: {attempts_max: 1}", "wf.yaml")
    policy = load_policies(broker=attrs.evolve(changes, root=("policies", "broker"))).broker
    assert policy.daily_nusd == 5_000_000_000
    assert policy.retry.rules().attempts_max == 1
    assert policy.breaker == POLICY.breaker


@pytest.mark.parametrize("text", ["context: all", "call_max_s: 0", "requests_per_hour: 0", "daily_usd: -1", "x: 1"])
def test_a_policy_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError):
        load_policies(broker=Document("wf.yaml", parse(text, "wf.yaml").data))


# ── may it ──


@pytest.mark.parametrize("mode", BrokerMode)
@pytest.mark.parametrize("occasion", Occasion)
def test_a_mode_allows_its_occasions_and_no_others(mode, occasion):
    found = refusal(mode, wanted=attrs.evolve(WANTED, occasion=occasion))
    assert (found is None) == (occasion in ALLOWED[mode])
    assert found is None or isinstance(found, BrokerDisabled)


@given(
    st.sampled_from(BrokerMode), st.booleans(), st.booleans(), st.sampled_from(Occasion),
    st.builds(Spent, st.integers(0, 200), st.floats(0, 3600), st.integers(0, 300_000), st.integers(0, 2 * 10**9)),
    st.one_of(st.none(), st.just(PRICE)),
)  # fmt: skip
def test_nothing_leaves_unless_all_say_yes(mode, tier, consented, occasion, spent, price):
    wanted = Wanted(occasion, consented, 100, 1000, price)
    found = refusal(mode, tier, wanted, spent)
    within = (
        spent.calls_last_hour < POLICY.requests_per_hour
        and spent.tokens_today + 1100 <= POLICY.daily_tokens
        and price is not None
        and spent.nusd_today + 100 * 150 + 1000 * 600 <= POLICY.daily_nusd
    )
    assert (found is None) == (tier and consented and occasion in ALLOWED[mode] and within)


def test_the_first_reason_is_told():
    assert "tier hybrid" in refusal(BrokerMode.DISABLED, tier=False).message
    assert "disabled" in refusal(BrokerMode.DISABLED).message
    assert "consent" in refusal(wanted=attrs.evolve(WANTED, consented=False)).message
    assert "costs" in refusal(wanted=attrs.evolve(WANTED, price=None)).message


@pytest.mark.parametrize(
    ("spent", "words", "retry_s"),
    [
        (Spent(calls_last_hour=100, next_call_s=42.4), "100 calls", 42),
        (Spent(tokens_today=200_000, day_left_s=7200), "200000 of 200000", 7200),
        (Spent(nusd_today=10**9, day_left_s=60), "1 of 1 are spent", 60),
    ],
)
def test_a_used_up_budget_says_when_there_is_room_again(spent, words, retry_s):
    found = refusal(spent=spent)
    assert isinstance(found, Overloaded)
    assert words in found.message
    assert found.details["retry_after_s"] == retry_s


def test_without_money_only_what_costs_nothing_is_asked():
    free = attrs.evolve(WANTED, price=Price(0, 0))
    policy = attrs.evolve(POLICY, daily_usd=0.0)
    assert refusal(policy=policy, wanted=free) is None
    assert refusal(policy=policy) is not None


# ── what leaves ──

CHAT = GenerationRequest(
    "m",
    messages=(
        Message("system", "You are in Anna's house."),
        Message("user", "my name is Anna", images=("iVBORw0KGgo=",)),
        Message("assistant", "hello", tool_calls=(ToolCall("look", '{"at": "home"}', "1"),)),
        Message("tool", "an address", tool_call_id="1"),
        Message("user", "what is a glacier?"),
    ),
    parameters=Parameters(temperature=0.5, max_tokens=100_000),
    tools=(Tool("look", "looks", "{}"),),
    keep_alive="30m",
    runner_options={"num_ctx": 4096},
    resume=ResumeRules(),
)


def test_by_default_only_the_last_question_leaves():
    leaving = minimised(CHAT, POLICY)
    sent = leaving.request
    assert (sent.prompt, sent.messages, sent.system, sent.images, sent.tools) == (
        "what is a glacier?",
        (),
        None,
        (),
        (),
    )
    assert (sent.keep_alive, dict(sent.runner_options), sent.resume) == (None, {}, None)
    assert sent.parameters == Parameters(temperature=0.5, max_tokens=POLICY.answer_tokens_max)
    assert leaving.shown() == {
        "messages": 1, "text_bytes": 18, "images": 0, "tools": 0,
        "kept_here": {"messages": 4, "text_bytes": 68, "images": 1, "tools": 1},
    }  # fmt: skip


def test_under_whole_all_that_was_said_leaves_and_nothing_about_the_machine():
    leaving = minimised(CHAT, attrs.evolve(POLICY, context="whole"))
    assert leaving.request.messages == CHAT.messages
    assert leaving.request.tools == CHAT.tools
    assert (leaving.request.keep_alive, dict(leaving.request.runner_options)) == (None, {})
    assert leaving.kept_here == {}


def test_what_is_shown_has_no_text_in_it():
    leaving = minimised(CHAT, POLICY)
    assert "glacier" not in repr(leaving) + repr(leaving.shown())


@given(st.text(max_size=200), st.integers(1, 5000), st.sampled_from(["question", "whole"]))
def test_the_bound_on_tokens_is_one(text, max_tokens, context):
    request = GenerationRequest("m", prompt=text, parameters=Parameters(max_tokens=max_tokens))
    leaving: Leaving = minimised(request, attrs.evolve(POLICY, context=context))
    assert leaving.tokens_max >= len(text.encode("utf-8", "surrogatepass"))  # no token is shorter than a byte
    assert leaving.request.parameters.max_tokens == min(max_tokens, POLICY.answer_tokens_max)
    assert question_of(leaving.request) == text


@pytest.mark.parametrize(("nusd", "text"), [(0, "0"), (1, "0.000001"), (10**9, "1"), (1_500_000_000, "1.5")])
def test_money_for_people_is_rounded_up(nusd, text):
    assert usd(nusd) == text
