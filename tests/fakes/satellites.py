"""The HTTP API over an engine with satellites, in virtual time: real actors, a scripted local runtime, providers in
memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from actors.broker import MemoryLog
from actors.clock import EngineClock
from engine.app import handles
from engine.config import policies_of
from engine.core import Core
from engine.domain.models import Tier
from engine.keys import KeyFound
from engine.satellites import broker_of, satellite_of
from engine.schemas import read_schemas
from engine.settings import BrokerSettings, Secret, Settings
from policies.providers import provider_specs
from policies.tiers import TierChoice
from tests.fakes.api import ASSETS, TOKEN, WS_PORT, Api, ndjson
from tests.fakes.cloud import Cloud
from tests.fakes.runtime import ScriptedRuntime, words
from tests.fakes.slice import Slice
from tests.fakes.streams import KEY
from web.app import create_app

PROVIDERS: Mapping[str, Any] = {
    "openai": {"preferred_models": ["gpt-4o-mini"]},
    "anthropic": {"preferred_models": ["claude-haiku-4-5"]},
}
QUESTION = "a secret question"
ASKED: Mapping[str, Any] = {"model": "openai/gpt-4o-mini", "prompt": QUESTION, "broker": "allow", "stream": True}


@attrs.define(eq=False)
class SatelliteRig:
    """`local` is the runtime of this machine, `log` what the broker wrote down."""

    api: Api
    cloud: Cloud
    local: ScriptedRuntime
    log: MemoryLog

    async def generate(self, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        return await self.api.post("/generate", {**ASKED, **more}, **(headers or {}))

    async def events(self, **more: Any) -> list[dict[str, Any]]:
        """The events of an answer that was begun."""
        answer = await self.generate(**more)
        assert answer.status == 200, answer.body
        return ndjson(answer.body)

    async def switch(self, mode: str, token: str = TOKEN) -> Any:
        return await self.api.post("/broker", {"mode": mode}, **{"x-wf-token": token})


@asynccontextmanager
async def satellite_rig(
    *replies: Any, mode: str = "advisory", tier: Tier = Tier.HYBRID, script: Any = None, **more: Any
) -> AsyncIterator[SatelliteRig]:
    """Providers that play `replies`, whoever is asked. `more` are settings."""
    settings = Settings(**{"providers": dict(PROVIDERS), "broker": BrokerSettings(mode=mode)} | more)
    policies, choice, clock = policies_of(settings), TierChoice(tier, "chosen by the test"), EngineClock.start()
    cloud, log = Cloud(list(replies)), MemoryLog()
    local = ScriptedRuntime(clock, script or words(2), name="ollama", kind="ollama")
    broker = broker_of(settings, policies, choice, log)
    satellites = {
        name: satellite_of(spec, clock, broker, KeyFound(Secret(KEY)), cloud.make)
        for name, spec in provider_specs(settings.providers).items()
        if spec.satellite
    }
    core = Core.build({"ollama": local, **satellites}, clock, settings, policies, choice, broker=broker)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await core.catalog.asked.wait()
        engine = handles(core, settings, policies, choice, TOKEN, WS_PORT, {})
        limits = {"body_bytes_max": 1_048_576, "lens_body_bytes_max": 33_554_432, "body_timeout_s": 10.0}
        app = create_app(engine, ASSETS, read_schemas(), **limits)
        yield SatelliteRig(Api(Slice(core, local, clock), engine, app), cloud, local, log)
        core.close()
