"""`/models`: what can be asked, what is in memory, and moving models in and out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
from quart import Blueprint, request

from actors.catalog import ModelRef
from actors.pool_memory import Standing
from engine.domain.models import ModelState
from policies.admission import Admit, Numbers, Refuse, Wait, figures_of
from policies.tier_aims import hold
from web.handles import Engine
from web.lens.flow import tell_of
from web.schemas import LoadBody, UnloadBody, decode


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("models", __name__)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        await engine.catalog.refresh()
        return {
            "models": [model_entry(engine, model) for model in engine.catalog.models],
            "virtual": [
                {"name": council.name, "members": council.info.details["members"]}
                for council in (engine.catalog.councils.listed() if engine.catalog.councils else ())
            ],
            "pulls": [
                {"name": name, "status": progress.status, "progress": progress.share}
                for name, progress in engine.pulls.under_way().items()
            ],
            "memory": _memory(engine),
            "tier": engine.facts.tier,
        }

    @routes.get("/models/<path:name>/why")
    async def why(name: str) -> dict[str, Any]:
        model = await engine.catalog.resolve(name)
        return _why(engine, model)

    @routes.post("/models/load")
    async def load() -> dict[str, Any]:
        body = decode(await request.get_data(as_text=False), LoadBody)
        model = await engine.pulls.resolve(body.name, explicit=True)
        grant = await engine.pool.load(model, tell_of(engine, model), pin=body.pin, warm_up=body.warm_up)
        return {
            "success": True,
            "model": model.name,
            "load_time_ms": grant.load_ms,
            "resident_bytes": grant.resident_bytes,
            "evicted": list(grant.evicted),
        }

    @routes.post("/models/unload")
    async def unload() -> dict[str, Any]:
        body = decode(await request.get_data(as_text=False), UnloadBody)
        model = await engine.catalog.resolve(body.name)
        await tell_of(engine, model)(ModelState.UNLOADING, None, None)
        try:
            freed_bytes = await engine.pool.unload(model)
        finally:
            state = engine.pool.pool.status(model.name).state
            await tell_of(engine, model)(state, None, None)
        return {"success": True, "freed_bytes": freed_bytes}

    return routes


def model_entry(engine: Engine, model: ModelRef) -> dict[str, Any]:
    status = engine.pool.pool.status(model.name)
    figures = engine.telemetry.models.get(model.name)
    against_tier = hold(engine.facts.tier_limits, figures)
    return {
        "name": model.name,
        "runtime": model.runtime.name,
        "size_bytes": model.info.size_bytes,
        "modified_at": model.info.modified_at,
        "digest": model.info.digest,
        "state": status.state,
        "last_used": None if status.last_used_us is None else _wall_time(engine, status.last_used_us),
        "resident_bytes": status.resident_bytes,
        "vram_bytes": status.vram_bytes,
        "capabilities": list(model.info.capabilities),
        "details": model.info.details,
        "tps": None if figures is None else figures.tps_average,
        "ttft_ms": None if figures is None else figures.ttft_warm_ms,
        "ttft_cold_ms": None if figures is None else figures.ttft_cold_ms,
        "below_tier": against_tier.below,
        "against_tier": attrs.asdict(against_tier),
    }


def _memory(engine: Engine) -> dict[str, Any]:
    facts, pool = engine.facts, engine.pool.pool
    used_bytes, used_vram_bytes = pool.resident_bytes, pool.vram_bytes
    return {
        "ram_total_bytes": facts.ram_total_bytes,
        "ram_budget_bytes": facts.ram_budget_bytes,
        "vram_budget_bytes": facts.vram_budget_bytes,
        "used_bytes": used_bytes,
        "used_ram_bytes": used_bytes - used_vram_bytes,
        "used_vram_bytes": used_vram_bytes,
    }


def _why(engine: Engine, model: ModelRef) -> dict[str, Any]:
    pool = engine.pool.pool
    status, standing = pool.status(model.name), pool.standing(model)
    return {
        "model": model.name,
        "state": status.state,
        "size_bytes": model.info.size_bytes,
        "resident_bytes": status.resident_bytes,
        "expected_bytes": standing.expected_bytes,
        "leases": status.leases,
        "pinned": standing.pinned,
        "cools_for_ms": standing.cools_for_ms,
        "now": _outlook(standing, status.state),
        "waiting": [
            {"position": news.position, "reason": news.reason, "wait_ms": news.wait_ms}
            for news in pool.waiting(model.name)
        ],
        "decisions": [
            {
                "at": _wall_time(engine, decision.at_us),
                "decision": decision.kind,
                "reason": decision.reason,
                "times": decision.times,
                "numbers": dict(decision.numbers),
            }
            for decision in pool.decisions.of(model.name)
        ],
        "memory": _memory(engine),
        "against_tier": attrs.asdict(hold(engine.facts.tier_limits, engine.telemetry.models.get(model.name))),
    }


def _outlook(standing: Standing, state: ModelState) -> dict[str, Any]:
    match standing.now:
        case Refuse(error=error):
            return _outcome("refuse", error.message, (), figures_of(error))
        case Wait(reason=reason, numbers=numbers):
            return _outcome("wait", reason, (), numbers)
        case Admit(evict=evict):
            return _outcome("ready" if state is ModelState.READY else "load", standing.reason, evict, {})


def _outcome(outcome: str, reason: str | None, evict: Sequence[str], numbers: Numbers) -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "evict": list(evict), "numbers": dict(numbers)}


def _wall_time(engine: Engine, at_us: int) -> str:
    """A moment of the engine clock as RFC 3339 in UTC."""
    ago = timedelta(microseconds=engine.clock() - at_us)
    return (datetime.now(UTC) - ago).isoformat(timespec="milliseconds").replace("+00:00", "Z")
