"""`/usage`: who asked which model for how much, how long it took, and what it cost."""

from __future__ import annotations

import typing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from quart import Blueprint, request

from engine.domain.errors import InvalidRequest
from engine.domain.usage import By
from web.handles import Engine
from web.usage_body import LedgerState, usage_body

DAYS_MAX: Final = 400
WAYS: Final[tuple[str, ...]] = typing.get_args(By)


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("usage", __name__)

    @routes.get("/usage")
    async def usage() -> dict[str, Any]:
        report = await engine.ledger.report(_by(), _since())
        return dict(msgspec.to_builtins(usage_body(report, engine.prices, ledger_state(engine))))

    return routes


def ledger_state(engine: Engine) -> LedgerState:
    handle = engine.ledger
    ledger = handle.ledger
    lost = ledger.counters.lost + handle.outlet.flow().refused + handle.refused
    return LedgerState(ledger.store.persistent, ledger.problem, ledger.counters.written, lost)


def _by() -> By:
    asked = request.args.get("by", "model")
    if asked not in WAYS:
        raise InvalidRequest(f"by: {', '.join(WAYS)}", field="by")
    return typing.cast("By", asked)


def _since() -> str | None:
    """The first day of the last so many, today (UTC) among them."""
    asked = request.args.get("days")
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit() and len(asked) < 4 and 1 <= int(asked) <= DAYS_MAX):
        raise InvalidRequest(f"days: a whole number from 1 to {DAYS_MAX}", field="days")
    return (datetime.now(UTC).date() - timedelta(days=int(asked) - 1)).isoformat()
