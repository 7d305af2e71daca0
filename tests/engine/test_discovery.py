"""Which of registry, router and registrar there are by the settings, and that none of them can hurt the engine."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.clock import EngineClock
from actors.ledger import LedgerHandle
from actors.registrar import OwnAgent
from engine.discovery import RESTARTS, Discovery
from engine.domain.errors import InternalError, Overloaded
from engine.schemas import read_schemas
from engine.settings import ServiceSettings, Settings
from engine.store import Database
from tests.actors.test_registry import card
from tests.fakes.stores import ListedAgents, ListedUsage


def made(**services) -> Discovery:
    settings = Settings(services=ServiceSettings(**{"enabled": True, **services}))
    return Discovery.of(settings, EngineClock.start(), Database(), {}, LedgerHandle.of(ListedUsage()))


@pytest.mark.parametrize(
    ("services", "offered"),
    [
        ({}, [("registry", 6121), ("router", 6103)]),
        ({"registry_port": 0, "router_port": 7}, [("registry", 0), ("router", 7)]),
        ({"registry": "off"}, [("router", 6103)]),
        ({"registry": "http://127.0.0.1:6121"}, [("router", 6103)]),
        ({"router": "off"}, [("registry", 6121)]),
        ({"enabled": False}, []),
    ],
)
async def test_what_is_offered(services, offered):
    assert [(offer.name, offer.port) for offer in made(**services).offers(read_schemas())] == offered


@pytest.mark.parametrize("registry", ["http://192.168.1.5:6121", "https://127.0.0.1:6121", "on", "http://evil.example"])
def test_another_registry_is_on_this_machine(registry):
    with pytest.raises(ValueError, match="on this machine"):
        ServiceSettings(registry=registry)


async def test_until_it_is_closed(autojump_clock):
    discovery = made()
    assert discovery.registry is not None
    discovery.registry.registry.store = ListedAgents()
    discovery.agents.append(OwnAgent("one", lambda: card("one"), lambda: "healthy"))
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        await trio.sleep(1)
        assert [entry.own for entry in await discovery.registry.discover()] == [True]
        discovery.close()
    assert discovery.registry.registry.counters.deregistered == 1
    with pytest.raises(Overloaded):
        await discovery.registry.discover()


def failing():
    raise ZeroDivisionError


@attrs.define(eq=False)
class Crashing(ListedAgents):
    async def save(self, changed, gone):
        raise ZeroDivisionError


async def test_a_service_that_cannot_say_what_it_is_hurts_nobody(autojump_clock, caplog):
    discovery = made()
    assert discovery.registry is not None
    discovery.registry.registry.store = ListedAgents()
    discovery.agents.append(OwnAgent("one", failing, lambda: "healthy"))
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        await trio.sleep(60)
        assert "not registered any more" in caplog.text
        assert await discovery.registry.discover() == ()
        discovery.close()


async def test_a_registry_beyond_help_is_given_up(autojump_clock, caplog):
    discovery = made()
    assert discovery.registry is not None
    discovery.registry.registry.store = Crashing()
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        for _ in range(RESTARTS.max_restarts + 1):
            with pytest.raises(InternalError):  # nobody is left waiting
                await discovery.registry.register(card("one"))
        await trio.sleep(1)
        with pytest.raises(Overloaded):
            await discovery.registry.discover()
        assert "given up" in caplog.text
        discovery.close()
