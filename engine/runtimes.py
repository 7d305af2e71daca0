"""Which runtimes there are, by the settings, and what has to run beside them: a daemon, processes of models."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio

from actors.kernel import Actor
from actors.supervise import supervise
from engine.domain.errors import ConfigError, EngineError
from engine.domain.generation import Clock
from engine.domain.runtime import Runtime
from engine.service_ports import service_ports
from engine.settings import RUNTIME_URL, Settings
from engine.state import state_path
from policies.egress import Permit, Purpose, stays_here
from policies.providers import Dialect, HuggingFaceSpec, ProviderSpec, huggingface_spec, provider_specs
from policies.restart import RestartPolicy
from policies.tiers import TierLimits
from transport.connections import ConnectionPool

if TYPE_CHECKING:
    from transport.runtimes.daemon import OllamaDaemon

OWN_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
OWNER_RESTARTS: Final = RestartPolicy()
LOCAL_IDLE_S: Final = 2.0  # servers let go of theirs after 5 s, and nobody is to meet them at that
CONNECTIONS_MAX: Final = 128  # in use at once, to one server of this machine
DAEMON_STOP_S: Final = 2.0  # for an Ollama of ours to end; the engine itself has 5 s in all
START_OLLAMA: Final = "start it with `ollama serve`"
OLLAMA_SITE: Final = "https://ollama.com/download"

logger = logging.getLogger("wf.runtimes")


@attrs.frozen
class Runtimes:
    """In the order they are asked. `owners` are the actors that own processes for them, `pools` the connections that
    are kept to those that are servers."""

    by_name: Mapping[str, Runtime]
    owners: Mapping[str, Actor]
    starting: Callable[[], bool]  # one of them is on its way up
    pools: tuple[ConnectionPool, ...] = ()

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """The owners run inside; leaving stops them and all their processes, and closes what is kept."""
        async with trio.open_nursery() as nursery:
            for pool in self.pools:
                await nursery.start(pool.run)
            for name, owner in self.owners.items():
                await nursery.start(_attend, name, owner)
            yield
            nursery.cancel_scope.cancel(reason="stopped")


async def runtimes_for(settings: Settings, clock: Clock, environ: Mapping[str, str], limits: TierLimits) -> Runtimes:
    """Raises ConfigError when `runtime` names one that is not there, or when prompts would leave this machine without
    `allow_remote_runtimes`."""
    found: dict[str, Runtime] = {}
    owners: dict[str, Actor] = {}
    pools: list[ConnectionPool] = []
    daemon: OllamaDaemon | None = None
    if settings.synthetic is not None:
        from transport.runtimes.synthetic import SyntheticRuntime

        found["synthetic"] = SyntheticRuntime(clock, settings.synthetic)
    if settings.ollama.enabled:
        address = ollama_address(settings, environ)
        daemon = await _daemon(settings, environ, limits, address)
        hint = partial(_ollama_hint, daemon)
        found["ollama"] = _ollama(settings, clock, pools, address, hint)
        for number, url in enumerate(settings.ollama.more, start=2):
            found[f"ollama{number}"] = _ollama(settings, clock, pools, url, lambda: START_OLLAMA, f"ollama{number}")
    if settings.openai.base_url is not None:
        from transport.runtimes.openai import OpenAIRuntime

        url = settings.openai.base_url
        permit, pool = _remote_permit(settings, url), _pool("openai", url, pools)
        found["openai"] = OpenAIRuntime(clock, url, transport=pool, permit=permit)
    for spec in _own_servers(settings):
        from transport.runtimes.openai import OpenAIRuntime

        url = spec.base_url or ""
        pool = _pool(spec.name, url, pools)
        found[spec.name] = OpenAIRuntime(clock, url, spec.name, transport=pool, list_s=spec.timeout_s)
    hub = huggingface_spec(settings.providers) or HuggingFaceSpec()
    if (
        hub.models
        or settings.llama_cpp.model is not None
        or (settings.llama_cpp.enabled and importlib.util.find_spec("xllamacpp") is not None)
    ):
        found["llama_cpp"], owners["llama_cpp"] = _llama_cpp(settings, clock, environ)
    if settings.embedded.enabled:
        from transport.runtimes.embedded.runtime import EmbeddedRuntime  # numpy: not for `wf ps` and the like

        found["embedded"] = EmbeddedRuntime(clock, settings.embedded.pace_tps)
    _refuse_remote(found, settings)
    _refuse_ourselves(found, settings)
    found = _only(found, settings.runtime)
    if daemon is not None and "ollama" in found:
        owners["ollama"] = daemon
    owners = {name: owner for name, owner in owners.items() if name in found}
    starting = partial(_is_starting, daemon if "ollama" in owners else None)
    return Runtimes(found, owners, starting, tuple(pool for pool in pools if pool.name in found))


def _pool(name: str, url: str, pools: list[ConnectionPool]) -> ConnectionPool | None:
    """Connections that are kept to a server of this machine for a moment: what the engine asks comes in bursts. One of
    `pools` from now on."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None or not stays_here(parts.hostname):
        return None
    pool = ConnectionPool(
        name, parts.hostname, parts.port or 80, tls=False, in_use_max=CONNECTIONS_MAX, idle_s=LOCAL_IDLE_S
    )
    pools.append(pool)
    return pool


