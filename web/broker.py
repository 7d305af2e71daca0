"""`/broker`: what may be asked of models outside this machine, what has left, and the switch. The switch needs the
token, so that no page and no program can throw it unnoticed."""

from __future__ import annotations

import hmac
from typing import Any

import attrs
from quart import Blueprint, request

from engine.domain.errors import InvalidRequest, Unauthorized
from engine.domain.usage import NANO_PER_USD
from policies.access import TOKEN_HEADER
from policies.broker import ALLOW, CONSENT, HEADER, BrokerMode
from transport.outbound import COUNTERS
from web.handles import Engine
from web.schemas import BrokerBody, decode


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("broker", __name__)

    @routes.get("/broker")
    async def broker() -> dict[str, Any]:
        return broker_body(engine)

    @routes.post("/broker")
    async def switch() -> dict[str, Any]:
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), engine.facts.token.encode()):
            raise Unauthorized(f"switching the broker needs the token of this start in {TOKEN_HEADER}")
        mode = BrokerMode(decode(await request.get_data(as_text=False), BrokerBody).mode)
        broker = engine.providers.broker
        before = broker.mode
        broker.switch(mode)
        if mode is not before:
            await broker.note_mode()
            await engine.catalog.refresh()
        return broker_body(engine)

    return routes


def broker_body(engine: Engine) -> dict[str, Any]:
    """`bytes_out` is everything that left this machine since the start, whoever sent it."""
    broker = engine.providers.broker
    policy, spent = broker.policy, broker.spent()
    names = [satellite.name for satellite in engine.providers.satellites]
    return {
        "mode": broker.mode.value,
        "available": broker.tier_allows and not broker.locked,
        "provider": names[0] if names else None,
        "bytes_out": COUNTERS.bytes_out,
        "calls_last_hour": spent.calls_last_hour,
        "spent": {"tokens": spent.tokens_today, "usd": spent.nusd_today / NANO_PER_USD},
        "limits": {
            "calls_per_hour": policy.requests_per_hour,
            "daily_tokens": policy.daily_tokens,
            "daily_usd": policy.daily_usd,
            "first_token_s": policy.first_token_s,
            "call_max_s": policy.call_max_s,
        },
        "context": policy.context,
        "providers": [
            {
                "name": satellite.name,
                "host": satellite.host,
                "models": list(satellite.models),
                "key": satellite.key_problem is None,
                "reason": satellite.key_problem,
                "connections": None if satellite.connections is None else attrs.asdict(satellite.connections.figures),
            }
            for satellite in engine.providers.satellites
        ],
        "calls": broker.counters.calls,
        "failed": broker.counters.failed,
        "refused": dict(broker.counters.refused),
    }


def hear_consent() -> None:
    """Before a request is handled: does its header consent to an answer from elsewhere? Raises InvalidRequest."""
    said = request.headers.get(HEADER)
    if said not in (None, ALLOW):
        raise InvalidRequest(f"{HEADER}: it can only say {ALLOW}")
    CONSENT.set(said == ALLOW)
