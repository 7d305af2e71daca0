"""The price table: what is shipped, what a user may change, and what is refused."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError
from engine.domain.usage import Price
from policies.load import shipped
from policies.prices import PricePolicy
from policies.schema import strict_converter, structure
from policies.source import parse


def priced(text: str) -> PricePolicy:
    changes = attrs.evolve(parse(text, "wf.yaml"), root=("policies", "prices"))
    return structure(shipped("prices").overlay(changes), PricePolicy, strict_converter())


def test_the_shipped_table_has_a_date_and_no_estimate():
    table = priced("").table()
    assert table.as_of == "2025-11-06"
    assert table.models["claude-sonnet-4-5"] == Price(3_000, 15_000)
    assert table.models["gpt-4o-mini"] == Price(150, 600)
    assert table.instead_of is None


def test_prices_of_ones_own():
    table = priced(
        "as_of: '2026-11-01'\nmodels: {mine: {input_per_million: 0.001, output_per_million: 2}}\n"
        "instead_of: {name: before, as_of: '2026-10-01', input_per_million: 1, output_per_million: 2.5}"
    ).table()
    assert table.as_of == "2026-11-01"
    assert table.models["mine"] == Price(1, 2_000)
    assert table.models["gpt-4"] == Price(30_000, 60_000)
    assert table.instead_of is not None
    assert table.instead_of.price.of(2, 4) == 2 * 1_000 + 4 * 2_500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("as_of: 11/2025", "policies.prices.as_of must be a date"),
        ("models: {gpt-4: {input_per_million: 1}}", None),  # merged over the shipped one
        ("models: {new: {input_per_million: 1}}", "policies.prices.models.new must be a mapping with"),
        ("models: {new: {input_per_million: -1, output_per_million: 1}}", "models.new.input_per_million must be USD"),
        ("models: {new: {input_per_million: true, output_per_million: 1}}", "models.new.input_per_million must be"),
        ("models: {new: {input_per_million: 0.0001, output_per_million: 1}}", "at most three decimals"),
        ("models: {a b: {input_per_million: 1, output_per_million: 1}}", "must be the price of a model's name"),
        ("instead_of: {input_per_million: 1, output_per_million: 1}", "with name and as_of and"),
        ("instead_of: {name: x, as_of: soon, input_per_million: 1, output_per_million: 1}", "instead_of.as_of must be"),
        ("curency: EUR", "policies.prices.curency is unknown"),
    ],
)
def test_what_is_refused(text, said):
    if said is None:
        assert priced(text).table().models["gpt-4"] == Price(1_000, 60_000)
        return
    with pytest.raises(ConfigError, match=said):
        priced(text)


@given(st.integers(0, 100_000_000))
def test_a_price_of_three_decimals_is_exact(thousandths):
    entry = {"input_per_million": thousandths / 1000, "output_per_million": 0.0}
    policy = PricePolicy("1.0", "2026-11-01", {"m": entry}, {})
    assert policy.table().models["m"] == Price(thousandths, 0)
