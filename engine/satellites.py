"""The broker and the satellites, by the settings: what may leave this machine, for whom, and with which key."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from actors.broker import Broker, BrokerLog, MemoryLog
from actors.provider_health import ProviderHealth
from actors.satellite import CloudRuntime, SatelliteRuntime
from engine.broker_log import BrokerFile
from engine.domain.errors import ConfigError
from engine.domain.generation import Clock
from engine.domain.runtime import Runtime
from engine.domain.usage import Price, PriceTable
from engine.keys import FILE_NAME as KEYS_NAME
from engine.keys import KeyFound, find_keys
from engine.settings import Settings
from policies.breaker import Breaker
from policies.broker import BrokerMode
from policies.load import Policies
from policies.providers import Dialect, ProviderSpec, provider_specs
from policies.selection import FallbackRules
from policies.tiers import TierChoice
from transport.connections import ConnectionPool


def broker_of(settings: Settings, policies: Policies, choice: TierChoice, log: BrokerLog | None = None) -> Broker:
    """Raises ConfigError when the configuration switches it on where it cannot be."""
    mode, tier = BrokerMode(settings.broker.mode), choice.tier
    tier_allows = policies.tiers.limits(tier).broker_enabled
    if mode is not BrokerMode.DISABLED and not tier_allows:
        raise ConfigError(f"broker.mode {mode} needs the tier hybrid, and this is {tier}; set tier: hybrid")
    if settings.core_lock:
        leaving = {
            "broker.mode": mode is not BrokerMode.DISABLED,
            "allow_remote": settings.allow_remote,
            "allow_remote_runtimes": settings.allow_remote_runtimes,
        }
        if asked := [name for name, given in leaving.items() if given]:
            raise ConfigError(f"core_lock keeps everything on this machine, and {asked[0]} does not; choose one")
    prices = policies.prices.table()
    return Broker(
        policy=policies.broker,
        tier_allows=tier_allows,
        mode=mode,
        price_of=partial(_price_of, prices),
        log=log or MemoryLog(),
        wall_s=time.time,
        locked=settings.core_lock,
    )


async def open_broker(settings: Settings, policies: Policies, choice: TierChoice, state: Path) -> Broker:
    """With its record in the state folder, whose earlier lines count. Raises ConfigError."""
    log = BrokerFile(state)
    broker = broker_of(settings, policies, choice, log)
    if provider_specs(settings.providers):
        broker.remember(await trio.to_thread.run_sync(log.read))
    return broker


async def with_satellites(
    runtimes: Mapping[str, Runtime],
    settings: Settings,
    clock: Clock,
    broker: Broker,
    environ: Mapping[str, str],
    state: Path,
) -> dict[str, Runtime]:
    """The runtimes, and behind them the configured providers outside this machine. With `runtime` there is that one
    alone. Raises ConfigError."""
    specs = {name: spec for name, spec in provider_specs(settings.providers).items() if spec.satellite}
    if not specs or settings.runtime is not None:
        return dict(runtimes)
    if twice := next((name for name in specs if name in runtimes), None):
        raise ConfigError(f"{twice} is configured twice: here, and under providers as one outside this machine")
    keys = await trio.to_thread.run_sync(find_keys, specs, environ, _keys_file(settings, state))
    return {**runtimes, **{name: satellite_of(spec, clock, broker, keys[name]) for name, spec in specs.items()}}


def _keys_file(settings: Settings, state: Path) -> Path:
    named = settings.broker.keys_file
    return state / KEYS_NAME if named is None else Path(named).expanduser()


def satellite_of(
    spec: ProviderSpec,
    clock: Clock,
    broker: Broker,
    key: KeyFound,
    make: Callable[[ProviderSpec, Clock, str | None], CloudRuntime] | None = None,
) -> SatelliteRuntime:
    """One provider as a runtime. Raises ConfigError when the key cannot stand in a header."""
    secret = None if key.key is None else key.key.reveal()
    pool = ConnectionPool(spec.name, spec.host, spec.port) if make is None else None
    if pool is not None:
        broker.at_off.append(pool.close_idle)
    return SatelliteRuntime(
        name=spec.name,
        runtime=cloud_runtime(spec, clock, secret, pool) if make is None else make(spec, clock, secret),
        host=spec.host,
        port=spec.port,
        models=spec.preferred_models,
        broker=broker,
        health=ProviderHealth(spec.name, local=False, breaker=Breaker(broker.policy.breaker.rules())),
        key_problem=key.problem,
        timeout_s=spec.timeout_s,
        connections=pool,
        gives_logprobs=False if spec.dialect is Dialect.ANTHROPIC else None,
    )


@asynccontextmanager
async def connections_kept(runtimes: Mapping[str, Runtime]) -> AsyncIterator[None]:
    """Within, connections to providers outside this machine are kept for their next call. Leaving closes them."""
    async with trio.open_nursery() as nursery:
        for runtime in runtimes.values():
            if isinstance(runtime, SatelliteRuntime) and runtime.connections is not None:
                await nursery.start(runtime.connections.run)
        yield
        nursery.cancel_scope.cancel(reason="stopped")


def cloud_runtime(
    spec: ProviderSpec, clock: Clock, key: str | None, pool: ConnectionPool | None = None
) -> CloudRuntime:
    """What speaks the provider's dialect."""
    url = spec.base_url or ""
    if spec.dialect is Dialect.ANTHROPIC:
        from transport.runtimes.anthropic import AnthropicRuntime

        return AnthropicRuntime(clock, url, spec.name, key, pool)
    from transport.runtimes.openai import OpenAIRuntime

    return OpenAIRuntime(clock, url, spec.name, key, pool, hosted=True)


def fallback_rules(settings: Settings) -> FallbackRules:
    preferred = {name: spec.preferred_models for name, spec in provider_specs(settings.providers).items()}
    fallback = settings.fallback
    return FallbackRules(
        fallback.enabled,
        fallback.order,
        settings.default_provider,
        settings.local_first,
        preferred,
        fallback.attempts_max,
    )


def discovered_only(settings: Settings) -> dict[str, frozenset[str]]:
    """The providers that list no more than their preferred models."""
    specs = provider_specs(settings.providers)
    return {name: frozenset(spec.preferred_models) for name, spec in specs.items() if not spec.auto_discovery}


def _price_of(prices: PriceTable, model: str) -> Price | None:
    return prices.models.get(model) or prices.models.get(model.rpartition("/")[2])
