"""The policy data in force: what the package ships, with the user's changes over it, and the hash of the result."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from typing import Final, TypeVar

import attrs

from engine.domain.errors import ConfigError
from policies.energy import EnergyPolicy
from policies.schema import rejected, strict_converter, structure
from policies.source import Document, parse
from policies.tiers import TierPolicy

SCHEMA_VERSION: Final = "1.0"
HASH_CHARS: Final = 12
NO_CHANGES: Final = Document("no changes")

T = TypeVar("T")


@attrs.frozen
class Policies:
    """All policy data, merged and checked. `policy_hash` changes with every value, and only with values."""

    energy: EnergyPolicy
    tiers: TierPolicy
    policy_hash: str


def load_policies(energy: Document = NO_CHANGES, tiers: Document = NO_CHANGES) -> Policies:
    """The shipped data with the user's changes over them, key by key.

    Raises ConfigError with one line per misfit; a user's key is named by the place it came from. Reads package files.
    """
    problems: list[str] = []

    def load(name: str, changes: Document, cls: type[T]) -> T | None:
        try:
            return structure(shipped(name).overlay(changes), cls, _converter())
        except ConfigError as error:
            problems.extend(error.details["problems"])
            return None

    energy_policy = load("energy", energy, EnergyPolicy)
    tier_policy = load("tiers", tiers, TierPolicy)
    if energy_policy is None or tier_policy is None:
        raise rejected(problems)
    return Policies(energy_policy, tier_policy, _hash(energy_policy, tier_policy))


@functools.cache
def shipped(name: str) -> Document:
    """`policies/<name>.yaml` as it comes with the package."""
    text = importlib.resources.files("policies").joinpath(f"{name}.yaml").read_text("utf-8")
    return parse(text, f"policies/{name}.yaml")


_converter = functools.cache(strict_converter)  # building its code takes longer than using it


def _hash(energy: EnergyPolicy, tiers: TierPolicy) -> str:
    """First 12 hex digits of SHA-256 over the values as canonical JSON: sorted keys, no spaces, floats as floats."""
    data = {"energy": attrs.asdict(energy), "tiers": attrs.asdict(tiers)}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_CHARS]
