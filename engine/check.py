"""`wf check`: would the engine start here, and with what? Nothing is changed and no model is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from actors.catalog import Catalog
from actors.clock import EngineClock
from engine.app import tier_for
from engine.broker_log import verify_chain
from engine.config import policies_of, settings_dict
from engine.domain.errors import ConfigError, EngineError
from engine.runtimes import runtimes_for
from engine.service_ports import ServicePort, service_ports
from engine.settings import Settings
from engine.state import read_engine, state_path
from policies.tiers import TierLimits
from transport.listen import open_listener


def run_checks(load: Callable[[], Settings], environ: Mapping[str, str]) -> dict[str, Any]:
    """`{ok, checks: [{what, ok, found}], settings}`; `ok` null marks a remark."""
    checks: list[dict[str, Any]] = []

    def note(what: str, ok: bool | None, found: str) -> None:
        checks.append({"what": what, "ok": ok, "found": found})

    try:
        settings = load()
        policies = policies_of(settings)
        services = service_ports(settings) if settings.services.enabled else ()
    except ConfigError as error:
        for line in error.message.splitlines():
            note("configuration", False, line)
        return {"ok": False, "checks": checks, "settings": None}
    note("configuration", True, f"valid; policy {policies.policy_hash}")
    tier = tier_for(settings, policies)
    note("tier", None if tier.warning else True, tier.warning or f"{tier.tier}: {tier.reason}")
    state = state_path(environ)
    running = read_engine(state)
    held = f"; held by the engine at {running.http}" if running else ""
    problem = _folder_problem(state)
    note("state folder", problem is None, problem or f"{state}{held}")
    _note_record(state, note)
    if running is None:
        for name, host, port in (
            ("http port", settings.http.host, settings.http.port),
            ("ws port", settings.ws_host, settings.ws.port),
        ):
            problem = trio.run(_bind_problem, host, port)
            note(name, problem is None, problem or (f"{port} is free" if port else "any free one"))
        _note_services(settings, services, note)
    try:
        trio.run(_probe, settings, environ, policies.tiers.limits(tier.tier), note)
    except ConfigError as error:
        note("runtimes", False, error.message)
    return {"ok": all(c["ok"] is not False for c in checks), "checks": checks, "settings": settings_dict(settings)}


def _note_record(state: Path, note: Callable[[str, bool | None, str], None]) -> None:
    """What the broker wrote down must be as it was written. Without a record there is nothing to say."""
    chain = verify_chain(state)
    if chain is None:
        return
    if chain.broken is not None:
        before = f"the {chain.lines} lines before it are as they were written"
        note("broker's record", False, f"{chain.broken}; {before}; moved away, a new one is begun")
    else:
        note("broker's record", True, f"{chain.lines} lines, as they were written; the last hash is {chain.last}")


def _note_services(
    settings: Settings, services: Sequence[ServicePort], note: Callable[[str, bool | None, str], None]
) -> None:
    """A service whose port is taken is left out, and the engine starts without it: a remark."""
    taken = {port: name for name, port in (("http", settings.http.port), ("ws", settings.ws.port)) if port}
    for one in services:
        other = taken.setdefault(one.port, one.name) if one.port else one.name
        problem = f"{one.port} is the port of {other} too" if other != one.name else None
        problem = problem or trio.run(_bind_problem, settings.http.host, one.port)
        if problem is not None:
            note(f"service {one.name}", None, f"would be left out: {problem}; free the port, or set {one.setting}")
        else:
            note(f"service {one.name}", True, f"{one.port} is free" if one.port else "any free one")


async def _probe(
    settings: Settings, environ: Mapping[str, str], limits: TierLimits, note: Callable[[str, bool | None, str], None]
) -> None:
    clock = EngineClock.start()
    runtimes = await runtimes_for(settings, clock, environ, limits)
    catalog = Catalog(runtimes.by_name, clock)
    await catalog.refresh()
    for name, probe in catalog.probes.items():
        names = [model.name for model in catalog.models if model.runtime.name == name]
        found = ", ".join(names) if names else probe.reason or "has no model"
        note(
            f"runtime {name}", True if probe.up else None, found
        )  # one that is away is no problem while another is here
    if not catalog.models:
        note("models", False, "no runtime has a model; switch `embedded.enabled` on")


async def _bind_problem(host: str, port: int) -> str | None:
    try:
        listener = await open_listener(host, port)
    except EngineError as error:
        return error.message
    await listener.aclose()
    return None


def _folder_problem(path: Path) -> str | None:
    """Whether the state folder can be made and written, without making it."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return f"{path} cannot be used: {place} is not writable"
    return None
