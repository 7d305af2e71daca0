"""Names of agents, money in whole nano-dollars, and latencies in buckets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.telemetry import percentile
from engine.domain.usage import (
    LATENCY_EDGES_MS,
    Price,
    PriceTable,
    UsageRecord,
    agent_of,
    bucket_of,
    histogram,
    percentile_edge,
)

TABLE = PriceTable("2026-11-01", {"far": Price(3_000, 15_000)})


def record(**more) -> UsageRecord:
    values = {
        "day": "2026-11-20", "agent": "x", "model": "far", "runtime": "openai", "local": False, "synthetic": False,
        "tokens_in": 10, "tokens_out": 4, "ttft_ms": 120.0, "duration_ms": 900.0, "reason": "finished",
    }  # fmt: skip
    return UsageRecord(**values | more)


@pytest.mark.parametrize(
    ("named", "user_agent", "agent"),
    [
        ("my-agent.v2", "curl/8.9", "my-agent.v2"),
        ("", "curl/8.9", "curl"),
        ("", "ollama-python/0.6.3 (x86_64 linux) Python/3.11", "ollama-python"),
        ("", "OpenAI/Python 3.54.0", "OpenAI"),
        ("", "Mozilla/5.0 (X11; Linux x86_64)", "browser"),
        ("two words", "curl/8.9", "curl"),
        ("a" * 65, "", None),
        ("", "", None),
        ("\x1b[31m", "<script>", None),
        ("../etc", "(comment)", None),
        ("", "a" * 65 + "/1", None),
    ],
)
def test_who_calls(named, user_agent, agent):
    assert agent_of(named, user_agent) == agent


@given(st.text(max_size=200), st.text(max_size=200))
def test_an_agent_is_a_short_plain_word(named, user_agent):
    agent = agent_of(named, user_agent)
    assert agent is None or (len(agent) <= 64 and agent.isascii() and agent.isprintable() and " " not in agent)


def test_what_stays_here_costs_nothing_and_what_leaves_costs_its_price():
    assert TABLE.cost_nusd(record()) == 10 * 3_000 + 4 * 15_000
    assert TABLE.cost_nusd(record(model="openrouter/far")) == 90_000
    assert TABLE.cost_nusd(record(local=True)) == 0
    assert TABLE.cost_nusd(record(synthetic=True)) == 0


def test_a_cost_that_is_not_known_is_not_zero():
    assert TABLE.cost_nusd(record(model="new")) is None
    assert TABLE.cost_nusd(record(tokens_in=None)) is None


VALUES = st.floats(min_value=0, max_value=1e9) | st.sampled_from(LATENCY_EDGES_MS)


@given(st.lists(VALUES, max_size=60), st.sampled_from([50, 95, 99]))
def test_the_percentile_of_a_histogram_is_the_edge_above_the_percentile(values, percent):
    counts: dict[str, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    assert sum(histogram(counts)) == len(values)
    edge, exact = percentile_edge(histogram(counts), percent), percentile(values, percent)
    if exact is None or exact > LATENCY_EDGES_MS[-1]:
        assert edge is None
    else:
        assert edge == min(e for e in LATENCY_EDGES_MS if e >= exact)
    assert math.isfinite(edge or 0)
