"""The price table as policies/prices.yaml gives it: USD per million tokens, with the date it was true."""

# ruff: noqa: RUF009  # row() makes attrs fields

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from engine.domain.models import is_model_name
from engine.domain.usage import NANO_PER_TOKEN, Price, PriceTable, UserPrice
from policies.schema import Misfit, quoted, row

MODELS_MAX: Final = 512
PRICE_MAX: Final = 100_000.0  # USD for a million tokens
NAME_CHARS_MAX: Final = 80
DATE: Final = r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
DATE_WORDS: Final = "a date like 2026-11-01"
_SIDES: Final = ("input_per_million", "output_per_million")
_PRICE_WORDS: Final = f"USD for a million tokens: 0–{PRICE_MAX:g} with at most three decimals"


def _models(_instance: object, field: attrs.Attribute[Any], models: Mapping[str, Any]) -> None:
    if len(models) > MODELS_MAX:
        raise Misfit(f"at most {MODELS_MAX} models", f"{len(models)}", (field.name,))
    for name, entry in models.items():
        if not is_model_name(str(name)):
            raise Misfit("the price of a model's name", quoted(name), (field.name, str(name)))
        _check_price(entry, (field.name, str(name)), ())


def _instead_of(_instance: object, field: attrs.Attribute[Any], entry: Mapping[str, Any]) -> None:
    if not entry:
        return
    _check_price(entry, (field.name,), ("name", "as_of"))
    if not isinstance(entry["name"], str) or not 1 <= len(entry["name"]) <= NAME_CHARS_MAX:
        raise Misfit(f"a name of at most {NAME_CHARS_MAX} characters", quoted(entry["name"]), (field.name, "name"))
    if not isinstance(entry["as_of"], str) or re.fullmatch(DATE, entry["as_of"]) is None:
        raise Misfit(DATE_WORDS, quoted(entry["as_of"]), (field.name, "as_of"))


def _check_price(entry: Any, within: tuple[str | int, ...], more: tuple[str, ...]) -> None:
    keys = (*more, *_SIDES)
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise Misfit("a mapping with " + " and ".join(keys), None, within)
    for side in _SIDES:
        value = entry[side]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= PRICE_MAX:
            raise Misfit(_PRICE_WORDS, quoted(value), (*within, side))
        if not math.isclose(value * NANO_PER_TOKEN, round(value * NANO_PER_TOKEN), abs_tol=1e-6):
            raise Misfit(_PRICE_WORDS, quoted(value), (*within, side))


@attrs.frozen
class PricePolicy:
    """policies/prices.yaml with the user's changes."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    as_of: str = row(doc="date of the list", pattern=DATE, expectation=DATE_WORDS)
    models: dict[str, Any] = row(doc="list prices of models elsewhere", validator=_models)
    instead_of: dict[str, Any] = row(doc="prices of your own, for the estimate; empty: none", validator=_instead_of)

    def table(self) -> PriceTable:
        own = None
        if self.instead_of:
            own = UserPrice(self.instead_of["name"], self.instead_of["as_of"], _price(self.instead_of))
        return PriceTable(self.as_of, {name: _price(entry) for name, entry in self.models.items()}, own)


def _price(entry: Mapping[str, Any]) -> Price:
    return Price(*(round(entry[side] * NANO_PER_TOKEN) for side in _SIDES))
