"""The registry against a dictionary: registering, heartbeats, expiry, leaving, and restarts at any moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from actors import registry
from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.registry import EXPIRY_S, HEARTBEAT_S, MAILBOX_COMMANDS, AgentRegistry, Command, RegistryHandle
from engine.agent_store import SqliteAgents
from engine.domain.agents import AgentCard, AgentEntry, loopback_port
from engine.domain.errors import InvalidRequest, NotFound, Overloaded, SessionConflict
from engine.store import Database
from tests.fakes.stores import ListedAgents

# A clock that jumps when all tasks wait does so while a thread works for one of them too. So what asks the database
# beside the registry runs in real time, and waits for nothing but answers.
EPOCH_S = 1_795_169_209.0


def wall_s() -> float:
    return EPOCH_S + trio.current_time()


def card(agent_id: str = "one", *capabilities: str, endpoint: str = "http://localhost:9000") -> AgentCard:
    return AgentCard(agent_id, f"Agent {agent_id}", capabilities or ("reasoning",), endpoint, metadata={"model": "m"})


@asynccontextmanager
async def running(store) -> AsyncIterator[RegistryHandle]:
    commands, inlet = mailbox[Command]("registry", MAILBOX_COMMANDS)
    handle = RegistryHandle(AgentRegistry(inlet, store, EngineClock.start(), wall_s), commands)
    async with trio.open_nursery() as nursery:
        await nursery.start(handle.registry.run)
        yield handle
        commands.close()


NAMES = st.sampled_from(["one", "two", "three"])
CAPABILITIES = st.lists(st.sampled_from(["reasoning", "tagging"]), min_size=1, unique=True).map(tuple)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), NAMES, CAPABILITIES),
        st.tuples(st.just("beat"), NAMES, st.sampled_from(["healthy", "degraded", "unhealthy"])),
        st.tuples(st.just("deregister"), NAMES, st.none()),
        st.tuples(st.just("wait"), st.sampled_from([1.0, HEARTBEAT_S, EXPIRY_S - 1.5, EXPIRY_S + 1]), st.none()),
        st.tuples(st.just("restart"), st.sampled_from([0.0, HEARTBEAT_S, EXPIRY_S + 1]), st.none()),
    ),
    max_size=40,
)


@attrs.define
class Known:
    """What the registry must know of an agent."""

    capabilities: tuple[str, ...]
    status: str
    seen_s: float


@attrs.define(eq=False)
class Model:
    agents: dict[str, Known] = attrs.field(factory=dict)

    def expire(self) -> None:
        horizon_s = trio.current_time() - EXPIRY_S
        self.agents = {name: known for name, known in self.agents.items() if known.seen_s > horizon_s}

    async def agrees(self, handle: RegistryHandle) -> None:
        self.expire()
        for asked in ((), ("reasoning",), ("reasoning", "tagging")):
            found = await handle.discover(asked)
            expected = {name: k for name, k in self.agents.items() if set(asked) <= set(k.capabilities)}
            assert {e.card.agent_id: (e.card.capabilities, e.status) for e in found} == {
                name: (known.capabilities, known.status) for name, known in expected.items()
            }
            assert len(found) == len(expected)

    async def step(self, handle: RegistryHandle, step: tuple) -> None:
        self.expire()
        kind, name, more = step
        match kind:
            case "register":
                await handle.register(card(name, *more))
                self.agents[name] = Known(more, "healthy", trio.current_time())
            case "beat" if name in self.agents:
                await handle.heartbeat(name, more)
                self.agents[name] = Known(self.agents[name].capabilities, more, trio.current_time())
            case "deregister" if name in self.agents:
                assert (await handle.deregister(name)).card.agent_id == name
                del self.agents[name]
            case "beat" | "deregister":
                with pytest.raises(NotFound):
                    await (handle.heartbeat(name) if kind == "beat" else handle.deregister(name))
            case "wait":
                await trio.sleep(name)


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_it_knows_what_a_dictionary_would_know_also_after_restarts(steps):
    async def check() -> None:
        model, database = Model(), Database()
        waiting = [*steps, ("restart", 0.0, None)]
        while waiting:
            async with running(SqliteAgents(database)) as handle:
                await model.agrees(handle)
                while (step := waiting.pop(0))[0] != "restart":
                    await model.step(handle, step)
                    await model.agrees(handle)
            await trio.sleep(step[1])
        await database.close()

    trio.run(check, clock=MockClock(autojump_threshold=0))


async def test_nobody_talks_a_service_of_the_engine_down(autojump_clock):
    async with running(ListedAgents()) as handle:
        await handle.register(card(), own=True)
        await trio.sleep(1)
        entry = await handle.heartbeat("one", "unhealthy")
        assert (entry.status, entry.seen_s) == ("healthy", EPOCH_S)
        assert [e.status for e in await handle.discover()] == ["healthy"]


async def test_for_services_of_the_engine_there_is_always_room(autojump_clock, monkeypatch):
    monkeypatch.setattr(registry, "AGENTS_MAX", 2)
    async with running(ListedAgents()) as handle:
        for name in ("one", "two"):
            await handle.register(card(name))
        with pytest.raises(Overloaded):
            await handle.register(card("three"))
        await handle.register(card("mine"), own=True)
        assert [e.card.agent_id for e in await handle.discover()] == ["one", "two", "mine"]


async def test_an_agent_that_says_nothing_is_gone_after_three_heartbeats(autojump_clock):
    store = ListedAgents()
    async with running(store) as handle:
        await handle.register(card())
        await trio.sleep(EXPIRY_S - 0.01)
        assert [e.card.agent_id for e in await handle.discover()] == ["one"]
        await trio.sleep(0.02)
        assert await handle.discover() == ()
        assert handle.registry.counters.expired == 1
        assert store.entries == {}


async def test_expiry_needs_nobody_to_ask(autojump_clock):
    store = ListedAgents()
    async with running(store) as handle:
        await handle.register(card())
        await trio.sleep(EXPIRY_S + 0.01)
        assert store.entries == {}
        assert handle.registry.agents == {}


async def test_what_is_answered_is_written_down_and_read_back(tmp_path):
    database = Database(tmp_path / "usage.db")
    async with running(SqliteAgents(database)) as handle:
        entry = await handle.register(card("one", "a", "b"))
        kept = await SqliteAgents(Database(tmp_path / "usage.db")).load()  # as after a kill at this moment
    assert kept == (entry,) == (AgentEntry(card("one", "a", "b"), "healthy", entry.registered_s, entry.seen_s),)


async def test_a_row_that_makes_no_sense_is_left_out(caplog):
    database = Database()
    store = SqliteAgents(database)
    await store.save([AgentEntry(card(), "healthy", 1.0, 1.0)], [])
    await database.call(lambda c: c.execute("INSERT INTO agents SELECT 'x', x'7b', status, 1, 1 FROM agents").rowcount)
    await database.call(
        lambda c: (
            c.execute("INSERT INTO agents SELECT 'y', card, 'odd', 1, 1 FROM agents WHERE agent_id = 'one'").rowcount
        )
    )
    assert [e.card.agent_id for e in await store.load()] == ["one"]
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://127.0.0.1:8050", 8050),
        ("http://LOCALHOST:1/", 1),
        ("http://[::1]:65535", 65_535),
        ("http://127.0.0.1", None),
        ("https://127.0.0.1:8050", None),
        ("http://127.0.0.1:65536", None),
        ("http://127.0.0.1:0", None),
        ("http://127.0.0.1:8050/x", None),
        ("http://127.0.0.1:8050?x", None),
        ("http://127.0.0.1:8050@evil.example", None),
        ("http://localhost.evil.example:8050", None),
        ("http://user@localhost:8050", None),
        ("http://0.0.0.0:8050", None),
        ("http://127.1:8050", None),
        ("http://2130706433:8050", None),
        ("http://10.0.0.1:8050", None),
        ("http://127.0.0.1:8050\n", None),
        ("http://127.0.0.1:٨٠", None),
        ("", None),
    ],
)
async def test_only_agents_of_this_machine_are_registered(autojump_clock, endpoint, port):
    assert loopback_port(endpoint) == port
    async with running(ListedAgents()) as handle:
        if port is None:
            with pytest.raises(InvalidRequest, match="endpoint"):
                await handle.register(card(endpoint=endpoint))
        else:
            assert (await handle.register(card(endpoint=endpoint))).card.endpoint == endpoint


async def test_the_engines_own_services_are_changed_by_the_engine_alone():
    async with running(SqliteAgents(database := Database())) as handle:
        await handle.register(card("one"))
        await handle.register(card("one", endpoint="http://localhost:8050"), own=True)
        with pytest.raises(SessionConflict):
            await handle.register(card("one"))
        with pytest.raises(SessionConflict):
            await handle.deregister("one")
        assert (await handle.discover())[0].card.endpoint == "http://localhost:8050"
        assert await SqliteAgents(database).load() == ()
        await handle.deregister("one", own=True)
        await handle.register(card("one"))


async def test_there_is_room_for_so_many_and_for_those_that_are_there(autojump_clock, monkeypatch):
    monkeypatch.setattr(registry, "AGENTS_MAX", 2)
    async with running(ListedAgents()) as handle:
        for name in ("one", "two", "one"):
            await handle.register(card(name))
        with pytest.raises(Overloaded):
            await handle.register(card("three"))
        await handle.deregister("one")
        await handle.register(card("three"))
        assert [e.card.agent_id for e in await handle.discover()] == ["two", "three"]


async def test_a_broken_disk_does_not_stop_it_and_gets_the_rest_later(autojump_clock, caplog):
    store = ListedAgents(broken=True)
    async with running(store) as handle:
        await handle.register(card("one"))
        await handle.register(card("two"))
        await handle.deregister("two")
        assert handle.registry.problem == "the disk is full"
        assert handle.registry.counters.failures == 4  # reading too
        store.broken = False
        await handle.register(card("three"))
        assert set(store.entries) == {"one", "three"}
        assert handle.registry.problem is None
    assert caplog.text.count("cannot be written") == 1


async def test_a_full_mailbox_refuses(autojump_clock):
    commands, inlet = mailbox[Command]("registry", 1)
    handle = RegistryHandle(AgentRegistry(inlet, ListedAgents(), EngineClock.start(), wall_s), commands)  # not run
    assert commands.offer(Command(registry._Discover(())))
    with pytest.raises(Overloaded):
        await handle.discover()
