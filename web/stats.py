"""`/health` and `/stats`: is it well, and how is it doing. Neither touches a model."""

from __future__ import annotations

import resource
import time
from typing import Any

import attrs
from quart import Blueprint

from actors.satellite import KIND as SATELLITE
from actors.session import SessionReport, SessionRequest
from engine.domain.runtime import Puller, Runtime
from engine.domain.telemetry import DEGRADE_LEVELS, DegradeFigures, ModelFigures, percentile
from policies.advice import RuntimeView, advise
from policies.tier_aims import hold
from transport.outbound import COUNTERS
from web.handles import Engine

KIB = 1024


def blueprint(engine: Engine) -> Blueprint:
    routes = Blueprint("stats", __name__)

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        engine.catalog.looked.set()
        return health_body(engine)

    @routes.get("/stats")
    async def stats() -> dict[str, Any]:
        return {
            "models": {name: _model(engine, figures) for name, figures in engine.telemetry.models.items()},
            "system": _system(engine),
            "clients": [
                {
                    "connection_id": client.id,
                    "frame": rendered.frame,
                    "behind": engine.frame_counter.last - rendered.frame,
                    "fps": rendered.fps,
                    "lag_ms": rendered.lag_ms,
                }
                for client, rendered in engine.hub.reporting()
            ],
            "council": _council(engine),
            "providers": _providers(engine),
            "pool": attrs.asdict(engine.pool.pool.counters)
            | {"runner_options_dropped": engine.sessions.runner_options_dropped},
            "sessions": {
                "active": engine.sessions.live,
                "running": [_running(session.report(), session.asked) for session in engine.sessions.running()],
                "queued": engine.pool.pool.queued,
                "total": engine.telemetry.sessions_total,
                "ended": dict(engine.telemetry.ended),
            },
        }

    return routes


def _providers(engine: Engine) -> list[dict[str, Any]]:
    """Those of this machine with what their models take of its memory; of others nobody can tell."""
    catalog, pool, now_us = engine.catalog, engine.pool.pool, engine.clock()
    told = engine.providers.report()
    for entry in told:
        resident = [pool.status(m.name).resident_bytes for m in catalog.models if m.runtime.name == entry["name"]]
        known = [size_bytes for size_bytes in resident if size_bytes is not None]
        asked_us = catalog.asked_us.get(entry["name"])
        entry["resident_bytes"] = sum(known) if entry["local"] and known else None
        entry["listed_age_s"] = None if asked_us is None else (now_us - asked_us) / 1e6
    return told


def _council(engine: Engine) -> dict[str, Any]:
    """`di` and `sync_latency_ms` are of the running council that measured one last; null without any."""
    readings = [reading for reading in engine.telemetry.councils.values() if reading is not None]
    return {
        "active": len(engine.telemetry.councils),
        "di": next((r.di for r in reversed(readings) if r.di is not None), None),
        "sync_latency_ms": next((r.sync_latency_ms for r in reversed(readings) if r.sync_latency_ms is not None), None),
    }


def health_body(engine: Engine) -> dict[str, Any]:
    """A satellite is not asked how it is, so its `up` is null, and it does not make the engine well."""
    here = [runtime for runtime in engine.catalog.runtimes.values() if runtime.kind != SATELLITE]
    runtimes = [
        {
            "name": name,
            "kind": runtime.kind,
            "url": runtime.url,
            "local": runtime.local,
            "up": probe.up if (probe := engine.catalog.probes.get(name)) and runtime.kind != SATELLITE else None,
            "reason": probe.reason if probe else "not asked yet",
        }
        for name, runtime in engine.catalog.runtimes.items()
    ]
    ups = [told["up"] for told in runtimes if told["kind"] != SATELLITE]
    advice = advise(
        [_view(engine, runtime) for runtime in here],
        engine.catalog.starting(),
        engine.facts.suggested_model,
    )
    return {
        "status": "degraded" if all(up is False for up in ups) else "ok",  # not asked yet is no fault
        "state": advice.state,
        "next": advice.next_step,
        "suggested_model": engine.facts.suggested_model,
        "remote": engine.facts.remote,
        "version": engine.facts.version,
        "uptime_s": engine.clock() / 1e6,
        "runtimes": runtimes,
        "tier": engine.facts.tier,
        "tier_reason": engine.facts.tier_reason,
        "level": engine.facts.level,
        "policy_hash": engine.facts.policy_hash,
        "sessions_active": engine.sessions.live,
    }


