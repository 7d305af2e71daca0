"""The table of local services as policies/services.yaml gives it, with the user's own, and which model answers for one.

A service is a name, a port and a model; everything else about it is told to whoever asks. Pure decisions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from engine.domain.errors import ConfigError
from engine.domain.models import is_model_name
from policies.schema import Misfit, quoted, rejected, row, strict_converter, structure
from policies.source import Document, dotted, printable, shipped

SERVICES_MAX: Final = 16
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
TAKEN_NAMES: Final = frozenset({"http", "ws", "registry", "router"})  # by listeners of the engine itself
NAME_WORDS: Final = "a service's name (small letters, digits and _, at most 40)"
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_LABEL_WORDS: Final = "a name (letters, digits, . _ -)"
_TITLE: Final = r"[^\x00-\x1f\x7f]{1,80}"
_NO_CHANGES: Final = Document("no changes")
_LAST_RESORT: Final = {"embedded": 1, "synthetic": 2}  # they help nobody, so anything else comes first


def _model_name(_instance: object, field: attrs.Attribute[Any], name: str | None) -> None:
    if name is not None and not is_model_name(name):
        raise Misfit("a model's name", quoted(name), (field.name,))


def _model_names(_instance: object, field: attrs.Attribute[Any], names: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        if not is_model_name(name):
            raise Misfit("a model's name", quoted(name), (field.name, index))


def _some(_instance: object, field: attrs.Attribute[Any], items: tuple[str, ...]) -> None:
    if not items:
        raise Misfit("a list of at least one", "none", (field.name,))


@attrs.frozen
class ServiceEntry:
    """One service. Exactly one of `model` and `same_model_as` is given."""

    port: int = row(doc="where it listens; 0 takes any free one", minimum=0, maximum=65535)
    title: str = row(doc="what it is called", pattern=_TITLE, expectation="one line of text")
    capabilities: tuple[str, ...] = row(
        doc="what it is good for", pattern=_LABEL, expectation=_LABEL_WORDS, validator=_some
    )
    model: str | None = row(None, doc="the model that answers", validator=_model_name)
    same_model_as: str | None = row(
        None, doc="the service whose model answers", pattern=NAME.pattern, expectation=NAME_WORDS
    )
    fallbacks: tuple[str, ...] = row((), doc="models to try when that one is not here", validator=_model_names)
    kind: Literal["completion", "classifier"] = row("completion", doc="completion, or classifier (more calls)")
    enabled: bool = row(True, doc="offer it with the others")
    aliases: tuple[str, ...] = row(
        (), doc="what callers may write in `model` too", pattern=_LABEL, expectation=_LABEL_WORDS
    )
    health_name: str | None = row(None, doc="what /health calls it", pattern=_LABEL, expectation=_LABEL_WORDS)
    agent_id: str | None = row(
        None, doc="its id in an agent registry; null is its name", pattern=_LABEL, expectation=_LABEL_WORDS
    )
    agent_name: str | None = row(
        None, doc="its name in an agent registry; null is its title", pattern=_TITLE, expectation="one line of text"
    )
    tier: int = row(2, doc="its tier in an agent registry", minimum=0, maximum=100)
    role: str = row("execution", doc="its role in an agent registry", pattern=_LABEL, expectation=_LABEL_WORDS)
    specialized_for: str | None = row(
        None, doc="what it is specialised in", pattern=_TITLE, expectation="one line of text"
    )

    def __attrs_post_init__(self) -> None:
        if (self.model is None) == (self.same_model_as is None):
            raise Misfit("given, or else same_model_as, and the other one null", None, ("model",))


@attrs.frozen
class ServiceTable:
    """The services that are switched on, by name, in the order of the files."""

    entries: Mapping[str, ServiceEntry]

    def models_for(self, name: str) -> tuple[str, ...]:
        """The model that is to answer for the service, then those to try instead. Raises KeyError."""
        entry = self.entries[name]
        entry = entry if entry.same_model_as is None else self.entries[entry.same_model_as]
        assert entry.model is not None  # load_services has seen to it
        return (entry.model, *entry.fallbacks)


def load_services(changes: Document = _NO_CHANGES) -> ServiceTable:
    """The shipped table with the user's changes over it, key by key; `changes` is a mapping of names to entries.

    Raises ConfigError with one line per misfit, each named by the place it came from. Reads a package file.
    """
    merged = shipped("services").at("services").overlay(changes)
    problems, entries = list[str](), dict[str, ServiceEntry]()
    if len(merged.data) > SERVICES_MAX:
        raise rejected([f"{merged.name}: {len(merged.data)} services, at most {SERVICES_MAX}"])
    for name, data in merged.data.items():
        path = dotted((*merged.root, name))
        if NAME.fullmatch(name) is None:
            problems.append(f"{merged.place((name,))}: {path} must be {NAME_WORDS}, not '{printable(name)}'")
        elif name in TAKEN_NAMES:
            problems.append(f"{merged.place((name,))}: {path} must be another name: the engine has one of its own")
        elif not isinstance(data, dict):
            problems.append(f"{merged.place((name,))}: {path} must be a mapping, not {quoted(data)}")
        else:
            try:
                entries[name] = structure(merged.at(name), ServiceEntry, _converter())
            except ConfigError as error:
                problems.extend(error.details["problems"])
    problems = problems or _contradictions(entries, merged)
    if problems:
        raise rejected(problems)
    return ServiceTable({name: entry for name, entry in entries.items() if entry.enabled})


def _contradictions(entries: Mapping[str, ServiceEntry], merged: Document) -> list[str]:
    """What no single entry can be blamed for."""
    problems = []
    taken: dict[int, str] = {}
    on = {name: entry for name, entry in entries.items() if entry.enabled}
    for name, entry in on.items():
        if entry.port and (other := taken.setdefault(entry.port, name)) != name:
            place, path = merged.place((name, "port")), dotted((*merged.root, name, "port"))
            problems.append(f"{place}: {path} is {entry.port}, which {other} has already")
        if (like := entry.same_model_as) is not None and (like not in on or on[like].model is None):
            place, path = merged.place((name, "same_model_as")), dotted((*merged.root, name, "same_model_as"))
            problems.append(f"{place}: {path} must be a service that is switched on and has a model, not '{like}'")
    return problems


_converter = functools.cache(strict_converter)


@attrs.frozen
class Offer:
    """A model that is here: its public name, the kind of its runtime, whether that is on this machine, and whether the
    model answers in words."""

    name: str
    kind: str
    local: bool
    answers: bool


def stand_in(offers: Sequence[Offer]) -> str | None:
    """The model to answer where none that was named is here: the first on this machine that answers in words, the
    built-in and the synthetic ones last. None: there is none. Never one on another machine: nobody asked for that."""
    found = [offer for offer in offers if offer.local and offer.answers]
    best = min(found, key=lambda offer: _LAST_RESORT.get(offer.kind, 0), default=None)
    return None if best is None else best.name
