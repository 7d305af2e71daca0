"""Which model serves a capability: the map as policies/routes.yaml gives it, and the choice with every reason.

The choice is a pure function of the map, the request and what is known at that moment, so that a logged request can be
played again against another map. Nothing outside this machine is ever named while the broker is off.
"""

# ruff: noqa: RUF009  # row() makes attrs fields

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from engine.domain.agents import ENDPOINT_WORDS, AgentEntry, AgentStatus, loopback_port
from engine.domain.models import is_model_name
from policies.schema import Misfit, quoted, row

LOCAL: Final = "local"
CAPABILITIES_MAX: Final = 256
CANDIDATES_MAX: Final = 16  # of one capability, in the map
REPLAY_SHOWN_MAX: Final = 100  # changed decisions that a replay lists singly
CAPABILITY: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
_PROVIDER: Final = r"[a-z][a-z0-9_-]{0,39}"
_HASH_CHARS: Final = 12


@attrs.frozen
class Candidate:
    """One entry of the map. A `local` one has the endpoint of a service of this machine, any other one has none."""

    provider: str
    model: str
    endpoint: str | None = None

    @property
    def local(self) -> bool:
        return self.provider == LOCAL


CapabilityMap = Mapping[str, tuple[Candidate, ...]]


def capability_map(data: Mapping[str, Any]) -> dict[str, tuple[Candidate, ...]]:
    """Plain values (capability to a list of candidates) as a map. Raises Misfit with the path to the fault."""
    if len(data) > CAPABILITIES_MAX:
        raise Misfit(f"at most {CAPABILITIES_MAX} capabilities", str(len(data)))
    found = {}
    for name, entries in data.items():
        if not isinstance(name, str) or re.fullmatch(CAPABILITY, name) is None:
            raise Misfit("lists under names of capabilities, such as code_review", quoted(name), (str(name)[:64],))
        if not isinstance(entries, list) or len(entries) > CANDIDATES_MAX:
            raise Misfit(f"a list of at most {CANDIDATES_MAX} candidates", quoted(entries), (name,))
        found[name] = tuple(_candidate(entry, (name, index)) for index, entry in enumerate(entries))
    return found


def _candidate(entry: Any, within: tuple[str | int, ...]) -> Candidate:
    if not isinstance(entry, dict) or not {"provider", "model"} <= set(entry) <= {"provider", "model", "endpoint"}:
        raise Misfit("a mapping with provider, model and, for a local one, endpoint", None, within)
    provider, model, endpoint = entry["provider"], entry["model"], entry.get("endpoint")
    if not isinstance(provider, str) or re.fullmatch(_PROVIDER, provider) is None:
        raise Misfit("`local` or the name of a provider", quoted(provider), (*within, "provider"))
    if not isinstance(model, str) or not is_model_name(model):
        raise Misfit("a model's name", quoted(model), (*within, "model"))
    if provider == LOCAL and (not isinstance(endpoint, str) or loopback_port(endpoint) is None):
        raise Misfit(ENDPOINT_WORDS, quoted(endpoint), (*within, "endpoint"))
    if provider != LOCAL and endpoint is not None:
        raise Misfit("left out: where a provider is, the broker knows", quoted(endpoint), (*within, "endpoint"))
    return Candidate(provider, model, endpoint)


def _checked_map(_instance: object, field: attrs.Attribute[Any], data: Mapping[str, Any]) -> None:
    try:
        capability_map(data)
    except Misfit as misfit:
        raise Misfit(misfit.expectation, misfit.shown, (field.name, *misfit.within)) from None


@attrs.frozen
class RoutePolicy:
    """policies/routes.yaml with the user's changes."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    capabilities: dict[str, Any] = row(doc="candidates of each capability, best first", validator=_checked_map)

    def table(self) -> dict[str, tuple[Candidate, ...]]:
        return capability_map(self.capabilities)


def map_hash(table: CapabilityMap) -> str:
    """First 12 hex digits of SHA-256 over the map as canonical JSON."""
    data = {name: [attrs.astuple(candidate) for candidate in entries] for name, entries in table.items()}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]


# ── what is known, and the choice ───────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class LiveAgent:
    """A registered agent as far as routing looks at it."""

    agent_id: str
    endpoint: str
    capabilities: tuple[str, ...]
    model: str | None
    status: AgentStatus

    @classmethod
    def of(cls, entry: AgentEntry) -> LiveAgent:
        card = entry.card
        return cls(card.agent_id, card.endpoint, card.capabilities, card.model, entry.status)


_RANKS: Final[Mapping[AgentStatus, int]] = {"healthy": 0, "degraded": 1, "unhealthy": 2}


@attrs.frozen
class RouteFacts:
    """What was known when somebody asked. `agents` null: there is no registry here, nobody knows who is alive."""

    agents: tuple[LiveAgent, ...] | None
    broker_on: bool = False

    def by_port(self) -> dict[int | None, LiveAgent]:
        """Who is at each port; of several that say so, the first of those that are best."""
        found: dict[int | None, LiveAgent] = {}
        for agent in sorted(self.agents or (), key=lambda agent: _RANKS[agent.status]):
            found.setdefault(loopback_port(agent.endpoint), agent)
        return found


@attrs.frozen
class RouteRequest:
    capability: str
    prefer_local: bool = True


class Why(enum.StrEnum):
    """What became of a candidate, and why."""

    CHOSEN = "chosen"
    NOT_NEEDED = "not_needed"
    NOT_REGISTERED = "not_registered"
    UNHEALTHY = "unhealthy"
    BROKER_OFF = "broker_off"


_WORDS: Final[Mapping[Why, str]] = {
    Why.NOT_NEEDED: "an earlier candidate can serve it",
    Why.NOT_REGISTERED: "no living agent is registered at its endpoint",
    Why.UNHEALTHY: "the agent there says that it is unhealthy",
    Why.BROKER_OFF: "it is outside this machine, and the broker is off, or does not allow it for this request",
}


@attrs.frozen
class Judged:
    """A candidate, where it comes from, and what became of it; `reason` says it for people. `agent_model` is what the
    agent there says that it serves: a stand-in, where the candidate's own model is not here."""

    candidate: Candidate
    source: Literal["map", "registry"]
    why: Why
    reason: str
    agent_id: str | None = None
    agent_model: str | None = None