async def _attend(name: str, owner: Actor, *, task_status: trio.TaskStatus[None]) -> None:
    """A runtime that is beyond help is down, and says so; the engine goes on."""
    try:
        await supervise(name, lambda: owner, OWNER_RESTARTS, task_status=task_status)
    except EngineError as error:
        logger.error("%s is given up: %s", name, error.message)
        with suppress(RuntimeError):  # it was started and failed later
            task_status.started()


def _is_starting(daemon: OllamaDaemon | None) -> bool:
    """Also before the daemon has found out whether it is needed."""
    if daemon is None:
        return False
    status = daemon.status
    return status.state in ("starting", "restarting") or (status.state == "off" and status.reason is None)


def ollama_address(settings: Settings, environ: Mapping[str, str]) -> str:
    """Where Ollama listens. An OLLAMA_HOST that names one of our own listeners is meant for clients of ours, so it is
    passed over."""
    from transport.runtimes.ollama import URL_DEFAULT, ollama_url

    named = settings.ollama.url or settings.providers.get("ollama", {}).get("base_url")
    if named is not None:
        return str(named)
    url = ollama_url(environ)
    if re.fullmatch(RUNTIME_URL, url) is None:
        raise ConfigError("OLLAMA_HOST is not a usable address; give host:port, or set ollama.url")
    if urlsplit(url).netloc.lower() in _own_addresses(settings):
        logger.warning("OLLAMA_HOST names this engine itself; Ollama is looked for at %s", URL_DEFAULT)
        return URL_DEFAULT
    return url


def _ollama(
    settings: Settings,
    clock: Clock,
    pools: list[ConnectionPool],
    url: str,
    hint: Callable[[], str],
    name: str = "ollama",
) -> Runtime:
    from transport.runtimes.ollama import OllamaRuntime

    keep_alive = settings.ollama.keep_alive
    seconds_or_text = int(keep_alive) if keep_alive in ("-1", "0") else keep_alive
    permit = _remote_permit(settings, url)
    pool = _pool(name, url, pools)
    return OllamaRuntime(clock, url, name, transport=pool, keep_alive=seconds_or_text, permit=permit, hint=hint)


async def _daemon(
    settings: Settings, environ: Mapping[str, str], limits: TierLimits, address: str
) -> OllamaDaemon | None:
    if not settings.ollama.spawn:
        return None
    from transport.runtimes.daemon import OllamaDaemon, find_ollama

    return OllamaDaemon(
        address,
        await trio.to_thread.run_sync(find_ollama, environ),
        environ,
        max_loaded=limits.max_loaded_models,
        num_parallel=limits.requests_per_model,
        stop_s=DAEMON_STOP_S,
    )


