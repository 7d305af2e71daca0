"""The body of `GET /usage`: sums, latencies, why something else had to do, and what it cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from engine.domain.generation import EndReason
from engine.domain.usage import (
    LATENCY_EDGES_MS,
    NANO_PER_USD,
    By,
    PriceTable,
    UsageReport,
    UsageSums,
    avoided_nusd,
    percentile_edge,
)

Count = Annotated[int, msgspec.Meta(ge=0)]
Usd = Annotated[float, msgspec.Meta(ge=0, extra_json_schema={"x-unit": "USD"})]


class Sums(msgspec.Struct):
    """`requests` are answers of a model; a council counts for each of its models. `uncounted`: answers whose prompt
    nobody counted; `unpriced`: those whose cost is not known. With any of them the sums are lower bounds."""

    requests: Count
    tokens_in: Count
    tokens_out: Count
    local_tokens: Count
    remote_tokens: Count
    synthetic_tokens: Count
    cost_usd: Usd
    uncounted: Count
    unpriced: Count


class UsageRow(Sums, kw_only=True):
    """`key` is an agent, a model, or a day (UTC)."""

    key: str


class Latency(msgspec.Struct):
    """`counts` by the upper edges in `edges_ms`, one more at the end for what lies beyond. A percentile is the edge
    above it, null for none."""

    edges_ms: list[int]
    counts: list[int]
    p50: int | None
    p95: int | None
    p99: int | None


class Latencies(msgspec.Struct):
    """Time to first token, and whole answers, of all that is in the totals and was measured."""

    ttft_ms: Latency
    duration_ms: Latency


class FallbackRow(msgspec.Struct):
    """Something else than what was asked for first had to do: in a session, or as a decision of the router."""

    place: Literal["session", "route"]
    reason: str
    requests: Count


class Prices(msgspec.Struct):
    """Of what leaves this machine, as of a date. What is answered here costs nothing."""

    currency: Literal["USD"]
    as_of: str


class Avoided(msgspec.Struct):
    """An estimate of what local answers would have cost elsewhere, at prices of the user's own; null without those, and
    `reason` says so."""

    estimate_usd: Usd | None
    reason: str | None
    name: str | None
    as_of: str | None


class LedgerState(msgspec.Struct):
    """`persistent`: the figures outlive the engine. Since its start: answers and routes `written`, and `lost`: refused
    or never written. `problem` is that of the last write."""

    persistent: bool
    problem: str | None
    written: Count
    lost: Count


class Usage(msgspec.Struct):
    """`since` is the first day in it, null when nothing was asked yet."""

    by: By
    since: str | None
    totals: Sums
    rows: list[UsageRow]
    latency: Latencies
    ended: dict[EndReason, Count]
    fallbacks: list[FallbackRow]
    prices: Prices
    avoided: Avoided
    ledger: LedgerState


def usage_body(report: UsageReport, prices: PriceTable, ledger: LedgerState) -> Usage:
    return Usage(
        by=report.by,
        since=report.since,
        totals=Sums(**_sums(report.totals)),
        rows=[UsageRow(**_sums(group.sums), key=group.key) for group in report.groups],
        latency=Latencies(_latency(report.ttft_ms), _latency(report.duration_ms)),
        ended={EndReason(reason): count for reason, count in report.ended.items()},
        fallbacks=[FallbackRow(one.place, one.reason, one.requests) for one in report.fallbacks],
        prices=Prices("USD", prices.as_of),
        avoided=_avoided(report, prices),
        ledger=ledger,
    )


def _sums(sums: UsageSums) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "tokens_in": sums.tokens_in,
        "tokens_out": sums.tokens_out,
        "local_tokens": sums.local_tokens,
        "remote_tokens": sums.remote_tokens,
        "synthetic_tokens": sums.synthetic_tokens,
        "cost_usd": sums.cost_nusd / NANO_PER_USD,
        "uncounted": sums.uncounted,
        "unpriced": sums.unpriced,
    }


def _latency(counts: tuple[int, ...]) -> Latency:
    edges = [percentile_edge(counts, percent) for percent in (50, 95, 99)]
    return Latency(list(LATENCY_EDGES_MS), list(counts), *edges)


def _avoided(report: UsageReport, prices: PriceTable) -> Avoided:
    own, saved_nusd = prices.instead_of, avoided_nusd(report, prices)
    if own is None or saved_nusd is None:
        return Avoided(None, "no prices of your own: see policies.prices.instead_of", None, None)
    return Avoided(saved_nusd / NANO_PER_USD, None, own.name, own.as_of)
