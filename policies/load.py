"""The policy data in force: what the package ships, with the user's changes over it, and the hash of the result."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Final

import attrs

from engine.domain.errors import ConfigError
from policies.broker import BrokerPolicy
from policies.degrade import DegradePolicy
from policies.energy import EnergyPolicy
from policies.ensemble import EnsemblePolicy
from policies.prices import PricePolicy
from policies.routing import RoutePolicy
from policies.schema import rejected, strict_converter, structure
from policies.source import Document, parse
from policies.tiers import TierPolicy

SCHEMA_VERSION: Final = "1.0"
HASH_CHARS: Final = 12
NO_CHANGES: Final = Document("no changes")


@attrs.frozen
class Policies:
    """All policy data, merged and checked. `policy_hash` changes with every value, and only with values."""

    energy: EnergyPolicy
    tiers: TierPolicy
    degrade: DegradePolicy
    ensemble: EnsemblePolicy
    prices: PricePolicy
    routes: RoutePolicy
    broker: BrokerPolicy
    policy_hash: str


TABLES: Final[Mapping[str, type]] = {  # the files that have changes of the user's over them, by name
    "energy": EnergyPolicy,
    "tiers": TierPolicy,
    "degrade": DegradePolicy,
    "ensemble": EnsemblePolicy,
    "prices": PricePolicy,
    "routes": RoutePolicy,
    "broker": BrokerPolicy,
}


def load_policies(**changes: Document) -> Policies:
    """The shipped data with the user's changes over them, key by key; `changes` are by the names of TABLES.

    Raises ConfigError with one line per misfit; a user's key is named by the place it came from. Reads package files.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, cls in TABLES.items():
        try:
            found[name] = structure(shipped(name).overlay(changes.get(name, NO_CHANGES)), cls, _converter())
        except ConfigError as error:
            problems.extend(error.details["problems"])
    if problems:
        raise rejected(problems)
    return Policies(**found, policy_hash=_hash(**found))


@functools.cache
def shipped(name: str) -> Document:
    """`policies/<name>.yaml` as it comes with the package."""
    text = importlib.resources.files("policies").joinpath(f"{name}.yaml").read_text("utf-8")
    return parse(text, f"policies/{name}.yaml")


_converter = functools.cache(strict_converter)  # building its code takes longer than using it


def _hash(**tables: attrs.AttrsInstance) -> str:
    """First 12 hex digits of SHA-256 over the values as canonical JSON: sorted keys, no spaces, floats as floats."""
    data = {name: attrs.asdict(table) for name, table in tables.items()}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_CHARS]
