"""What answers cost: who asked which model, how many tokens went in and out, and at what price.

Money is counted in whole nano-dollars (1e-9 USD), so sums are exact in any order. A price in USD per million tokens
with at most three decimals is a whole number of nano-dollars per token.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Final, Literal

import attrs

NANO_PER_USD: Final = 1_000_000_000
NANO_PER_TOKEN: Final = 1_000  # of one USD per million tokens
OTHER: Final = "other"  # stands for the names beyond the limits of the ledger
BROWSER: Final = "browser"
LATENCY_EDGES_MS: Final = (
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 60_000, 120_000, 300_000, 600_000,
)  # fmt: skip
BEYOND: Final = "more"  # the bucket above the last edge

By = Literal["agent", "model", "day"]
_NAMED: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PRODUCT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(?=[/\s(;]|$)")

# The agent on whose behalf the request at hand is made; the tasks it starts inherit it.
AGENT: Final[ContextVar[str | None]] = ContextVar("wf_agent", default=None)
# Why another model answers it than the one that was asked for first, where somebody chose so before the session.
FALLBACK: Final[ContextVar[str | None]] = ContextVar("wf_fallback", default=None)


def agent_of(named: str, user_agent: str) -> str | None:
    """Who calls: the name given in `x-wf-agent`, else the product in front of User-Agent without its version. Browsers
    all call themselves Mozilla, and are `browser`. None where neither says anything usable."""
    if _NAMED.fullmatch(named):
        return named
    found = _PRODUCT.match(user_agent)
    if found is None:
        return None
    return BROWSER if found[0] == "Mozilla" else found[0]


@attrs.frozen
class UsageRecord:
    """One answer of one model. A session has one record, a council one for each of its models. `day` is the UTC date of
    its end; `tokens_in` is null where the runtime did not say, times where they were not measured for this model."""

    day: str
    agent: str
    model: str
    runtime: str
    local: bool
    synthetic: bool
    tokens_in: int | None
    tokens_out: int
    ttft_ms: float | None
    duration_ms: float | None
    reason: str
    fallback: str | None = None


@attrs.frozen
class Price:
    """Nano-dollars for one token."""

    input_nusd: int
    output_nusd: int

    def of(self, tokens_in: int, tokens_out: int) -> int:
        """Nano-dollars."""
        return tokens_in * self.input_nusd + tokens_out * self.output_nusd


@attrs.frozen
class UserPrice:
    """What the user says he would pay elsewhere; `as_of` is the date of it."""

    name: str
    as_of: str
    price: Price


@attrs.frozen
class PriceTable:
    """Prices of models that run elsewhere, as of a date. `instead_of` is the user's own, for the estimate."""

    as_of: str
    models: Mapping[str, Price]
    instead_of: UserPrice | None = None

    def cost_nusd(self, record: UsageRecord) -> int | None:
        """Zero on this machine. None: it ran elsewhere and its price, or its count of tokens, is not known."""
        if record.local or record.synthetic:
            return 0
        price = self.models.get(record.model) or self.models.get(record.model.rpartition("/")[2])
        if price is None or record.tokens_in is None:
            return None
        return price.of(record.tokens_in, record.tokens_out)


@attrs.frozen
class UsageSums:
    """Sums over some records. `requests` counts answers of a model; `uncounted` those whose prompt nobody counted,
    `unpriced` those whose cost is not known: with any of them the sums are lower bounds."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    local_tokens: int = 0
    remote_tokens: int = 0
    synthetic_tokens: int = 0
    cost_nusd: int = 0
    uncounted: int = 0
    unpriced: int = 0


@attrs.frozen
class UsageGroup:
    key: str
    sums: UsageSums


@attrs.frozen
class Fallback:
    """How often something else than what was asked for first had to do, and why. `place`: a session, or a route."""

    place: Literal["session", "route"]
    reason: str
    requests: int


@attrs.frozen
class UsageReport:
    """`since` is the first day in it, null when there is none. Histograms are by LATENCY_EDGES_MS, one more at the end
    for what lies beyond."""

    by: By
    since: str | None
    totals: UsageSums
    groups: tuple[UsageGroup, ...]
    ttft_ms: tuple[int, ...]
    duration_ms: tuple[int, ...]
    ended: Mapping[str, int]
    fallbacks: tuple[Fallback, ...]
    local_in: int  # tokens of answers made on this machine, for the estimate
    local_out: int


def bucket_of(value_ms: float) -> str:
    """The bucket of a latency: its upper edge in ms, or BEYOND."""
    index = bisect.bisect_left(LATENCY_EDGES_MS, value_ms)
    return str(LATENCY_EDGES_MS[index]) if index < len(LATENCY_EDGES_MS) else BEYOND


def histogram(counts: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(counts.get(key, 0) for key in (*map(str, LATENCY_EDGES_MS), BEYOND))


def percentile_edge(counts: Sequence[int], percent: float) -> int | None:
    """The upper edge, in ms, of the bucket that holds the nearest-rank percentile. None for no values, and for one that
    lies beyond the last edge."""
    total, seen = sum(counts), 0
    rank = max(1, -(-total * percent // 100))
    for count, edge in zip(counts, LATENCY_EDGES_MS, strict=False):
        seen += count
        if seen >= rank and total:
            return edge
    return None


def avoided_nusd(report: UsageReport, prices: PriceTable) -> int | None:
    """An estimate of what the answers made here would have cost at the user's own prices; None without those. Made-up
    answers do not count; prompts that nobody counted are missing from it."""
    if prices.instead_of is None:
        return None
    return prices.instead_of.price.of(report.local_in, report.local_out)
