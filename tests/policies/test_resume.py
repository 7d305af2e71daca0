"""May a broken answer be gone on with, and what is asked then."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import (
    InternalError,
    InvalidRequest,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import GenerationRequest, Message, Parameters, ResumeRules, TokenKind, Tool
from policies.resume import Given, Refused, continuation, next_model, rules_for

RULES = ResumeRules(attempts_max=2)
HALF = Given("Once upon", 2, frozenset({TokenKind.ANSWER}))
PROMPT = GenerationRequest("m", prompt="tell", system="be brief", images=("aGk=",))
CHAT = GenerationRequest("m", messages=(Message("user", "tell"),))
BROKE = UpstreamTruncated("cut")


def why(error=BROKE, request=CHAT, half=HALF, rules=RULES, attempts=0) -> str | None:
    found = continuation(error, request, half, rules, attempts)
    return found.why if isinstance(found, Refused) else None


def asked(request: GenerationRequest, half: Given = HALF) -> GenerationRequest:
    found = continuation(BROKE, request, half, RULES, 0)
    assert isinstance(found, GenerationRequest)
    return found


@pytest.mark.parametrize("kind", [UpstreamTruncated, UpstreamProtocolError, UpstreamTimeout, RuntimeUnavailable])
def test_what_breaks_an_answer_may_be_gone_on_from(kind):
    assert why(kind("x")) is None


@pytest.mark.parametrize("kind", [InvalidRequest, Overloaded, InternalError])
def test_what_refuses_one_may_not(kind):
    assert why(kind("x")) == "it did not break off"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"half": attrs.evolve(HALF, kinds=frozenset(TokenKind))}, "thinking was given"),
        ({"half": attrs.evolve(HALF, kinds=frozenset({TokenKind.TOOL}))}, "a call of a tool was given"),
        ({"half": attrs.evolve(HALF, tokens=0)}, "it had not begun"),
        ({"half": attrs.evolve(HALF, text="")}, "no text"),
        ({"half": attrs.evolve(HALF, text=None)}, "more than 1048576 bytes"),
        ({"half": attrs.evolve(HALF, tokens=65_537)}, "more than 65536 tokens"),
        ({"request": attrs.evolve(CHAT, format="json")}, "it has a format"),
        ({"request": attrs.evolve(CHAT, tool_choice="required", tools=(Tool("t"),))}, "it must be a call"),
        ({"request": attrs.evolve(CHAT, parameters=Parameters(max_tokens=2))}, "it had all its tokens"),
        ({"attempts": 2}, "attempts made: 2"),
        ({"rules": ResumeRules(refused="options.typical_p")}, "options.typical_p"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(changes, told):
    assert told in (why(**changes) or "")


def test_a_prompt_becomes_a_chat_that_ends_in_the_answer_so_far():
    found = asked(PROMPT)
    assert (found.prompt, found.system, found.images, found.continues) == (None, None, (), True)
    assert found.messages == (
        Message("system", "be brief"),
        Message("user", "tell", ("aGk=",)),
        Message("assistant", "Once upon"),
    )


def test_a_turn_that_the_caller_began_goes_on():
    begun = attrs.evolve(CHAT, messages=(*CHAT.messages, Message("assistant", "Well: ")))
    assert asked(begun).messages == (Message("user", "tell"), Message("assistant", "Well: Once upon"))


@pytest.mark.parametrize("beside", [{"raw": True}, {"suffix": "the end"}])
def test_a_bare_prompt_is_made_longer(beside):
    found = asked(GenerationRequest("m", prompt="def f(", **beside))
    assert (found.prompt, found.messages, found.continues) == ("def f(Once upon", (), False)


def test_what_is_left_of_the_longest_answer_and_no_more_thinking():
    request = attrs.evolve(CHAT, think=True, parameters=Parameters(max_tokens=10, temperature=0.5, seed=7))
    found = asked(request)
    assert found.parameters == Parameters(max_tokens=8, temperature=0.5, seed=7)
    assert found.think is False
    assert found.resume is None
    assert asked(CHAT).think is None


@given(st.text(min_size=1, max_size=50), st.integers(1, 100), st.integers(1, 200) | st.none())
def test_text_and_tokens_add_up(text, tokens, limit):
    request = attrs.evolve(CHAT, parameters=Parameters(max_tokens=limit))
    found = continuation(BROKE, request, Given(text, tokens, frozenset({TokenKind.ANSWER})), RULES, 0)
    if limit is not None and tokens >= limit:
        assert isinstance(found, Refused)
    else:
        assert isinstance(found, GenerationRequest)
        assert found.messages[-1].content == text
        assert found.parameters.max_tokens is None or found.parameters.max_tokens + tokens == limit


def test_the_next_one_is_the_same_or_the_next_of_the_others():
    assert [next_model(RULES, "a", n) for n in (0, 1)] == ["a", "a"]
    others = ResumeRules(attempts_max=9, who="other", models=("b", "a", "c"))
    assert [next_model(others, "a", n) for n in (0, 1)] == ["b", "c"]
    assert isinstance(next_model(others, "a", 2), Refused)


def test_a_request_may_allow_it_or_switch_it_off():
    assert rules_for(False, RULES, None) is None
    assert rules_for(True, RULES, None) is RULES
    assert rules_for(False, RULES, "allow") is RULES
    assert rules_for(True, RULES, "off") is None
    with pytest.raises(ValueError, match="allow or off"):
        rules_for(True, RULES, "yes")
