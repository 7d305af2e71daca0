from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.agreement import AGREED_BYTES_MIN, COMPARED_BYTES_MAX, agreed, agreement, decided, grams, is_cut

words = st.sampled_from(["Paris", "is", "the capital", "of", "France", "Lyon", "née", "是的", "\n", "  ", "."])
texts = st.text(max_size=30) | st.text("ab ", max_size=40) | st.lists(words, max_size=12).map(" ".join)

SKY = "The sky looks blue because of Rayleigh scattering: air scatters blue light more strongly than red light."
PANCAKES = "Mix flour, milk and eggs until smooth. Heat butter in a pan and pour a thin layer of batter. Turn it once."


def longest_common(one: list[bytes], other: list[bytes]) -> int:
    """By the book, one place after the other."""

    @cache
    def best(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + best(i + 1, j + 1)
        return max(best(i + 1, j), best(i, j + 1))

    return best(0, 0)


def spaced(text: str) -> str:
    return " ".join(text.split())


@given(texts, texts)
def test_it_is_symmetric_in_range_and_one_only_for_equal_texts(one, other):
    share = agreement(one, other)
    assert share == agreement(other, one)
    assert 0.0 <= share <= 1.0
    assert (share == 1.0) == (spaced(one) == spaced(other))


@given(texts, texts)
def test_it_is_the_longest_common_subsequence_over_the_longer_text(one, other):
    a, b = grams(one), grams(other)
    expected = longest_common(a, b) / max(len(a), len(b)) if a or b else 1.0
    assert agreement(one, other) == expected


@given(texts, texts, texts)
def test_disagreement_is_a_metric(one, other, third):
    """No way round is shorter; `decided` rests on this."""
    assert 1 - agreement(one, third) <= (1 - agreement(one, other)) + (1 - agreement(other, third)) + 1e-12


@given(texts)
def test_the_sequence_tells_the_text(text):
    found = grams(text)
    assert b"".join([gram[:1] for gram in found[:-1]] + found[-1:]) == spaced(text).encode()


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("", "", 1.0),
        ("", "a", 0.0),
        ("  \n", "", 1.0),
        ("It is\n  Paris. ", "It is Paris.", 1.0),
        ("abcd", "abce", 0.0),  # one string of four bytes each
        ("abcdefgh", "abcdefgX", 4 / 5),
        ("abcdefghij", "abcdeXfghij", 4 / 8),  # abcd, bcde | fghi, ghij
        ("abc", "abcd", 0.0),
    ],
)
def test_examples(one, other, share):
    assert agreement(one, other) == share


def test_chance_does_not_look_like_agreement():
    assert agreement(SKY, PANCAKES) < 0.1
    assert agreement(SKY, SKY.replace("looks", "appears").replace("air", "the atmosphere")) > 0.7


def test_half_a_surrogate_pair_is_compared_like_anything_else():
    assert agreement("\ud83d and", "\ud83d and") == 1.0
    assert agreement("\ud83d and", "\ud83c and") < 1.0


def test_no_more_is_compared_than_the_bound():
    start = ("word-" * COMPARED_BYTES_MAX)[:COMPARED_BYTES_MAX]
    assert not is_cut(start)
    assert is_cut(start + "w")
    assert agreement(start + " that is it", start + " on the contrary") == 1.0
    assert agreement("x" + start, start) < 1.0


FIRST_SENTENCE = "The capital of France is Paris, which lies on the Seine in the north."
assert len(FIRST_SENTENCE) >= AGREED_BYTES_MIN


@pytest.mark.parametrize(
    ("so_far", "expected"),
    [
        ([f"{FIRST_SENTENCE} It", f"{FIRST_SENTENCE} The", f"{FIRST_SENTENCE}\n\nBut"], True),
        ([f"{FIRST_SENTENCE} It", f"{FIRST_SENTENCE} "], False),  # the blank may be no end: nothing follows yet
        ([f"{FIRST_SENTENCE} It", FIRST_SENTENCE.replace("Paris", "Lyon!") + " It"], False),
        (["Sure! It is so.", "Sure! It is so."], False),  # too short to mean anything
        ([f"{FIRST_SENTENCE[:-1]} 3.5", f"{FIRST_SENTENCE[:-1]} 3.14"], False),  # a point, not an end
        (
            [
                "天空是蓝色的因为空气散射蓝光比红光更强所以我们看到蓝色。是",
                "天空是蓝色的因为空气散射蓝光比红光更强所以我们看到蓝色。不",
            ],
            True,
        ),
        ([f"{FIRST_SENTENCE} It"], False),
        ([], False),
    ],
)
def test_agreed_needs_the_same_sentence_from_all(so_far, expected):
    assert agreed(so_far) is expected


@given(st.lists(st.lists(words, max_size=8).map(" ".join), min_size=2, max_size=4), st.data())
def test_once_agreed_always_agreed(ends, data):
    so_far = [f"{FIRST_SENTENCE} {end}" for end in ends]
    grown = [text + data.draw(texts) for text in so_far]
    assert not agreed(so_far) or agreed(grown)


@given(st.lists(texts, min_size=2, max_size=4))
def test_what_is_agreed_does_not_depend_on_the_order(so_far):
    assert agreed(so_far) == agreed(so_far[::-1])


@pytest.mark.parametrize(
    ("finished", "members", "expected"),
    [
        (["Yes.", " Yes.\n"], 3, True),
        (["Yes.", "Yes."], 4, False),
        (["Yes.", "No."], 3, False),
        (["Yes.", "No.", "Yes.", "Yes."], 5, True),
        (["", " "], 3, False),  # nobody said anything
        ([], 0, False),
    ],
)
def test_more_than_half_decide(finished, members, expected):
    assert decided(finished, members) is expected


@given(texts.filter(str.strip), st.integers(2, 4), st.data())
def test_what_is_decided_stays_nearest_to_all(text, same, data):
    others = data.draw(st.lists(texts, max_size=same - 1))
    everyone = [text] * same + others
    assert decided([text] * same, len(everyone))
    distances = [sum(1 - agreement(each, other) for other in everyone) for each in everyone]
    assert min(distances) >= distances[0] - 1e-9
    assert all(spaced(t) == spaced(text) or d > distances[0] for t, d in zip(everyone, distances, strict=True))
