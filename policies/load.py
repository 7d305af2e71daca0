"""The policy data in force: what the package ships, with the user's changes over it, and the hash of the result."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
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
from policies.services import ServiceTable, load_services
from policies.source import Document, shipped
from policies.taxonomy import Taxonomy, load_taxonomy
from policies.tiers import TierPolicy

__all__ = ["SCHEMA_VERSION", "TABLES", "Policies", "load_policies", "shipped"]

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
    services: ServiceTable
    taxonomy: Taxonomy
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


def load_policies(*, services: Document = NO_CHANGES, taxonomy: Document = NO_CHANGES, **changes: Document) -> Policies:
    """The shipped data with the user's changes over them, key by key; `changes` are by the names of TABLES, those of
    the local services and of what their classifier may say beside them.

    Raises ConfigError with one line per misfit; a user's key is named by the place it came from. Reads package files.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, cls in TABLES.items():
        read = functools.partial(_structured, name, cls, changes.get(name, NO_CHANGES))
        _collect(name, read, found, problems)
    _collect("services", functools.partial(load_services, services), found, problems)
    _collect("taxonomy", functools.partial(load_taxonomy, taxonomy), found, problems)
    if problems:
        raise rejected(problems)
    return Policies(**found, policy_hash=_hash(**found))


def _structured(name: str, cls: type, changes: Document) -> Any:
    return structure(shipped(name).overlay(changes), cls, _converter())


def _collect(name: str, read: Callable[[], Any], found: dict[str, Any], problems: list[str]) -> None:
    try:
        found[name] = read()
    except ConfigError as error:
        problems.extend(error.details["problems"])


_converter = functools.cache(strict_converter)  # building its code takes longer than using it


def _hash(**tables: attrs.AttrsInstance) -> str:
    """First 12 hex digits of SHA-256 over the values as canonical JSON: sorted keys, no spaces, floats as floats."""
    data = {name: attrs.asdict(table) for name, table in tables.items()}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_CHARS]
