"""Who stands in for a model that cannot be had."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.generation import GenerationRequest, Message, Parameters, Tool
from policies.breaker import BreakerState
from policies.selection import FallbackRules, Offer, Wants, choose, ranked, unfit, wants_of

RULES = FallbackRules(True, ("ollama", "vllm", "openai"), preferred={"ollama": ("b",), "openai": ("gpt",)})
A = Offer("a", "ollama", "ollama", local=True)
B = Offer("b", "ollama", "ollama", local=True)
V = Offer("v", "vllm", "openai", local=True)
GPT = Offer("openai/gpt", "openai", "satellite", local=False)
ALL = [GPT, V, A, B]


def names(offers):
    return [offer.model for offer in offers]


def test_by_provider_then_by_preference():
    assert names(ranked(ALL, RULES)) == ["b", "a", "v", "openai/gpt"]
    assert names(ranked([A, B], attrs.evolve(RULES, preferred={}))) == ["a", "b"]


def test_providers_of_this_machine_come_first_whatever_the_order():
    rules = attrs.evolve(RULES, order=("openai", "vllm", "ollama"))
    assert names(ranked(ALL, rules)) == ["v", "b", "a", "openai/gpt"]
    assert names(ranked(ALL, attrs.evolve(rules, local_first=False)))[0] == "openai/gpt"


def test_the_default_provider_comes_before_the_order():
    assert names(ranked(ALL, attrs.evolve(RULES, default_provider="vllm")))[0] == "v"
    assert names(ranked([A, V], FallbackRules(True, (), "vllm"))) == ["v"]


@pytest.mark.parametrize(
    ("change", "wants", "words"),
    [
        ({"kind": "embedded"}, Wants(), "demonstration"),
        ({"up": False}, Wants(), "does not answer"),
        ({"breaker": BreakerState.OPEN}, Wants(), "left alone"),
        ({"context_length": 100}, Wants(context_tokens=101), "101 are needed"),
        ({"tools": False}, Wants(tools=True), "tools"),
        ({"vision": False}, Wants(vision=True), "images"),
        ({"logprobs": False}, Wants(logprobs=True), "log-probabilities"),
        ({"why_not": "the broker is disabled"}, Wants(), "the broker is disabled"),
    ],
)
def test_who_cannot_answer_is_passed_over_with_the_reason(change, wants, words):
    choice = choose([attrs.evolve(A, **change), V], wants, RULES)
    assert choice.chosen == V
    assert choice.passed[0][0] == "a"
    assert words in choice.passed[0][1]


def test_what_a_runtime_does_not_tell_is_no_reason_against_it():
    assert unfit(A, Wants(10_000, tools=True, vision=True, logprobs=True)) is None
    assert unfit(attrs.evolve(A, breaker=BreakerState.HALF_OPEN), Wants()) is None


def test_nobody_left_is_told_with_all_reasons():
    choice = choose([attrs.evolve(offer, up=False) for offer in ALL], Wants(), RULES)
    assert choice.chosen is None
    assert [model for model, _ in choice.passed] == ["b", "a", "v", "openai/gpt"]


OFFERS = st.lists(
    st.builds(
        Offer, model=st.sampled_from("abcdef"), provider=st.sampled_from(["ollama", "vllm", "openai", "other"]),
        kind=st.sampled_from(["ollama", "embedded", "satellite"]), local=st.booleans(), up=st.booleans(),
        breaker=st.sampled_from(BreakerState), tools=st.sampled_from([None, True, False]),
    ),
    max_size=8,
)  # fmt: skip


@given(OFFERS, st.booleans())
def test_the_chosen_one_is_fit_and_named_and_everyone_before_it_is_not(offers, tools):
    wants = Wants(tools=tools)
    choice = choose(offers, wants, RULES)
    order = ranked(offers, RULES)
    if choice.chosen is None:
        assert all(unfit(offer, wants) for offer in order)
    else:
        assert unfit(choice.chosen, wants) is None
        assert choice.chosen.provider in RULES.providers
        assert all(unfit(offer, wants) for offer in order[: len(choice.passed)])


def test_what_a_request_needs():
    chat = GenerationRequest(
        "m",
        messages=(Message("user", "x" * 400, images=("iVBORw0KGgo=",)),),
        parameters=Parameters(max_tokens=50),
        tools=(Tool("t"),),
    )
    assert wants_of(chat) == Wants(150, tools=True, vision=True)
    assert wants_of(attrs.evolve(chat, tool_choice="none")).tools is False
    assert wants_of(GenerationRequest("m", prompt="")) == Wants()
    assert wants_of(GenerationRequest("m", prompt="", logprobs_wanted=True)) == Wants(logprobs=True)
