"""`wf schema`."""

from __future__ import annotations

import json

import pytest

from engine import cli
from engine.schemas import read_schemas


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_name_it_lists_all(capsys):
    code, out, _ = said(capsys, "schema")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(read_schemas())
    code, out, _ = said(capsys, "schema", "--json")
    assert [entry["name"] for entry in json.loads(out)["schemas"]] == list(read_schemas())


def test_with_a_name_it_prints_the_schema(capsys):
    for words in (("schema", "energy.update"), ("schema", "energy.update", "--json")):
        code, out, _ = said(capsys, *words)
        assert (code, json.loads(out)) == (0, read_schemas()["energy.update"])


def test_an_unknown_name_is_told_with_the_nearest(capsys):
    code, out, err = said(capsys, "schema", "polices.tiers")
    assert (code, out) == (cli.EXIT_FAILED, "")
    assert err == "wf: there is no schema polices.tiers; did you mean policies.tiers?\n"