@attrs.frozen
class Decision:
    """`chosen` is null when every candidate was passed over. `fallback` is why the first choice was passed over, null
    when it was taken."""

    request: RouteRequest
    judged: tuple[Judged, ...]

    @property
    def chosen(self) -> Judged | None:
        return next((one for one in self.judged if one.why is Why.CHOSEN), None)

    @property
    def fallback(self) -> Why | None:
        first = self.judged[0].why if self.judged else None
        return None if first is Why.CHOSEN else first


def decide(table: CapabilityMap, request: RouteRequest, facts: RouteFacts) -> Decision:
    """The first candidate that can serve the capability. With `prefer_local` those of this machine come first, else the
    order is the map's; agents that registered the capability and are not in the map come last of the local ones."""
    judged: list[Judged] = []
    found = False
    there = facts.by_port()
    for candidate, source in _in_order(table, request, facts):
        agent = there.get(loopback_port(candidate.endpoint)) if candidate.endpoint is not None else None
        why = _fault(candidate, agent, facts)
        if why is None:
            why, reason = (Why.NOT_NEEDED, _WORDS[Why.NOT_NEEDED]) if found else (Why.CHOSEN, _chosen(agent, candidate))
            found = True
        else:
            reason = _WORDS[why]
        told = (None, None) if agent is None else (agent.agent_id, agent.model)
        judged.append(Judged(candidate, source, why, reason, *told))
    return Decision(request, tuple(judged))


def _in_order(
    table: CapabilityMap, request: RouteRequest, facts: RouteFacts
) -> Iterator[tuple[Candidate, Literal["map", "registry"]]]:
    mapped = table.get(request.capability, ())
    ports = {loopback_port(candidate.endpoint) for candidate in mapped if candidate.endpoint is not None}
    more = [
        Candidate(LOCAL, agent.model or agent.agent_id, agent.endpoint)
        for agent in facts.agents or ()
        if request.capability in agent.capabilities and loopback_port(agent.endpoint) not in ports
    ]
    if request.prefer_local:
        yield from ((candidate, "map") for candidate in mapped if candidate.local)
        yield from ((candidate, "registry") for candidate in more)
        yield from ((candidate, "map") for candidate in mapped if not candidate.local)
    else:
        yield from ((candidate, "map") for candidate in mapped)
        yield from ((candidate, "registry") for candidate in more)


def _fault(candidate: Candidate, agent: LiveAgent | None, facts: RouteFacts) -> Why | None:
    """Why it cannot serve now. None: it can, or nobody knows better."""
    if not candidate.local:
        return None if facts.broker_on else Why.BROKER_OFF
    if facts.agents is None:
        return None
    if agent is None:
        return Why.NOT_REGISTERED
    return Why.UNHEALTHY if agent.status == "unhealthy" else None


def _chosen(agent: LiveAgent | None, candidate: Candidate) -> str:
    if not candidate.local:
        return "the first candidate that can serve it; the broker is on"
    if agent is None:
        return "the first local candidate; there is no registry here, so nobody asked whether it is alive"
    return f"the first candidate that can serve it; {agent.agent_id} is registered there and {agent.status}"


# ── what if the map were another one ────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class LoggedRoute:
    """A request as it was answered. Wall clock, whole seconds since 1970 UTC."""

    at_s: int
    request: RouteRequest
    facts: RouteFacts
    chosen: Candidate | None
    fallback: str | None


@attrs.frozen
class Changed:
    at_s: int
    request: RouteRequest
    before: Candidate | None
    after: Candidate | None
    why: tuple[Judged, ...]


@attrs.frozen
class WhatIf:
    """`lost`: answered then, and with the new map not; `gained` the other way round; both are part of `changed`."""

    replayed: int
    unchanged: int
    changed: int
    lost: int
    gained: int
    by_capability: Mapping[str, tuple[int, int]]  # capability to (replayed, changed)
    shown: tuple[Changed, ...]


def replay(log: Iterable[LoggedRoute], table: CapabilityMap) -> WhatIf:
    """Every logged request decided anew with `table`, on what was known then. Nothing is called and nothing is kept."""
    counts: dict[str, tuple[int, int]] = {}
    shown: list[Changed] = []
    lost = gained = 0
    for entry in log:
        decision = decide(table, entry.request, entry.facts)
        after = None if decision.chosen is None else decision.chosen.candidate
        changed = after != entry.chosen
        seen, moved = counts.get(entry.request.capability, (0, 0))
        counts[entry.request.capability] = (seen + 1, moved + changed)
        if not changed:
            continue
        lost += after is None
        gained += entry.chosen is None
        if len(shown) < REPLAY_SHOWN_MAX:
            shown.append(Changed(entry.at_s, entry.request, entry.chosen, after, decision.judged))
    replayed, moved = _sums(list(counts.values()))
    return WhatIf(replayed, replayed - moved, moved, lost, gained, counts, tuple(shown))


def _sums(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)
