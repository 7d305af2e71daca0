"""The composition root: the one place that knows every part by name. `serve` runs a whole engine until it is told to
stop.

Start: state folder and listeners first (so a conflict is told before anything runs), then the actors, then the edges.
Stop: the edges stop accepting, sessions tell their end, the stages drain, clients are told goodbye; all of it within
`drain_s` plus a second, and whatever is left is cut.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from quart_trio import QuartTrio

from actors.clock import EngineClock
from engine import __version__, core_lock
from engine.config import policies_of, services_of
from engine.core import Core, client_limits
from engine.discovery import Discovery
from engine.domain.errors import AddressInUse
from engine.domain.models import Tier
from engine.hardware import read_machine
from engine.runtimes import Runtimes, runtimes_for
from engine.satellites import connections_kept, open_broker, with_satellites
from engine.schemas import read_schemas
from engine.services import LocalServices, offers_of, open_services
from engine.settings import Settings
from engine.state import EngineAddress, StateFolder, open_state, ram_total_bytes
from engine.store import FILE_NAME, Database
from engine.usage_store import SqliteUsage
from policies.access import AccessRules, loopback_rules
from policies.admission import budgets
from policies.broker import Occasion
from policies.egress import stays_here
from policies.load import Policies
from policies.tiers import TierChoice, choose_tier
from transport.endpoint import FrameEndpoint, FrameLimits
from transport.listen import ListenLimits, bound_port, open_listener
from transport.wire.json_schema import Documents
from web.app import create_app
from web.assets import read_assets
from web.guard import HttpLimits, HttpServer
from web.handles import Engine, EngineFacts, LensRules
from web.services.blueprint import mounted
from web.services.service import Service

CUT_S: Final = 1.0  # after drain_s: what is not over by then is cancelled
GC_THRESHOLDS: Final = (10_000, 20, 50)  # full collections cost frames; what start-up made is frozen out of them

logger = logging.getLogger("wf.app")


@attrs.frozen
class Serving:
    """A ready engine. `notes` are lines a person should see, such as a tier above what the machine shows."""

    address: EngineAddress
    tier: TierChoice
    level: int
    runtimes: Runtimes
    notes: tuple[str, ...]


def tier_for(settings: Settings, policies: Policies) -> TierChoice:
    """The tier in force, by the memory of this machine and its GPUs. Blocks: up to 2 s where a driver does not
    answer."""
    wanted = None if settings.tier == "auto" else Tier(settings.tier)
    machine = read_machine()
    return choose_tier(policies.tiers, wanted, machine.ram_bytes, machine.vram_bytes)


async def serve(
    settings: Settings, *, state: Path, port_file: Path | None, announce: Callable[[Serving], None]
) -> None:
    """Run until SIGINT or SIGTERM. `announce` is called once both listeners answer.

    Raises AddressInUse, ConfigError, RestartsExhausted (alone or in exception groups). A second signal ends the
    process.
    """
    if settings.core_lock:
        core_lock.lock()
    policies, told = await trio.to_thread.run_sync(policies_of, settings), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_hear_signals, told)  # before anything is made that a signal could leave behind
        folder = await trio.to_thread.run_sync(open_state, state)
        try:
            async with running(settings, policies, folder, port_file) as serving:
                announce(serving)
                _settle_gc()
                await told.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(folder.close)
        nursery.cancel_scope.cancel(reason="stopped")


@asynccontextmanager
async def running(
    settings: Settings, policies: Policies, folder: StateFolder, port_file: Path | None
) -> AsyncIterator[Serving]:
    """An engine with its edges. Leaving the block stops it in order; cancelling cuts it."""
    clock = EngineClock.start()
    tier = await trio.to_thread.run_sync(tier_for, settings, policies)
    runtimes = await runtimes_for(settings, clock, os.environ, policies.tiers.limits(tier.tier))
    database = Database(folder.path / FILE_NAME)
    usage = SqliteUsage(database, policies.prices.table())
    broker = await open_broker(settings, policies, tier, folder.path)
    everywhere = await with_satellites(runtimes.by_name, settings, clock, broker, os.environ, folder.path)
    core = Core.build(everywhere, clock, settings, policies, tier, runtimes.starting, usage, broker)
    discovery = Discovery.of(
        settings,
        clock,
        database,
        policies.routes.table(),
        core.ledger,
        lambda: broker.objection(Occasion.NO_LOCAL) is None,
    )
    http_listener = await _listen(settings.http.host, settings.http.port, "--port")
    try:
        ws_listener = await _listen(settings.ws_host, settings.ws.port, "--ws-port")
    except BaseException:
        await trio.aclose_forcefully(http_listener)
        raise
    http_port, ws_port = bound_port(http_listener), bound_port(ws_listener)
    edges: dict[str, Any] = {}
    engine = handles(core, settings, policies, tier, folder.token, ws_port, edges)
    assets = await trio.to_thread.run_sync(read_assets)
    documents = await trio.to_thread.run_sync(read_schemas)
    app = create_app(
        engine,
        assets,
        documents,
        body_bytes_max=settings.limits.body_bytes_max,
        lens_body_bytes_max=settings.lens.body_bytes_max,
        body_timeout_s=settings.limits.body_timeout_s,
    )
    http = HttpServer(
        app,
        http_listener,
        _rules(settings, http_port, http_port, folder.token),
        _http_limits(settings),
        frames_url=_url("ws", settings.ws_host, ws_port) + "/ws",
    )
    endpoint = FrameEndpoint(
        core.hub, ws_listener, _rules(settings, ws_port, http_port, folder.token), _frame_limits(settings)
    )
    services = await _services(settings, engine, http_port, folder.token, discovery, documents)
    for service in services.services.values():
        app.register_blueprint(mounted(service))  # the page may only ask where it came from
    edges.update(http=http.counters, ws=endpoint.counters, **services.counters)
    address = EngineAddress(
        os.getpid(),
        _url("http", settings.http.host, http_port),
        _url("ws", settings.ws_host, ws_port) + "/ws",
        {name: _url("http", services.host, port) for name, port in services.ports.items()},
    )
    async with database, runtimes.attended(), connections_kept(everywhere), trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await nursery.start(endpoint.run)
        await nursery.start(http.run)
        await services.start(nursery)
        await nursery.start(discovery.run)
        await trio.to_thread.run_sync(folder.publish, address.http, address.ws, address.services, port_file)
        notes: tuple[str, ...] = (*(() if tier.warning is None else (tier.warning,)), *services.problems)
        if settings.allow_remote:
            notes += ("other machines may connect with a key; name this machine in allowed_hosts for them",)
        yield Serving(address, tier, settings.level, runtimes, notes)
        nursery.cancel_scope.deadline = trio.current_time() + settings.timeouts.drain_s + CUT_S
        http.stop_accepting()
        discovery.close()
        services.stop_accepting()
        engine.lens.calls.stop()
        core.close()
        await core.drained.wait()
        endpoint.stop_accepting()


async def _services(
    settings: Settings, engine: Engine, http_port: int, token: str, discovery: Discovery, documents: Documents
) -> LocalServices:
    """The local services with the registry and the router, where they are switched on; none otherwise."""
    host = settings.http.host
    if not settings.services.enabled:
        return LocalServices(host)

    def server_of(app: QuartTrio, listener: trio.SocketListener) -> HttpServer:
        rules = _rules(settings, bound_port(listener), http_port, token)
        return HttpServer(app, listener, rules, _http_limits(settings))

    table, taxonomy = await trio.to_thread.run_sync(services_of, settings)
    made: dict[str, Service] = {}
    offers = offers_of(table, taxonomy, engine, settings, made, documents) + discovery.offers(documents)
    opened = await open_services(offers, host, server_of)
    discovery.announce(made)
    return attrs.evolve(opened, services=made)


async def _listen(host: str, port: int, flag: str) -> trio.SocketListener:
    try:
        return await open_listener(host, port)
    except AddressInUse as error:
        raise AddressInUse(f"{error.message}; stop it, or choose another port with {flag} (0: any free one)") from None


async def _hear_signals(told: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """Set `told` on the first SIGINT or SIGTERM. A second one then ends the process at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            logger.info("stopping on %s", signal.Signals(number).name)
            break
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    told.set()


