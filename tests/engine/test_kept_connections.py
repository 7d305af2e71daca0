"""Connections that the engine keeps to the servers it is configured with: bursts of questions go over one of them."""

from __future__ import annotations

import pytest
import trio

from actors.broker import MemoryLog
from actors.clock import EngineClock
from engine.config import policies_of
from engine.domain.models import Tier
from engine.keys import KeyFound
from engine.runtimes import LOCAL_IDLE_S, runtimes_for
from engine.satellites import broker_of, connections_kept, satellite_of
from engine.settings import BrokerSettings, OllamaSettings, OpenAISettings, Secret, Settings
from policies.broker import BrokerMode
from policies.providers import provider_specs
from policies.tiers import TierChoice
from tests.transport.test_connections import SOON_S, Server, serving
from transport.connections import ConnectionPool

SAID = b'{"version": "0.12.6", "models": [], "object": "list", "data": []}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(SAID) + SAID


async def runtimes_of(settings: Settings):
    return await runtimes_for(settings, EngineClock.start(), {}, policies_of(settings).tiers.low)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_burst_of_questions_to_a_server_of_this_machine_takes_one_connection(kind):
    server = Server(lambda *_: ANSWER)
    async with serving(server) as pool:
        url = f"http://127.0.0.1:{pool.port}"
        settings = Settings(
            ollama=OllamaSettings(enabled=kind == "ollama", spawn=False, url=url if kind == "ollama" else None),
            openai=OpenAISettings(base_url=url if kind == "openai" else None),
        )
        runtimes = await runtimes_of(settings)
        runtime, (kept,) = runtimes.by_name[kind], runtimes.pools
        assert (kept.name, kept.idle_s) == (kind, LOCAL_IDLE_S)
        kept.idle_s = SOON_S  # a busy machine may take that long between two questions
        async with runtimes.attended():
            for _ in range(3):
                assert (await runtime.probe()).up
                await runtime.list_models()
            assert server.connections == 1
            assert kept.figures.idle == 1
        assert kept.figures.idle == 0
        await runtime.probe()  # and as long as nobody attends to them each has its own
        await runtime.probe()
        assert server.connections == 3


async def test_connections_to_satellites_are_kept_while_the_broker_is_on():
    settings = Settings(
        providers={"openai": {"preferred_models": ["m"]}, "anthropic": {"preferred_models": ["m"]}},
        broker=BrokerSettings(mode="advisory"),
    )
    choice, clock = TierChoice(Tier.HYBRID, "chosen by the test"), EngineClock.start()
    broker = broker_of(settings, policies_of(settings), choice, MemoryLog())
    specs = provider_specs(settings.providers)
    satellites = {name: satellite_of(spec, clock, broker, KeyFound(Secret("k"))) for name, spec in specs.items()}
    pools = [satellite.connections for satellite in satellites.values()]
    assert [(pool.name, pool.host, pool.port, pool.tls) for pool in pools if isinstance(pool, ConnectionPool)] == [
        ("openai", "api.openai.com", 443, True),
        ("anthropic", "api.anthropic.com", 443, True),
    ]
    let_go = []
    broker.at_off.append(lambda: let_go.append(True))
    async with connections_kept(satellites):
        broker.switch(BrokerMode.HYBRID)
        assert let_go == []
        broker.switch(BrokerMode.DISABLED)
        assert let_go == [True]
    assert len(broker.at_off) == 3  # one of each provider
    await trio.lowlevel.checkpoint()
