"""Reading a label and its probabilities off a model's answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.generation import TokenLogprob, TopEntry
from policies.labels import read_label
from policies.taxonomy import load_taxonomy

LABELS = load_taxonomy().domains.labels


def token(text, chance, **others):
    """A token with its probability; `others` are the candidates beside it (`_` for a blank)."""
    top = [TopEntry(text, math.log(chance))]
    top += [TopEntry(name.replace("_", " "), math.log(other)) for name, other in others.items()]
    return TokenLogprob(text, math.log(chance), tuple(top))


def probabilities(*tokens):
    reading = read_label(tokens, "", LABELS)
    assert reading.probabilities is not None
    return reading.label, {label: round(chance, 9) for label, chance in reading.probabilities.items()}


def test_one_token_a_label():
    label, found = probabilities(token("MEDICINE", 0.8, BIOLOGY=0.12, CHEMISTRY=0.03, the=0.01))
    assert label == "MEDICINE"
    assert found == {"MEDICINE": 0.8, "BIOLOGY": 0.12, "CHEMISTRY": 0.03}


def test_a_label_in_pieces_counts_from_where_it_is_settled():
    """`P` may be three domains; `PHYS` one. What comes after that is the rest of a word."""
    label, found = probabilities(
        token("P", 0.6, BIO=0.3, M=0.05), token("HYS", 0.5, SYCH=0.4, HIL=0.1), token("ICS", 0.9, IQUE=0.1)
    )
    assert label == "PHYSICS"
    assert found == {"PHYSICS": 0.3, "PSYCHOLOGY": 0.24, "PHILOSOPHY": 0.06, "BIOLOGY": 0.3}


def test_spellings_of_one_label_add_up():
    label, found = probabilities(token(" Med", 0.5, MED=0.2, medicine=0.1, LAW=0.1), token("icine", 0.9))
    assert (label, found) == ("MEDICINE", {"MEDICINE": 0.8, "LAW": 0.1})


def test_a_beginning_that_goes_on_as_another_word_is_no_label():
    label, found = probabilities(token("MED", 0.7, LAW=0.2), token("ITATION", 0.9))
    assert (label, found) == (None, {"LAW": 0.2})


def test_short_beginnings_settle_nothing():
    label, found = probabilities(token(" a", 0.5, La=0.2, _ar=0.1), token(" kind", 0.5))
    assert (label, found) == (None, {})


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("MEDICINE", "MEDICINE"), (" medicine.", "MEDICINE"), ("**Computer Science**\n", "COMPUTER_SCIENCE"),
        ("Label: LAW", "LAW"), ("The domain is physics", "PHYSICS"), ('"ARTIFICIAL-INTELLIGENCE"', LABELS[1]),
        ("It concerns glucose, so MEDICINE it is, not BIOLOGY", "MEDICINE"), ("OTHER", "OTHER"),
        ("a rule of law", None), ("LAWN", None), ("ASTROLOGY", None), ("", None), ("\n\n", None), ("MED", None),
        ("PRELAW", None),
    ],
)  # fmt: skip
def test_what_an_answer_says(said, label):
    reading = read_label((), said, LABELS)
    assert (reading.label, reading.probabilities) == (label, None)


def test_what_stands_before_the_label_does_not_lower_it():
    label, found = probabilities(token("Label", 0.1), token(":", 0.5), token(" LAW", 0.75, _SPORTS=0.25))
    assert (label, found) == ("LAW", {"LAW": 0.75, "SPORTS": 0.25})


def test_ranked_begins_with_what_was_said():
    reading = read_label([token("P", 0.4, BIO=0.35), token("HYS", 0.5), token("ICS", 1.0)], "", LABELS)
    assert [label for label, _ in reading.ranked()] == ["PHYSICS", "BIOLOGY"]
    assert reading.ranked()[0][1] == pytest.approx(0.2)


pieces = st.sampled_from([*LABELS, "P", "HYS", "ICS", "MED", "ICINE", " ", "a", "law", "COMPUTER", "_", "SCIENCE", "é"])


@st.composite
def distributions(draw):
    """Tokens whose candidates are different texts with probabilities that sum to at most 1."""
    tokens = []
    for _ in range(draw(st.integers(1, 5))):
        texts = draw(st.lists(pieces, min_size=1, max_size=8, unique=True))
        weights = draw(st.lists(st.floats(0.001, 1), min_size=len(texts), max_size=len(texts)))
        chances = [weight / sum(weights) for weight in weights]
        top = tuple(TopEntry(text, math.log(chance)) for text, chance in zip(texts, chances, strict=True))
        tokens.append(TokenLogprob(texts[0], top[0].logprob, top))
    return tokens


@given(distributions())
def test_probabilities_are_probabilities_of_labels_and_sum_to_at_most_one(tokens):
    reading = read_label(tokens, "", LABELS)
    assert reading.probabilities is not None
    assert set(reading.probabilities) <= set(LABELS)
    assert all(0 <= chance <= 1 for chance in reading.probabilities.values())
    assert math.fsum(reading.probabilities.values()) <= 1 + 1e-9
    assert reading.label is None or reading.label in LABELS


@given(st.text(max_size=300))
def test_any_answer_is_read(said):
    assert read_label((), said, LABELS).label in (None, *LABELS)
