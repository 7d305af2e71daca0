"""Requests to OpenAI itself and to OpenRouter: nothing in them that only local servers take; and their refusals."""

from __future__ import annotations

import json

import pytest

from engine.domain.errors import InvalidRequest, RuntimeUnavailable
from engine.domain.generation import GenerationRequest, Parameters
from policies.retry import is_passing
from transport.wire.openai import refusal
from transport.wire.openai_requests import request_body


def body_of(hosted: bool = True, **asked):
    return json.loads(request_body(GenerationRequest("gpt", prompt="x", **asked), hosted=hosted))


def test_the_longest_answer_has_another_name_there():
    parameters = Parameters(max_tokens=7, temperature=0.5, top_p=0.9, seed=1, stop=("END",), presence_penalty=1)
    body = body_of(parameters=parameters)
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body
    assert {name: body[name] for name in ("temperature", "top_p", "seed", "stop", "presence_penalty")} == {
        "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["END"], "presence_penalty": 1,
    }  # fmt: skip
    assert body_of(hosted=False, parameters=parameters)["max_tokens"] == 7


def test_how_much_to_think_is_said_without_a_template():
    assert body_of(think="low")["reasoning_effort"] == "low"
    assert "chat_template_kwargs" not in body_of(think="low")
    assert "chat_template_kwargs" in body_of(hosted=False, think="low")


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("top_k", {"parameters": Parameters(top_k=1)}),
        ("min_p", {"parameters": Parameters(min_p=0.0)}),
        ("repeat_penalty", {"parameters": Parameters(repeat_penalty=1.1)}),
        ("think", {"think": True}),
        ("raw", {"raw": True}),
    ],
)
def test_what_they_have_no_word_for_is_refused(field, asked):
    with pytest.raises(InvalidRequest) as caught:
        body_of(**asked)
    assert caught.value.details["field"] == field
    assert body_of(hosted=False, **asked)


def test_an_account_without_credit_is_not_asked_again():
    error = refusal(402, "Insufficient credits", "m", "openrouter", "sk-or-1")
    assert isinstance(error, RuntimeUnavailable)
    assert "credit" in error.message
    assert not is_passing(error)
