from __future__ import annotations

import itertools
import math

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.mock_server import SHORT
from transport.mock_ollama.catalogue import BEHAVIOURS, script_for
from transport.mock_ollama.language import MOODY, WORDS, next_words, tokens
from transport.mock_ollama.records import rfc3339
from transport.mock_ollama.requests import Ask, Kind, parse_ask
from transport.mock_ollama.script import BREATH_RECORDS, Damaged, Done, Fail, Phase, Say, Wait

MODELS = sorted(BEHAVIOURS)
FINISHING = sorted(
    {"mock:steady", "mock:logprobs", "mock:nologprobs", "mock:thinking", "mock:tools", "mock:coalesced", "mock:fewer"}
    | {"mock:slow-load", "mock:flood", "mock:drip", "mock:long-prompt-cut"}
)


def steps_of(model: str, count: int = 100, schedule=SHORT, **ask) -> list:
    """The first steps of a script, comparable: what a damage does instead of the function."""
    script = script_for(Ask(model=model, prompt="hello", **ask), schedule)
    return [
        (step.record, step.damage(b'{"response":"MARK"}\n')) if isinstance(step, Damaged) else step
        for step in itertools.islice(script.steps(), count)
    ]


def said(steps) -> list[Say]:
    return [step for step in steps if isinstance(step, Say)]


def text_of(steps) -> str:
    return "".join(say.text for say in said(steps))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("model", MODELS)
def test_the_same_question_and_seed_give_the_same_steps(model, kind):
    ask = {"kind": kind, "top_logprobs": 3, "seed": 5}
    assert steps_of(model, **ask) == steps_of(model, **ask)


def test_every_seed_and_model_has_a_text_of_its_own():
    texts = {
        text_of(steps_of("mock:steady")),
        text_of(steps_of("mock:steady", seed=1)),
        text_of(steps_of("mock:steady", schedule=attrs.evolve(SHORT, seed=8))),
        text_of(steps_of("mock:nologprobs")),
    }
    assert len(texts) == 4


@given(st.text(max_size=5), st.sampled_from([*MOODY, 1.5]))
def test_distributions_are_sorted_and_sum_to_one(seed, spread):
    for top in next_words(seed, spread).values():
        assert math.isclose(math.fsum(math.exp(entry.logprob) for entry in top), 1.0, rel_tol=1e-12)
        assert [entry.logprob for entry in top] == sorted((entry.logprob for entry in top), reverse=True)
        assert sorted(entry.token for entry in top) == sorted(WORDS)


def test_tokens_are_drawn_from_the_distribution_of_the_word_before():
    """A closed-form check over 20,000 tokens: the mean surprise is the mean entropy."""
    drawn = list(itertools.islice(tokens("x"), 20_000))
    entropy = math.fsum(-math.exp(e.logprob) * e.logprob for token in drawn for e in token.top) / len(drawn)
    surprise = math.fsum(-token.logprob for token in drawn) / len(drawn)
    assert abs(entropy - surprise) < 0.03
    for before, token in itertools.pairwise(drawn):
        assert token.top is next_words("x", 1.5)[before.token]
        assert any(entry.token == token.token and entry.logprob == token.logprob for entry in token.top)


@pytest.mark.parametrize("asked", [None, 0, 1, 5, 20])
def test_as_many_alternatives_as_asked(asked):
    for say in said(steps_of("mock:logprobs", top_logprobs=asked)):
        assert [len(entry.top) for entry in say.logprobs] == ([] if asked is None else [asked])
        if asked == 20:
            assert math.isclose(math.fsum(math.exp(entry.logprob) for entry in say.logprobs[0].top), 1.0)


def test_a_model_that_is_sure_and_unsure_by_turns():
    says = said(steps_of("mock:logprobs", top_logprobs=1, num_predict=32))
    sure, unsure = ([math.exp(say.logprobs[0].top[0].logprob) for say in part] for part in (says[:16], says[16:]))
    assert min(sure) > max(unsure)


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 12)), max_size=4),
    st.sampled_from(["mock:steady", "mock:coalesced", "mock:fewer"]),
)
def test_stop_strings_end_the_answer_and_are_not_said(num_predict, cuts, model):
    full = text_of(steps_of(model, 1000, num_predict=num_predict))
    stops = tuple(stop for start, length in cuts if (stop := full[start : start + length]))
    *steps, done = steps_of(model, 1000, num_predict=num_predict, stops=stops)
    text = text_of(steps)
    assert full.startswith(text)
    assert not any(stop in text for stop in stops)
    assert (done.reason == "stop") == bool(stops)
    assert done.eval_count <= num_predict
    assert text == full or any(full[len(text) :].startswith(stop) for stop in stops)


