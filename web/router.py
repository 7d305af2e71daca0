"""The provider router as a service of its own: `/route` says which model serves a capability, and why that one.

It chooses and never calls. `/what-if` decides the logged requests again with another map, on what was known then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import attrs
import msgspec
import trio
from quart import Blueprint, Response, g, request

from actors.ledger import LedgerHandle
from actors.registry import RegistryHandle
from engine.domain.errors import FallbackFailed, InvalidRequest, NotFound
from policies.routing import (
    Candidate,
    CapabilityMap,
    Decision,
    Judged,
    LiveAgent,
    LoggedRoute,
    RouteFacts,
    RouteRequest,
    WhatIf,
    capability_map,
    decide,
    map_hash,
    replay,
)
from policies.schema import Misfit
from policies.source import dotted
from web.schemas import decode
from web.service_bodies import (
    CandidateSaid,
    ChangedBody,
    Decisions,
    JudgedBody,
    LoggedBody,
    MapBody,
    Route,
    RouteAsked,
    RouterHealth,
    WhatIfAnswer,
    told,
)

NAME: Final = "router"
REPLAYED_MAX: Final = 10_000
SHOWN_MAX: Final = 1000
SHOWN_DEFAULT: Final = 100
ROUTE_HEADER: Final = "x-wf-route"
NOTHING_HERE: Final = "there is nothing at this path; here are /route, /what-if, /decisions, /map and /health"

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$(?!\n)")]  # no line end either


class RouteBody(msgspec.Struct, forbid_unknown_fields=True):
    capability: Name
    prefer_local: bool = True


class CandidateBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    provider: Annotated[str, msgspec.Meta(max_length=40)]
    model: Annotated[str, msgspec.Meta(max_length=330)]
    endpoint: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class WhatIfBody(msgspec.Struct, forbid_unknown_fields=True):
    """`capabilities` is the new map, whole: what is not in it has no candidates but those that registered. `limit`: how
    many of the latest requests are decided again."""

    capabilities: dict[str, list[CandidateBody]]
    limit: Annotated[int, msgspec.Meta(ge=1, le=REPLAYED_MAX)] = 1000


@attrs.frozen
class Router:
    """`registry` is null where there is none of our own: then nobody knows who is alive. `broker_on`: may anything
    outside this machine be named?"""

    table: CapabilityMap
    registry: RegistryHandle | None
    ledger: LedgerHandle
    wall_s: Callable[[], float]
    broker_on: Callable[[], bool] = lambda: False

    async def route(self, asked: RouteRequest) -> Decision:
        """The decision, logged. Raises NotFound for a capability that nobody ever had, FallbackFailed when every
        candidate is passed over."""
        agents = None
        if self.registry is not None:
            agents = tuple(LiveAgent.of(entry) for entry in await self.registry.discover())
        facts = RouteFacts(agents, self.broker_on())
        decision = decide(self.table, asked, facts)
        if not decision.judged:
            known = sorted({*self.table, *(name for agent in agents or () for name in agent.capabilities)})
            raise NotFound(f"nobody has the capability {asked.capability}", available=known)
        chosen = decision.chosen
        fallback = None if decision.fallback is None else decision.fallback.value
        now_s = int(self.wall_s())
        self.ledger.log(LoggedRoute(now_s, asked, facts, None if chosen is None else chosen.candidate, fallback))
        if chosen is None:
            raise FallbackFailed(
                f"no candidate can serve {asked.capability} now",
                capability=asked.capability,
                candidates=[msgspec.to_builtins(judged_body(one)) for one in decision.judged],
            )
        return decision


def blueprint(router: Router, port: int, uptime_s: Callable[[], float]) -> Blueprint:
    routes = Blueprint("router", __name__)
    table_hash = map_hash(router.table)

    @routes.post("/route")
    async def route() -> Response:
        body = decode(await request.get_data(as_text=False), RouteBody)
        decision = await router.route(RouteRequest(body.capability, body.prefer_local))
        chosen = decision.chosen
        assert chosen is not None
        headers = {ROUTE_HEADER: f"{chosen.source}/{chosen.candidate.provider}"}
        return told(route_body(decision, chosen, table_hash), headers=headers)

    @routes.post("/what-if")
    async def what_if() -> Response:
        body = decode(await request.get_data(as_text=False), WhatIfBody)
        try:
            table = capability_map(msgspec.to_builtins(body.capabilities))
        except Misfit as misfit:
            path = dotted(("capabilities", *misfit.within))
            raise InvalidRequest(f"{path}: {misfit.expectation}", field=path) from None
        logged = await router.ledger.routes(body.limit)
        found = await trio.to_thread.run_sync(replay, logged, table)  # thousands of decisions take a while
        return told(what_if_body(found, map_hash(table), table_hash))

    @routes.get("/decisions")
    async def decisions() -> Response:
        logged = await router.ledger.routes(_limit())
        return told(Decisions([logged_body(one) for one in reversed(logged)]))

    @routes.get("/map")
    async def capabilities() -> Response:
        found = {name: [_candidate(one) for one in entries] for name, entries in router.table.items()}
        return told(MapBody(table_hash, found))

    @routes.get("/health")
    async def health() -> Response:
        return told(
            RouterHealth(
                status="healthy",
                service=NAME,
                port=port,
                map_hash=table_hash,
                capabilities=sorted(router.table),
                registry=router.registry is not None,
                broker_on=router.broker_on(),
                uptime_seconds=int(uptime_s()),
            )
        )

    @routes.app_errorhandler(404)
    async def nothing_here(_: Exception) -> tuple[dict[str, Any], int]:
        error = NotFound(NOTHING_HERE, request_id=g.get("request_id"))
        return error.body(), error.status

    return routes


def route_body(decision: Decision, chosen: Judged, table_hash: str) -> Route:
    candidate = chosen.candidate
    return Route(
        provider=candidate.provider,
        model=candidate.model,
        endpoint=candidate.endpoint,
        capability=decision.request.capability,
        prefer_local=decision.request.prefer_local,
        agent_id=chosen.agent_id,
        agent_model=chosen.agent_model,
        cost_per_1k_tokens=0.0 if candidate.local else None,
        reason=chosen.reason,
        fallback_reason=None if decision.fallback is None else decision.judged[0].reason,
        map_hash=table_hash,
        candidates=[judged_body(one) for one in decision.judged],
    )


def judged_body(one: Judged) -> JudgedBody:
    """A candidate, and why it was chosen or passed over."""
    candidate = one.candidate
    return JudgedBody(
        provider=candidate.provider,
        model=candidate.model,
        endpoint=candidate.endpoint,
        source=one.source,
        agent_id=one.agent_id,
        agent_model=one.agent_model,
        verdict=one.why,
        reason=one.reason,
    )


def logged_body(one: LoggedRoute) -> LoggedBody:
    asked, chosen = one.request, None if one.chosen is None else _candidate(one.chosen)
    return LoggedBody(one.at_s, asked.capability, asked.prefer_local, chosen, one.fallback)


def what_if_body(found: WhatIf, new_hash: str, before_hash: str) -> WhatIfAnswer:
    return WhatIfAnswer(
        map_hash=new_hash,
        before_hash=before_hash,
        replayed=found.replayed,
        unchanged=found.unchanged,
        changed=found.changed,
        lost=found.lost,
        gained=found.gained,
        by_capability=dict(found.by_capability),
        shown=[
            ChangedBody(
                at_s=one.at_s,
                request=RouteAsked(one.request.capability, one.request.prefer_local),
                before=None if one.before is None else _candidate(one.before),
                after=None if one.after is None else _candidate(one.after),
                why=[judged_body(judged) for judged in one.why],
            )
            for one in found.shown
        ],
    )


def _candidate(one: Candidate) -> CandidateSaid:
    return CandidateSaid(one.provider, one.model, one.endpoint)


def _limit() -> int:
    asked = request.args.get("limit", str(SHOWN_DEFAULT))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 5 and 1 <= int(asked) <= SHOWN_MAX):
        raise InvalidRequest(f"limit: a whole number from 1 to {SHOWN_MAX}", field="limit")
    return int(asked)