def _ollama_hint(daemon: OllamaDaemon | None) -> str:
    """What to do, or what is being done, while nothing answers."""
    if daemon is None:
        return START_OLLAMA
    status = daemon.status
    if status.pid is not None:
        return f"`ollama serve` is on its way (process {status.pid})"
    if daemon.binary is None:
        return f"no `ollama` is on the PATH; install it from {OLLAMA_SITE}"
    return status.reason or f"{daemon.binary} is there and is started with the engine"


def _llama_cpp(settings: Settings, clock: Clock, environ: Mapping[str, str]) -> tuple[Runtime, Actor]:
    from transport.runtimes.llama_cpp.hub import HuggingFace
    from transport.runtimes.llama_cpp.process import ServerSettings
    from transport.runtimes.llama_cpp.runtime import LlamaCppRuntime
    from transport.runtimes.llama_cpp.source import GgufSource, parse_source

    asked, state = settings.llama_cpp, state_path(environ)
    hub = huggingface_spec(settings.providers) or HuggingFaceSpec()
    downloads = state / "models" if hub.cache_dir is None else Path(hub.cache_dir).expanduser().absolute()
    sources = [] if asked.model is None else [parse_source(asked.model, downloads)]
    for model in hub.models:
        if model.local_path is None:
            sources.append(parse_source(model.name, downloads))
        else:
            sources.append(GgufSource(model.name, Path(model.local_path).expanduser().absolute()))
    runtime = LlamaCppRuntime(
        clock,
        tuple(sources),
        downloads,
        state / "run",
        ServerSettings(asked.context_length, asked.requests_at_once, asked.threads, hub.device),
        HuggingFace(token=None if asked.hub_token is None else asked.hub_token.reveal()),
    )
    return runtime, runtime


def _own_servers(settings: Settings) -> list[ProviderSpec]:
    """The OpenAI-compatible servers of this machine among the providers."""
    specs = provider_specs(settings.providers).values()
    return [spec for spec in specs if spec.dialect is Dialect.OPENAI and not spec.satellite]


def _remote_permit(settings: Settings, url: str) -> Permit | None:
    """To reach a runtime that the configuration puts on another machine, where it allows that."""
    parts = urlsplit(url)
    if not settings.allow_remote_runtimes or stays_here(parts.hostname or ""):
        return None
    tls = parts.scheme == "https"
    return Permit(Purpose.REMOTE_RUNTIME, parts.hostname or "", parts.port or (443 if tls else 80), tls)


def _refuse_remote(found: Mapping[str, Runtime], settings: Settings) -> None:
    for runtime in found.values():
        if not runtime.local and not settings.allow_remote_runtimes:
            raise ConfigError(
                f"{runtime.name} at {runtime.url} is not on this machine, so prompts would leave it; "
                "that needs allow_remote_runtimes: true"
            )


def _refuse_ourselves(found: Mapping[str, Runtime], settings: Settings) -> None:
    """An engine that asks itself never comes to an end."""
    own = _own_addresses(settings)
    for runtime in found.values():
        if runtime.url is not None and urlsplit(runtime.url).netloc.lower() in own:
            raise ConfigError(f"{runtime.name} at {runtime.url} is this engine itself; name the server behind it")


def _own_addresses(settings: Settings) -> set[str]:
    ports = [port for port in (settings.http.port, settings.ws.port) if port]
    if settings.services.enabled:
        ports += [one.port for one in service_ports(settings) if one.port]
    return {f"{host}:{port}" for host in OWN_HOSTS for port in ports}


def _only(found: dict[str, Runtime], name: str | None) -> dict[str, Runtime]:
    """All, or the one that `runtime` names."""
    if name is None:
        return found
    if name not in found:
        raise ConfigError(f"runtime: there is no runtime {name} ({', '.join(found) or 'none is switched on'})")
    return {name: found[name]}