def _view(engine: Engine, runtime: Runtime) -> RuntimeView:
    probe = engine.catalog.probes.get(runtime.name)
    models = sum(model.runtime is runtime for model in engine.catalog.models)
    return RuntimeView(
        runtime.name, runtime.kind, None if probe is None else probe.up, models, isinstance(runtime, Puller)
    )


def _running(report: SessionReport, asked: SessionRequest) -> dict[str, Any]:
    return {
        "session_id": report.session_id,
        "model": asked.model.name,
        "origin": asked.origin,
        "state": report.state,
        "tokens": report.tokens_generated,
        "duration_ms": report.duration_ms,
    }


def _model(engine: Engine, figures: ModelFigures) -> dict[str, Any]:
    return {
        "tps_current": figures.tps_current,
        "tps_average": figures.tps_average,
        "ttft_ms": {
            "cold": figures.ttft_cold_ms,
            "warm": figures.ttft_warm_ms,
            "p50": percentile(figures.ttft_ms, 50),
            "p95": percentile(figures.ttft_ms, 95),
        },
        "eu_rate": figures.eu_rate,
        "active_sessions": figures.active_sessions,
        "sessions": figures.sessions,
        "total_tokens": figures.total_tokens,
        "against_tier": attrs.asdict(hold(engine.facts.tier_limits, figures)),
    }


def _system(engine: Engine) -> dict[str, Any]:
    telemetry, usage = engine.telemetry, resource.getrusage(resource.RUSAGE_SELF)
    counter, hub, mapper = engine.frame_counter, engine.hub.counters, engine.mapper_counters
    return {
        "fps_current": telemetry.fps(engine.clock()),
        "lateness_ms": {f"p{p}": percentile(telemetry.lateness_ms, p) for p in (50, 95, 99)},
        "frame_ms": {f"p{p}": percentile(telemetry.frame_ms, p) for p in (50, 95, 99)},
        "frames": counter.last - counter.missed,
        "frames_missed": counter.missed,
        "queues": [attrs.asdict(flow) for flow in engine.flows()],
        "degrade": telemetry.degrade.level,
        "degrade_levels": _degrade_levels(telemetry.degrade, engine.clock()),
        "drops": {
            "frames_merged": counter.merged,
            "energy_replaced": counter.energy_replaced + hub.dropped_energy,
            "tokens_text_only": counter.text_only,
            "frames_without_patterns": counter.without_patterns,
            "client_frames_merged": hub.merged_frames,
            "clients_closed_slow": hub.closed_slow,
            "backlogs_cut": hub.backlogs_cut,
            "orphan_tokens": mapper.orphans,
            "unmeasured_tokens": mapper.unmeasured,
            "bad_messages": hub.bad_messages,
        },
        "edges": {name: attrs.asdict(counters) for name, counters in engine.edges.items()},
        "bytes_out": COUNTERS.bytes_out,
        "rss_bytes": (rss_bytes := _rss_bytes()),
        "rss_peak_bytes": max(usage.ru_maxrss * KIB, rss_bytes or 0),  # the kernel updates its peak late
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "cpu_percent": 100 * time.process_time() / max(1e-6, engine.clock() / 1e6),
    }


def _degrade_levels(figures: DegradeFigures, now_us: int) -> list[dict[str, Any]]:
    return [
        {"degrade": level, "entries": figures.entries[level], "time_s": figures.spent_us(level, now_us) / 1e6}
        for level in range(DEGRADE_LEVELS)
    ]


def _rss_bytes() -> int | None:
    """Resident memory now (Linux); null where the kernel does not say it."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # memory of the kernel, not a disk: never blocks
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None
