"""The schemas of configuration and policies take what the engine takes, and nothing else."""

# ruff: noqa: RUF009  # row() makes attrs fields

from __future__ import annotations

import copy
import functools
from importlib.resources import files
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from engine.config import _converter
from engine.domain.errors import ConfigError
from engine.schemas import read_schemas
from engine.settings import Settings
from policies.energy import EnergyPolicy
from policies.json_schema import table_schema
from policies.load import load_policies, shipped
from policies.schema import row, rows, structure
from policies.source import Document, nested, parse
from policies.tiers import TierPolicy

SCHEMAS = {name: Draft202012Validator(document) for name, document in read_schemas().items()}

# Not among them: 8.0 where a whole number is asked, which JSON Schema takes for one; texts that end in a line break,
# which Python's `$` lets pass and that of other validators does not.
numbers = st.integers(-3, 70_000) | st.integers() | st.floats(-2, 2).filter(lambda number: not number.is_integer())
words = st.sampled_from(
    ["auto", "info", "json", "1.0", "localhost", "::1", "http://a:1", "a:1", "ab", "a b", "x" * 300]
)
texts = words | st.text(max_size=8).filter(lambda text: not text.endswith("\n"))
lists = st.lists(texts | numbers, max_size=3) | st.just(["x"] * 65)
values = st.none() | st.booleans() | numbers | texts | lists | st.just({}) | st.just({"no": "such"})


def leaves(cls: type) -> list[tuple[str | int, ...]]:
    paths = [path for path, _ in rows(cls)]
    return [path for path in paths if not any(other[: len(path)] == path != other for other in paths)]


def taken(data: dict[str, Any], cls: type) -> bool:
    try:
        structure(Document("given", data), cls, _converter())
    except ConfigError:
        return False
    return True


def test_the_shipped_files_fit():
    config = parse(files("policies").joinpath("wf.example.yaml").read_text("utf-8"), "wf.example.yaml")
    assert list(SCHEMAS["config"].iter_errors(config.data)) == []
    for name in ("tiers", "energy"):
        assert list(SCHEMAS[f"policies.{name}"].iter_errors(shipped(name).data)) == []


CHECKED_ONCE_MERGED = {"policies", "table", "taxonomy"}  # changes to shipped files, whose whole is what must fit


@given(st.sampled_from([path for path in leaves(Settings) if not CHECKED_ONCE_MERGED & set(path)]), values)
@example(("http", "port"), 65_535)
@example(("http", "port"), 65_536)
@example(("ws", "stall_s"), 0.1)
@example(("ws", "stall_s"), 0.09)
@example(("ollama", "url"), "http://[::1]:11434")
@example(("api_keys",), ["!~"])
@example(("api_keys",), ["ü"])
@example(("api_keys",), ["x" * 256])
@example(("api_keys",), ["x" * 257])
@example(("http", "host"), "a b")
@example(("http", "host"), "a" + " " * 2 + "::1")
def test_a_setting_fits_when_the_engine_takes_it(path, value):
    data = nested(path, value)
    assert SCHEMAS["config"].is_valid(data) == taken(data, Settings)


def test_every_setting_and_every_unknown_one_is_told_apart():
    for path, _ in rows(Settings):
        if path[0] != "policies":
            data = nested((*path[:-1], f"{path[-1]}_no"), 1)
            assert not SCHEMAS["config"].is_valid(data), path


@given(st.sampled_from(leaves(EnergyPolicy)), values)
@example(("eu", "base"), 0)
@example(("tps_max", "low"), 100_000)
@example(("alpha", "mid"), 1)
def test_an_energy_constant_fits_when_it_is_taken(path, value):
    """Where one value alone decides; weights that do not sum to 1, say, are the engine's to refuse."""
    data = changed(shipped("energy").data, path, value)
    if taken(data, EnergyPolicy):
        assert SCHEMAS["policies.energy"].is_valid(data)
    elif not SCHEMAS["policies.energy"].is_valid(data):
        return
    else:
        assert path[0] in ("weights", "weights_no_logprobs", "stall_ms", "ceil_ms", "saturate", "unsaturate")


@given(st.sampled_from(leaves(TierPolicy)), values)
def test_a_tier_figure_fits_when_it_is_taken(path, value):
    data = changed(shipped("tiers").data, path, value)
    assert SCHEMAS["policies.tiers"].is_valid(data) == taken(data, TierPolicy)


@attrs.frozen
class Inner:
    wide: float = row(doc="wide", minimum=0, maximum=9)
    narrow: float = row(doc="narrow", minimum=3, maximum=4)


@attrs.frozen
class Outer:
    inner: Inner = row(doc="both rows hold", minimum=2, maximum=5)


@given(st.sampled_from(["wide", "narrow"]), st.integers(-1, 10))
def test_the_ranges_of_both_rows_hold(name, value):
    data = {"inner": {"wide": 3, "narrow": 3} | {name: value}}
    assert Draft202012Validator(table_schema(Outer)).is_valid(data) == taken(data, Outer)


@pytest.mark.parametrize("name", ["tiers", "energy"])
def test_a_policy_file_needs_all_its_rows(name):
    for key in shipped(name).data:
        rest = {other: value for other, value in shipped(name).data.items() if other != key}
        assert not SCHEMAS[f"policies.{name}"].is_valid(rest), key


@pytest.mark.parametrize(
    "change",
    [
        {"energy": {"tps_max": {"mid": 25}, "half_life_ms": 900}},
        {"tiers": {"low": {"tick_hz": 30}, "levels": {"level_1": {"name": "First"}}}},
        {"energy": {"tps_max": {"mid": 0}}},
        {"energy": {"no_such": 1}},
        {"tiers": {"low": {"max_parallel_models": 7}}},
    ],
)
def test_a_change_to_a_policy_fits_when_it_is_taken(change):
    try:
        load_policies(**{name: Document("changes", change.get(name, {})) for name in ("energy", "tiers")})
        fits = True
    except ConfigError:
        fits = False
    assert SCHEMAS["config"].is_valid({"policies": change}) == fits


def changed(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copied = copy.deepcopy(data)
    functools.reduce(lambda part, key: part[key], path[:-1], copied)[path[-1]] = value
    return copied
