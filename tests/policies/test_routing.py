"""Which model serves a capability, why, and what would have been with another map."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError
from policies.load import shipped
from policies.routing import (
    REPLAY_SHOWN_MAX,
    Candidate,
    LiveAgent,
    LoggedRoute,
    RouteFacts,
    RoutePolicy,
    RouteRequest,
    Why,
    capability_map,
    decide,
    map_hash,
    replay,
)
from policies.schema import strict_converter, structure
from policies.source import parse

BIG = Candidate("local", "llama3.1:8b", "http://localhost:8050")
SMALL = Candidate("local", "tinyllama:1.1b", "http://localhost:8051")
CLOUD = Candidate("anthropic", "claude-sonnet-4-5")
MAP = {"reasoning": (CLOUD, BIG, SMALL), "classification": (SMALL, BIG), "far": (CLOUD,)}


def agent(port: int, status: Any = "healthy", *capabilities: str) -> LiveAgent:
    return LiveAgent(f"agent-{port}", f"http://127.0.0.1:{port}", capabilities, None, status)


def routed(text: str) -> RoutePolicy:
    changes = attrs.evolve(parse(text, "wf.yaml"), root=("policies", "routes"))
    return structure(shipped("routes").overlay(changes), RoutePolicy, strict_converter())


BOTH = (agent(8050), agent(8051))
ROWS = [  # capability, prefer_local, agents, broker, chosen, what became of each candidate in order
    ("reasoning", True, BOTH, False, BIG, ["chosen", "not_needed", "broker_off"]),
    ("reasoning", True, BOTH, True, BIG, ["chosen", "not_needed", "not_needed"]),
    ("reasoning", False, BOTH, True, CLOUD, ["chosen", "not_needed", "not_needed"]),
    ("reasoning", False, BOTH, False, BIG, ["broker_off", "chosen", "not_needed"]),
    ("reasoning", True, (agent(8051),), False, SMALL, ["not_registered", "chosen", "broker_off"]),
    ("reasoning", True, (agent(8050, "unhealthy"), agent(8051)), False, SMALL, ["unhealthy", "chosen", "broker_off"]),
    ("reasoning", True, (agent(8050, "degraded"),), False, BIG, ["chosen", "not_registered", "broker_off"]),
    ("reasoning", True, (), True, CLOUD, ["not_registered", "not_registered", "chosen"]),
    ("reasoning", True, (), False, None, ["not_registered", "not_registered", "broker_off"]),
    ("reasoning", True, None, False, BIG, ["chosen", "not_needed", "broker_off"]),
    ("far", True, BOTH, False, None, ["broker_off"]),
    ("nobody", True, BOTH, True, None, []),
]


@pytest.mark.parametrize(("capability", "prefer_local", "agents", "broker_on", "chosen", "became"), ROWS)
def test_the_choice(capability, prefer_local, agents, broker_on, chosen, became):
    decision = decide(MAP, RouteRequest(capability, prefer_local), RouteFacts(agents, broker_on))
    assert (decision.chosen and decision.chosen.candidate) == chosen
    assert [one.why.value for one in decision.judged] == became
    assert decision.fallback == (None if not became or became[0] == "chosen" else Why(became[0]))
    assert all(one.reason for one in decision.judged)


def test_agents_that_registered_a_capability_are_candidates_too():
    facts = RouteFacts((*BOTH, agent(9000, "healthy", "reasoning", "singing")))
    decision = decide(MAP, RouteRequest("singing"), facts)
    assert decision.chosen is not None
    assert (decision.chosen.candidate.endpoint, decision.chosen.source) == ("http://127.0.0.1:9000", "registry")
    sources = [(one.source, one.candidate.provider) for one in decide(MAP, RouteRequest("reasoning"), facts).judged]
    assert sources == [("map", "local"), ("map", "local"), ("registry", "local"), ("map", "anthropic")]


def test_an_unhealthy_stranger_at_its_port_hides_no_service():
    stranger = LiveAgent("stranger", "http://127.0.0.1:8050", ("noise",), "m", "unhealthy")
    decision = decide(MAP, RouteRequest("reasoning"), RouteFacts((stranger, agent(8050, "healthy", "reasoning"))))
    assert decision.chosen is not None
    assert (decision.chosen.candidate, decision.chosen.agent_id) == (BIG, "agent-8050")


def test_an_agent_that_is_in_the_map_is_judged_once():
    facts = RouteFacts((agent(8050, "healthy", "reasoning"),))
    assert len(decide(MAP, RouteRequest("reasoning"), facts).judged) == 3


CANDIDATES = st.sampled_from([BIG, SMALL, CLOUD, Candidate("openai", "gpt-4")])
MAPS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(CANDIDATES, max_size=4, unique=True).map(tuple))
AGENTS = st.lists(
    st.builds(
        agent, st.sampled_from([8050, 8051, 9000]), st.sampled_from(["healthy", "degraded", "unhealthy"]),
        st.sampled_from(["a", "b"]),
    ),
    unique_by=lambda one: one.agent_id,
).map(tuple)  # fmt: skip
FACTS = st.builds(RouteFacts, st.none() | AGENTS, st.booleans())
REQUESTS = st.builds(RouteRequest, st.sampled_from(["a", "b", "c"]), st.booleans())


@given(MAPS, REQUESTS, FACTS)
def test_what_every_choice_keeps_to(table, request, facts):
    decision = decide(table, request, facts)
    chosen = [one for one in decision.judged if one.why is Why.CHOSEN]
    assert len(chosen) <= 1
    if not facts.broker_on:
        assert all(one.candidate.local for one in chosen)
        assert all(one.why is Why.BROKER_OFF for one in decision.judged if not one.candidate.local)
    if chosen:
        before = decision.judged[: decision.judged.index(chosen[0])]
        assert {one.why for one in before} <= {Why.NOT_REGISTERED, Why.UNHEALTHY, Why.BROKER_OFF}
    else:
        assert Why.NOT_NEEDED not in {one.why for one in decision.judged}
    assert {one.candidate for one in decision.judged} >= set(table.get(request.capability, ()))
    if request.prefer_local and any(one.candidate.local for one in chosen):
        assert all(one.candidate.local for one in decision.judged[: decision.judged.index(chosen[0])])


def logged(table, request, facts, at_s=0) -> LoggedRoute:
    decision = decide(table, request, facts)
    chosen = None if decision.chosen is None else decision.chosen.candidate
    return LoggedRoute(at_s, request, facts, chosen, decision.fallback)


@given(MAPS, st.lists(st.tuples(REQUESTS, FACTS), max_size=30))
def test_nothing_changes_with_the_same_map(table, asked):
    what_if = replay([logged(table, request, facts) for request, facts in asked], table)
    assert (what_if.replayed, what_if.unchanged, what_if.changed) == (len(asked), len(asked), 0)
    assert what_if.shown == ()


@given(MAPS, MAPS, st.lists(st.tuples(REQUESTS, FACTS), max_size=30))
def test_a_replay_counts_every_request_once(old, new, asked):
    log = [logged(old, request, facts) for request, facts in asked]
    what_if = replay(log, new)
    assert what_if.replayed == what_if.unchanged + what_if.changed == len(log)
    assert sum(moved for _, moved in what_if.by_capability.values()) == what_if.changed
    assert what_if.lost + what_if.gained <= what_if.changed
    afters = [decide(new, entry.request, entry.facts).chosen for entry in log]
    differ = [e for e, after in zip(log, afters, strict=True) if (after and after.candidate) != e.chosen]
    assert what_if.changed == len(differ)


def test_a_replay_tells_what_would_have_been():
    facts = RouteFacts(BOTH)
    log = [logged(MAP, RouteRequest("classification"), facts, at_s=n) for n in range(REPLAY_SHOWN_MAX + 1)]
    log.append(logged(MAP, RouteRequest("far"), facts))
    what_if = replay(log, {"classification": (BIG,), "far": (SMALL,)})
    assert (what_if.changed, what_if.lost, what_if.gained) == (102, 0, 1)
    assert what_if.by_capability == {"classification": (101, 101), "far": (1, 1)}
    assert len(what_if.shown) == REPLAY_SHOWN_MAX
    assert (what_if.shown[0].before, what_if.shown[0].after) == (SMALL, BIG)
    assert replay(log, {}).lost == 101


def test_the_shipped_map_is_that_of_the_services():
    table = routed("").table()
    assert table["reasoning"][0] == BIG
    assert table["classification"] == (SMALL, BIG)
    assert table["domain_classification"][0].endpoint == "http://localhost:8052"
    assert map_hash(table) == map_hash(dict(reversed(table.items()))) != map_hash(MAP)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("capabilities: {x: 1}", "routes.capabilities.x must be a list"),
        ("capabilities: {x: [{provider: local}]}", r"capabilities.x\[0\] must be a mapping"),
        ("capabilities: {x: [{provider: local, model: a}]}", r"x\[0\].endpoint must be http://127.0.0.1"),
        ("capabilities: {x: [{provider: local, model: a, endpoint: 'http://10.0.0.1:80'}]}", "endpoint must be http"),
        ("capabilities: {x: [{provider: openai, model: a, endpoint: 'http://localhost:1'}]}", "must be left out"),
        ("capabilities: {x: [{provider: Local, model: a}]}", "provider must be `local`"),
        ("capabilities: {x: [{provider: openai, model: '../x'}]}", "model must be a model's name"),
        ("capabilities: {'a b': []}", "must be lists under names"),
        ("capabilites: {}", "did you mean policies.routes.capabilities"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused_with_its_place(text, said):
    with pytest.raises(ConfigError, match=said):
        routed(text)


def test_a_capability_of_ones_own_replaces_the_shipped_one():
    table = routed("capabilities: {reasoning: [{provider: openai, model: gpt-4}], mine: []}").table()
    assert table["reasoning"] == (Candidate("openai", "gpt-4"),)
    assert table["mine"] == ()
    assert capability_map({}) == {}