def _settle_gc() -> None:
    """What start-up made will stay: take it out of the collector's sight, and let full collections be rare. A full one
    over the imports alone costs two frames."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def handles(
    core: Core,
    settings: Settings,
    policies: Policies,
    tier: TierChoice,
    token: str,
    ws_port: int,
    edges: dict[str, Any],
) -> Engine:
    limits = policies.tiers.limits(tier.tier)
    ram_budget_bytes, vram_budget_bytes = budgets(
        tier.ram_bytes, tier.vram_bytes, limits.ram_budget_bytes, limits.vram_budget_bytes
    )
    facts = EngineFacts(
        version=__version__,
        boot=core.boot,
        tier=tier.tier,
        tier_reason=tier.reason,
        level=settings.level,
        tick_hz=core.tick_hz,
        policy_hash=policies.policy_hash,
        token=token,
        ws_port=ws_port,
        limits=client_limits(settings),
        ram_total_bytes=ram_total_bytes(),
        ram_budget_bytes=ram_budget_bytes,
        vram_budget_bytes=vram_budget_bytes,
        tier_limits=limits,
        suggested_model=limits.suggested_model,
        remote=not (stays_here(settings.http.host) and stays_here(settings.ws_host)),
    )
    lens = settings.lens
    return Engine(
        facts=facts,
        lens=LensRules(
            lens.mode, lens.on_disconnect, lens.aliases, lens.head_wait_s, lens.resume.enabled, lens.resume.rules
        ),
        clock=core.clock,
        catalog=core.catalog,
        pool=core.pool,
        pulls=core.pulls,
        providers=core.providers,
        sessions=core.sessions,
        ledger=core.ledger,
        prices=policies.prices.table(),
        hub=core.hub,
        telemetry=core.telemetry,
        frame_counter=core.frame_counter,
        mapper_counters=core.mapper_counters,
        signals=core.new_outlet(),
        flows=core.flows,
        edges=edges,
    )


def _rules(settings: Settings, port: int, http_port: int, token: str) -> AccessRules:
    return loopback_rules(
        port,
        http_port,
        token=token,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        api_keys=tuple(key.reveal() for key in settings.api_keys),
    )


def _http_limits(settings: Settings) -> HttpLimits:
    limits = settings.limits
    return HttpLimits(
        listen=ListenLimits(
            limits.connections_max, limits.connections_reserve, limits.write_timeout_s, settings.timeouts.drain_s
        ),
        head_s=limits.head_timeout_s,
        head_bytes_max=limits.header_bytes_max,
    )


def _frame_limits(settings: Settings) -> FrameLimits:
    ws = settings.ws
    return FrameLimits(
        listen=ListenLimits(
            ws.connections_max, settings.limits.connections_reserve, ws.stall_s, settings.timeouts.drain_s
        ),
        handshake_s=settings.limits.head_timeout_s,
        head_bytes_max=settings.limits.header_bytes_max,
        message_bytes_max=ws.message_bytes_max,
        messages_per_s=ws.messages_per_s_max,
        ping_interval_s=ws.ping_interval_s,
        pong_timeout_s=ws.pong_timeout_s,
    )


def _url(scheme: str, host: str, port: int) -> str:
    """A URL a person can open: the address listened on, or loopback where that is every address."""
    address = ipaddress.ip_address(host.strip("[]"))
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    name = f"[{address}]" if address.version == 6 else str(address)
    return f"{scheme}://{name}:{port}"
