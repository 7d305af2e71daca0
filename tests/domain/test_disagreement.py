"""Disagreement of distributions and of paces: golden figures, an independent second computation, and the properties."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.domain.disagreement import Comparison, Table, compare, symbol, tabulate, timing_disagreement
from engine.domain.generation import TopEntry
from tests.domain.councils import entries, top_lists

councils = st.lists(top_lists(), min_size=2, max_size=6)


@attrs.frozen
class Row:
    """One distribution of a table."""

    symbols: dict[str, float]
    other: float


def rows_of(table: Table) -> list[Row]:
    return [
        Row({key: float(p) for key, p in zip(table.symbols, column[1:], strict=True) if p > 0}, float(column[0]))
        for column in table.masses.T
    ]


def table_of(lists) -> Table:
    return tabulate([entries(one) for one in lists], 10)


def compared(lists) -> Comparison:
    return compare(table_of(lists))


def said(probabilities: dict[str, float]) -> Row:
    (row,) = rows_of(table_of([probabilities]))
    return row


def di(*lists: dict[str, float]) -> float:
    return compared(lists).di


def reference(rows: list[Row]) -> float:
    """DI as the mean divergence of each row from the average, with exact probabilities and natural logarithms."""
    exact = [{("listed", key): Fraction(p) for key, p in row.symbols.items() if p > 0} for row in rows]
    for given_row, row in zip(rows, exact, strict=True):
        if given_row.other > 0:
            row["other", ""] = Fraction(given_row.other)
    total = 0.0
    for row in exact:
        for key, p in row.items():
            average = sum((other.get(key, Fraction(0)) for other in exact), Fraction(0)) / len(exact)
            total += float(p) * math.log(float(p / average))
    return total / (len(rows) * math.log(len(rows)))


# ── golden figures ──


def test_two_that_prefer_each_others_second():
    assert di({"a": 0.7, "b": 0.2}, {"a": 0.2, "b": 0.7}) == pytest.approx(0.2122, abs=5e-5)


def test_five_agree_and_one_differs():
    assert di(*[{"a": 1.0}] * 5, {"b": 1.0}) == pytest.approx(0.2515, abs=5e-5)


@pytest.mark.parametrize("count", range(2, 7))
def test_disjoint_ones_disagree_fully(count):
    assert di(*({f"w{i}": 1.0} for i in range(count))) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("count", range(2, 7))
def test_equal_ones_do_not_disagree_at_all(count):
    row = {"a": 0.37, "b": 0.21, "c": 0.1 / 3}
    found = compared([row] * count)
    assert found.di == 0.0
    assert found.agreement == (1.0,) * math.comb(count, 2)


def test_flat_ones_are_uncertain_but_agree():
    found = compared([dict.fromkeys("abcd", 0.25)] * 3)
    assert found.di == 0.0
    assert found.mixture_uncertainty == pytest.approx(0.75)


@pytest.mark.parametrize(("paces", "expected"), [((50, 100), 0.25), ((50, 500), 0.45), ((80, 80, 80), 0.0)])
def test_timing_golden(paces, expected):
    assert timing_disagreement(paces) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("paces", [(), (50,), (0, 0)])
def test_timing_needs_two_that_took_time(paces):
    assert timing_disagreement(paces) is None


def test_uncovered_mass_is_no_symbol_of_the_mixture():
    found = compared([{"a": 0.1}, {"a": 0.3}])
    assert found.mixture_uncertainty == pytest.approx(0.8)


def test_one_distribution_has_nobody_to_disagree_with():
    with pytest.raises(ValueError, match="two"):
        compared([{"a": 1.0}])


# ── symbols and lists ──


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the", "the"),
        (" the", "the"),
        ("Ġthe", "the"),
        ("▁the", "the"),
        ("the ", "the "),
        ("  x", " x"),
        ("▁▁x", "▁x"),
        (" ", " "),
        ("▁", " "),
        ("Ġ▁", "  "),
        ("", ""),
        ("\n", "\n"),
        ("e\u0301", "é"),
        ("aĠ", "aĠ"),
    ],
)
def test_symbol(text, expected):
    assert symbol(text) == expected


def test_spellings_of_one_symbol_are_added_up():
    found = said({" the": 0.5, "the": 0.25, "Ġthe": 0.125})
    assert found.symbols == pytest.approx({"the": 0.875})
    assert found.other == pytest.approx(0.125)


def test_only_the_most_probable_entries_count():
    (found,) = rows_of(tabulate([entries({"c": 0.1, "a": 0.5, "b": 0.3})], 2))
    assert found.symbols == pytest.approx({"a": 0.5, "b": 0.3})
    assert found.other == pytest.approx(0.2)


@pytest.mark.parametrize("logprobs", [(), (math.nan,), (-math.inf, -math.inf), (-1e6,)])
def test_a_list_without_mass_has_no_place(logprobs):
    empty = [TopEntry("a", lp) for lp in logprobs]
    assert rows_of(tabulate([empty], 10)) == []
    table = tabulate([entries({"a": 0.5}), empty, entries({"b": 0.5})], 10)
    assert (table.lists, compare(table).di) == ([0, 2], pytest.approx(0.5))


def test_a_list_of_more_than_everything_is_brought_to_one():
    rows = rows_of(tabulate([[TopEntry("a", 0.0), TopEntry("b", 0.0)], [TopEntry("a", 1e-9)], entries({"c": 0.5})], 10))
    assert rows == [Row({"a": 0.5, "b": 0.5}, 0.0), Row({"a": 1.0}, 0.0), Row({"c": 0.5}, 0.5)]


def test_the_symbol_of_uncovered_mass_is_not_a_token():
    assert di({"other": 0.5}, {"": 0.5}) == pytest.approx(0.5)


# ── properties ──


@given(councils)
def test_like_the_reference(lists):
    table = table_of(lists)
    rows, found = rows_of(table), compare(table)
    assert found.di == pytest.approx(reference(rows), abs=1e-9)
    pairs = itertools.combinations(rows, 2)
    assert found.agreement == pytest.approx([1 - reference(list(pair)) for pair in pairs], abs=1e-9)


@given(councils, st.randoms(use_true_random=False))
def test_range_and_any_order_of_members_and_entries(lists, random):
    found = compared(lists)
    assert 0.0 <= found.di <= 1.0
    assert 0.0 <= found.mixture_uncertainty <= 1.0
    assert all(0.0 <= value <= 1.0 for value in found.agreement)
    mixed = [dict(random.sample(list(one.items()), len(one))) for one in random.sample(lists, len(lists))]
    again = compared(mixed)
    assert again.di == pytest.approx(found.di, abs=1e-12)
    assert sorted(again.agreement) == pytest.approx(sorted(found.agreement), abs=1e-12)


def distance(rows: list[Row]) -> float:
    """The largest difference of a probability between any two rows."""
    keys = {key for row in rows for key in row.symbols}
    columns = [[row.symbols.get(key, 0.0) for row in rows] for key in keys] + [[row.other for row in rows]]
    return max(max(column) - min(column) for column in columns)


@given(st.lists(top_lists(st.sampled_from("ab")), min_size=2, max_size=3) | councils)
def test_zero_exactly_when_equal(lists):
    rows = rows_of(table_of(lists))
    assume(distance(rows) < 1e-12 or distance(rows) > 1e-4)
    assert (compared(lists).di < 1e-12) == (distance(rows) < 1e-12)


@given(st.lists(top_lists(st.sampled_from("abcdefgh")), min_size=2, max_size=3) | councils)
def test_one_exactly_when_disjoint(lists):
    rows = rows_of(table_of(lists))
    overlap = max(
        sum(min(a.symbols.get(key, 0.0), b.symbols.get(key, 0.0)) for key in a.symbols) + min(a.other, b.other)
        for a, b in itertools.combinations(rows, 2)
    )
    assume(overlap < 1e-12 or overlap > 1e-6)
    assert (compared(lists).di > 1 - 1e-9) == (overlap < 1e-12)


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(allow_nan=True)), max_size=15))
def test_any_list_is_a_distribution_or_none(pairs):
    top = [TopEntry(text, logprob) for text, logprob in pairs]
    table = tabulate([top, top], 10)
    for found in rows_of(table):
        assert math.fsum(found.symbols.values()) + found.other == pytest.approx(1.0)
        assert found.other >= 0.0
    assert len(table.lists) in (0, 2)
    if table.lists:
        assert compare(table).di == 0.0


@given(st.text())
def test_a_symbol_loses_nothing_but_its_marker(text):
    assert len(symbol(text)) <= 3 * len(text)
    assert bool(symbol(text)) == bool(text)


@given(st.lists(st.floats(0.01, 1e6), min_size=2, max_size=6), st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_timing_is_in_range_and_knows_no_unit_and_no_order(paces, factor, random):
    found = timing_disagreement(paces)
    assert found is not None
    assert 0.0 <= found < 1.0
    assert timing_disagreement([pace * factor for pace in paces]) == pytest.approx(found, abs=1e-6)
    assert timing_disagreement(random.sample(paces, len(paces))) == found
