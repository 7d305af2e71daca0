"""Our own services in a registry: there as long as we are, whatever the registry does."""

from __future__ import annotations

import attrs
import trio

from actors.registrar import BACKOFF_MAX_S, BACKOFF_S, GOODBYE_S, LOOK_S, OwnAgent, OwnRegistry, Registrar
from actors.registry import EXPIRY_S, HEARTBEAT_S
from engine.domain.agents import AgentCard
from engine.domain.errors import NotFound, RuntimeUnavailable
from tests.actors.test_registry import card, running
from tests.fakes.stores import ListedAgents


@attrs.define(eq=False)
class OddRegistry:
    """Keeps names and the times of all calls; `up` and `mute` make it fail and hang."""

    up: bool = True
    mute: bool = False
    agents: dict[str, AgentCard] = attrs.field(factory=dict)
    calls: list[tuple[float, str]] = attrs.field(factory=list)

    async def register(self, agent: OwnAgent) -> None:
        await self._called("register")
        self.agents[agent.agent_id] = agent.card()

    async def heartbeat(self, agent: OwnAgent) -> None:
        await self._called("heartbeat")
        if agent.agent_id not in self.agents:
            raise NotFound("no such agent")

    async def deregister(self, agent: OwnAgent) -> None:
        await self._called("deregister")
        del self.agents[agent.agent_id]

    async def _called(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append((round(trio.current_time(), 3), what))
        if self.mute:
            await trio.sleep_forever()
        if not self.up:
            raise RuntimeUnavailable("nothing listens there")


def ours(agent_id: str) -> OwnAgent:
    return OwnAgent(agent_id, lambda: card(agent_id), lambda: "healthy")


async def test_registered_at_start_kept_alive_and_gone_at_stop(autojump_clock):
    store = ListedAgents()
    async with running(store) as handle:
        async with trio.open_nursery() as nursery:
            await nursery.start(Registrar(OwnRegistry(handle), [ours("one"), ours("two")]).run)
            await trio.sleep(10 * EXPIRY_S)
            assert sorted(e.card.agent_id for e in await handle.discover()) == ["one", "two"]
            assert all(e.own for e in await handle.discover())
            nursery.cancel_scope.cancel()
        assert await handle.discover() == ()
    assert handle.registry.counters.deregistered == 2


async def test_a_registry_that_does_not_answer_is_asked_less_and_less_often(autojump_clock, caplog):
    odd = OddRegistry(up=False)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        registrar = Registrar(odd, [ours("one")])
        await nursery.start(registrar.run)
        await trio.sleep(300)
        gaps = [round(b - a, 3) for (a, _), (b, _) in zip(odd.calls, odd.calls[1:], strict=False)]
        assert odd.calls[0][0] - start < 0.01
        assert gaps[:8] == [BACKOFF_S, 2, 4, 8, 16, 32, BACKOFF_MAX_S, BACKOFF_MAX_S]
        assert registrar.failures == len(odd.calls)
        odd.up = True
        await trio.sleep(BACKOFF_MAX_S)
        assert set(odd.agents) == {"one"}
        nursery.cancel_scope.cancel()
    assert odd.agents == {}
    assert caplog.text.count("cannot be registered") == 1


async def test_forgotten_there_it_registers_anew(autojump_clock):
    odd = OddRegistry()
    async with trio.open_nursery() as nursery:
        await nursery.start(Registrar(odd, [ours("one")]).run)
        await trio.sleep(1)
        odd.agents.clear()
        await trio.sleep(HEARTBEAT_S)
        assert set(odd.agents) == {"one"}
        nursery.cancel_scope.cancel()
    assert [what for _, what in odd.calls] == ["register", "heartbeat", "register", "deregister"]


async def test_a_registry_that_hangs_does_not_hold_up_the_stop(autojump_clock):
    odd = OddRegistry()
    async with trio.open_nursery() as nursery:
        await nursery.start(Registrar(odd, [ours("one"), ours("two")]).run)
        await trio.sleep(1)
        odd.mute = True
        before_s = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - before_s < GOODBYE_S + 0.5


async def test_what_was_never_registered_is_not_deregistered(autojump_clock):
    odd = OddRegistry(up=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(Registrar(odd, [ours("one")]).run)
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    assert {what for _, what in odd.calls} == {"register"}


async def test_a_heartbeat_brings_what_changed(autojump_clock):
    model, status = ["small"], ["healthy"]

    def now() -> AgentCard:
        return attrs.evolve(card("one"), metadata={"model": model[-1]})

    async with running(ListedAgents()) as handle, trio.open_nursery() as nursery:
        await nursery.start(Registrar(OwnRegistry(handle), [OwnAgent("one", now, lambda: status[-1])]).run)
        await trio.sleep(1)
        model.append("big")
        status.append("unhealthy")
        await trio.sleep(LOOK_S + 0.1)  # a change of status is told at once, all else with the next heartbeat
        (entry,) = await handle.discover()
        assert (entry.card.model, entry.status, entry.own) == ("big", "unhealthy", True)
        model.append("bigger")
        await trio.sleep(HEARTBEAT_S + 0.1)
        assert (await handle.discover())[0].card.model == "bigger"
        assert handle.registry.counters.registered == 1
        nursery.cancel_scope.cancel()