@pytest.mark.parametrize("model", FINISHING)
def test_not_streaming_gives_the_same_answer_in_one_record(model):
    ask = {"top_logprobs": 2, "kind": Kind.CHAT, "num_predict": 30}
    *streamed, end = steps_of(model, 10_000, **ask)
    whole = steps_of(model, 10_000, stream=False, **ask)
    (done,) = [step for step in whole if not isinstance(step, Wait)]
    assert done.thinking + done.text == text_of(streamed)
    assert done.logprobs == tuple(entry for say in said(streamed) for entry in say.logprobs)
    assert attrs.evolve(done, text="", thinking="", logprobs=(), tool_calls=()) == end
    assert [s for s in whole if isinstance(s, Wait)] == [s for s in streamed if isinstance(s, Wait)]


@pytest.mark.parametrize("model", ["mock:silent-end", "mock:repeat-guard"])
def test_not_streaming_an_answer_without_its_end_is_not_done(model):
    last = steps_of(model, stream=False)[-1]
    assert last == Say(text_of(steps_of(model)))


def test_coalesced_records_hold_four_tokens_and_the_last_what_is_left():
    *steps, done = steps_of("mock:coalesced", num_predict=10, top_logprobs=0)
    assert [(say.tokens, len(say.logprobs)) for say in said(steps)] == [(4, 4), (4, 4), (2, 2)]
    assert done.eval_count == 10
    assert [wait.ms for wait in steps if isinstance(wait, Wait) and wait.phase is Phase.EVAL] == [80, 40]


@given(st.integers(1, 100))
def test_fewer_logprobs_than_tokens(num_predict):
    *steps, done = steps_of("mock:fewer", 1000, num_predict=num_predict, top_logprobs=20)
    entries = [entry for say in said(steps) for entry in say.logprobs]
    assert done.eval_count == num_predict
    assert len(entries) < num_predict or num_predict <= 3
    for entry in entries:
        assert any(one.token == entry.token and one.logprob == entry.logprob for one in entry.top)


def test_a_long_answer_is_not_made_before_it_is_wanted():
    """Scripts are lazy: the first steps of the longest one come at once, and its length is bounded."""
    script = script_for(Ask(model="mock:flood", num_predict=10**12), SHORT)
    assert len(said(itertools.islice(script.steps(), 100))) > 90
    assert sum(isinstance(step, Say) for step in script.steps()) == 100_000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(5, 5), ("90s", 90), ("1h2m", 3720), ("1.5m", 90), ("250ms", 0.25), (0, 0), ("0", 0), ("0s", 0), (None, None)],
)
def test_keep_alive_is_seconds_or_a_go_duration(value, seconds):
    ask = parse_ask(Kind.GENERATE, msgspec.json.encode({"model": "m", "keep_alive": value}))
    assert ask.keep_alive_s == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", [-1, "-1m", 1e300, "99999999h"])
def test_keep_alive_for_ever_is_292_years(value):
    ask = parse_ask(Kind.GENERATE, msgspec.json.encode({"model": "m", "keep_alive": value}))
    assert 9.2e9 < ask.keep_alive_s < 9.3e9


@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(repr))
def test_any_body_is_a_question_or_a_refusal(body):
    for kind in Kind:
        assert isinstance(parse_ask(kind, body if isinstance(body, bytes) else body.encode()), Ask | Fail)


def test_times_are_written_as_go_does():
    assert rfc3339(1_795_170_586_219_929_833) == "2026-11-20T10:29:46.219929833Z"
    assert rfc3339(1_795_170_586_220_000_000) == "2026-11-20T10:29:46.22Z"
    assert rfc3339(1_795_170_586_000_000_000) == "2026-11-20T10:29:46Z"


def test_gathering_a_long_answer_lets_others_have_a_turn():
    (*breaths, done) = steps_of("mock:flood", 10_000, stream=False, num_predict=BREATH_RECORDS * 3)[2:]
    assert breaths == [Wait(0)] * 3
    assert isinstance(done, Done)
