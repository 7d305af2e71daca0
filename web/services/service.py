"""A local service: a name, and the model of this engine that answers for it. Nothing here owns a task."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

import attrs
import trio

from actors.catalog import SETTLE_S, ModelRef
from engine.domain.errors import EngineError, ModelNotFound
from engine.domain.generation import EndReason
from engine.domain.models import Capability, ModelState
from engine.domain.telemetry import RECENT_MAX, percentile
from engine.domain.usage import FALLBACK
from policies.services import Offer, ServiceEntry, ServiceTable, stand_in
from policies.taxonomy import Taxonomy
from web.handles import Engine
from web.service_bodies import ServiceModel

ANSWERED: Final = frozenset({EndReason.FINISHED, EndReason.LENGTH, EndReason.STOP})

logger = logging.getLogger("wf.services")


@attrs.frozen
class Chosen:
    """The model that answers. `fallback_reason` says why it is not the one that the service is named for; None when it
    is."""

    model: ModelRef
    wanted: str
    fallback_reason: str | None

    def headers(self) -> dict[str, str]:
        return {} if self.fallback_reason is None else {"x-wf-fallback": self.fallback_reason}


@attrs.define(eq=False)
class Figures:
    """How long this service took for what it answered whole, in ms; the last 512 answers count."""

    latency_ms: deque[float] = attrs.field(factory=lambda: deque(maxlen=RECENT_MAX))

    @property
    def average_ms(self) -> float | None:
        return sum(self.latency_ms) / len(self.latency_ms) if self.latency_ms else None

    @property
    def p95_ms(self) -> float | None:
        return percentile(self.latency_ms, 95)


@attrs.define(eq=False)
class Service:
    """One entry of the table on a port of its own. `port` is the real one."""

    name: str
    entry: ServiceEntry
    models: tuple[str, ...]  # the one it is named for, then those to try instead
    taxonomy: Taxonomy
    engine: Engine
    port: int
    started_us: int
    figures: Figures = attrs.field(factory=Figures)
    _told: str | None = None  # what was logged last

    @property
    def agent_id(self) -> str:
        """In a registry of agents, and in the figures of usage."""
        return self.entry.agent_id or self.name

    @classmethod
    def of(cls, name: str, table: ServiceTable, taxonomy: Taxonomy, engine: Engine, port: int) -> Service:
        """The service called `name`. The engine's aliases and its passive mode are the lens's own, not a service's."""
        own = attrs.evolve(engine, lens=attrs.evolve(engine.lens, mode="active", aliases={}))
        return cls(name, table.entries[name], table.models_for(name), taxonomy, own, port, engine.clock())

    def current(self) -> Chosen | None:
        """The model that would answer now, from what is known of the runtimes; None when there is none. Services are
        local: a model on another machine never answers, whatever its name."""
        catalog, wanted = self.engine.catalog, self.models[0]
        for name in self.models:
            try:
                model = catalog.find(name)
            except ModelNotFound:
                continue
            if model.runtime.local:
                return Chosen(model, wanted, None if name == wanted else _reason(wanted, model.name))
        offers = {model.name: (model, _offer(model)) for model in catalog.models}
        found = stand_in([offer for _, offer in offers.values()])
        return None if found is None else Chosen(offers[found][0], wanted, _reason(wanted, found))

    async def choose(self) -> Chosen:
        """The model that is to answer. While the one that was named is not here, a runtime that is being started is
        waited for, up to 10 s, and with `pull: auto` the model is downloaded.

        Raises ModelNotFound when there is no local model at all."""
        catalog, wanted = self.engine.catalog, self.models[0]
        await catalog.asked.wait()
        chosen = self.current()
        if chosen is None or chosen.fallback_reason is not None:
            if not catalog.settled.is_set():
                with trio.move_on_after(SETTLE_S):
                    await catalog.settled.wait()
                await catalog.refresh()
            if self.engine.pulls.policy == "auto":
                await self._pull(wanted)
            chosen = self.current()
        if chosen is None:
            raise ModelNotFound(
                f"no local model is here to answer for {self.name}; `wf pull {wanted}` downloads the one it is for",
                model=wanted,
            )
        self._tell(chosen.fallback_reason)
        FALLBACK.set(chosen.fallback_reason)
        return chosen

    def is_loaded(self, chosen: Chosen) -> bool:
        return self.engine.pool.pool.status(chosen.model.name).state is ModelState.READY

    def ended(self, session_id: str, began_us: int) -> None:
        """A request is over; it counts when its session came to an end of its own."""
        try:
            session = self.engine.sessions.get(session_id)
        except EngineError:
            return  # its record is gone already
        if session.reason in ANSWERED:
            self.took(began_us)

    def took(self, began_us: int) -> None:
        self.figures.latency_ms.append((self.engine.clock() - began_us) / 1000)

    async def _pull(self, model: str) -> None:
        """A download that fails is no reason not to answer with another model."""
        try:
            await self.engine.pulls.resolve(model, explicit=False)
        except EngineError as error:
            logger.warning("service %s: %s", self.name, error.message)

    def _tell(self, reason: str | None) -> None:
        if reason is not None and reason != self._told:
            logger.warning("service %s: %s", self.name, reason)
        self._told = reason


def _reason(wanted: str, model: str) -> str:
    return f"{wanted} is not here; {model} answers in its place"


def _offer(model: ModelRef) -> Offer:
    """A server that states what its models can do and leaves words out has a model for something else."""
    told = model.info.capabilities
    silent = not told and "capabilities" not in model.info.details
    answers = silent or Capability.COMPLETION in told or Capability.CHAT in told
    return Offer(model.name, model.runtime.kind, model.runtime.local, answers)


def agent_definition(service: Service, endpoint: str) -> dict[str, Any]:
    """What the service says of itself to an agent registry. Performance is measured here, null before the first
    answer."""
    entry, chosen = service.entry, service.current()
    facts = ServiceModel(service.models[0], None, None, None, None) if chosen is None else described(chosen)
    figures = None if chosen is None else service.engine.telemetry.models.get(chosen.model.name)
    special = {}
    if entry.kind == "classifier":
        versions = {"domain_taxonomy_version": service.taxonomy.domains.version}
        special = {"specialized_for": entry.specialized_for, **versions}
    metadata = {
        "model": facts.name,
        "provider": None if chosen is None else chosen.model.runtime.kind,
        "parameters": facts.parameters,
        "quantization": facts.quantization,
        **special,
        "avg_latency_ms": service.figures.average_ms,
        "throughput_tok_s": None if figures is None else figures.tps_average,
        "requested_model": service.models[0],
    }
    return {
        "agent_id": service.agent_id,
        "name": entry.agent_name or entry.title,
        "tier": entry.tier,
        "role": entry.role,
        "capabilities": list(entry.capabilities),
        "endpoint": endpoint,
        "transport": "rest",
        "cost_per_1k_tokens": 0.0,
        "metadata": metadata,
    }


def described(chosen: Chosen) -> ServiceModel:
    """What is known of a model, in the words of `/info`; null where its runtime does not say."""
    details = chosen.model.info.details
    size = details.get("parameter_size") or details.get("parameters")
    return ServiceModel(
        name=chosen.model.name,
        parameters=_rounded(size) if isinstance(size, int) else size,
        quantization=details.get("quantization_level") or details.get("quantization"),
        context_length=details.get("context_length"),
        embedding_dim=details.get("embedding_length"),
    )


def _rounded(count: int) -> str:
    """A count of parameters as people say it: 8.0B, 1.6M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
