"""The provider router over HTTP: the choice with its reasons, the log, and what another map would have done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.ledger import LedgerHandle
from actors.registry import AgentRegistry, Command, RegistryHandle
from policies.load import load_policies
from tests.actors.test_registry import card, wall_s
from tests.fakes.http import Http
from tests.fakes.stores import ListedAgents, ListedUsage
from web import router
from web.app import app_of
from web.router import Router

BIG, SMALL = "http://localhost:8050", "http://localhost:8051"


@attrs.define(eq=False)
class Serving:
    http: Http
    registry: RegistryHandle
    usage: ListedUsage
    broker: list[bool]

    async def registered(self, *endpoints: str) -> None:
        for number, endpoint in enumerate(endpoints):
            await self.registry.register(card(f"agent-{number}", "x", endpoint=endpoint))


@asynccontextmanager
async def serving(*, with_registry: bool = True) -> AsyncIterator[Serving]:
    commands, inlet = mailbox[Command]("registry", 16)
    handle = RegistryHandle(AgentRegistry(inlet, ListedAgents(), EngineClock.start(), wall_s), commands)
    usage, broker = ListedUsage(), [False]
    ledger = LedgerHandle.of(usage)
    table = load_policies().routes.table()
    made = Router(table, handle if with_registry else None, ledger, wall_s, lambda: broker[0])
    routes = router.blueprint(made, 6103, trio.current_time)
    app = app_of([routes], body_bytes_max=65_536, lens_body_bytes_max=65_536, body_timeout_s=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(handle.registry.run)
        await nursery.start(ledger.ledger.run)
        yield Serving(Http(app), handle, usage, broker)
        handle.close()
        ledger.close()


async def test_the_local_one_is_chosen_and_the_reasons_are_told(autojump_clock):
    async with serving() as s:
        await s.registered(BIG)
        answer = await s.http.post("/route", {"capability": "reasoning", "prefer_local": True})
        body = answer.json
        assert (body["provider"], body["model"], body["endpoint"]) == ("local", "llama3.1:8b", BIG)
        assert (body["agent_id"], body["cost_per_1k_tokens"], body["fallback_reason"]) == ("agent-0", 0.0, None)
        assert body["agent_model"] == "m"  # what it says it serves; here it is not the map's
        assert [one["verdict"] for one in body["candidates"]] == ["chosen", "broker_off", "broker_off"]
        assert answer.headers["x-wf-route"] == "map/local"


async def test_a_service_that_is_gone_is_passed_over_for_the_next_local_one(autojump_clock):
    async with serving() as s:
        await s.registered(BIG)
        body = (await s.http.post("/route", {"capability": "classification"})).json
        assert (body["endpoint"], body["model"]) == (BIG, "llama3.1:8b")
        assert body["fallback_reason"] == "no living agent is registered at its endpoint"
        await trio.sleep(100)  # and now nobody is alive
        assert (await s.http.post("/route", {"capability": "classification"})).status == 503


@pytest.mark.parametrize("prefer_local", [True, False])
async def test_without_anybody_here_nothing_elsewhere_is_named_while_the_broker_is_off(autojump_clock, prefer_local):
    async with serving() as s:
        asked = {"capability": "reasoning", "prefer_local": prefer_local}
        answer = await s.http.post("/route", asked)
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (503, "FALLBACK_FAILED", True)
        told = [(one["provider"], one["verdict"]) for one in answer.error["details"]["candidates"]]
        assert told == [("local", "not_registered"), ("anthropic", "broker_off"), ("openai", "broker_off")]
        assert all(one["reason"] for one in answer.error["details"]["candidates"])
        s.broker[0] = True
        body = (await s.http.post("/route", asked)).json
        assert (body["provider"], body["endpoint"], body["cost_per_1k_tokens"]) == ("anthropic", None, None)


async def test_without_a_registry_the_map_is_taken_at_its_word_and_says_so(autojump_clock):
    async with serving(with_registry=False) as s:
        body = (await s.http.post("/route", {"capability": "reasoning"})).json
        assert body["endpoint"] == BIG
        assert "there is no registry here" in body["reason"]


async def test_a_capability_nobody_has(autojump_clock):
    async with serving() as s:
        answer = await s.http.post("/route", {"capability": "levitation"})
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        assert "reasoning" in answer.error["details"]["available"]
        assert s.usage.logged == []


async def test_what_if_the_map_had_been_another_one(autojump_clock):
    async with serving() as s:
        await s.registered(BIG, SMALL)
        for capability in ("classification", "classification", "reasoning"):
            await s.http.post("/route", {"capability": capability})
        await s.registry.deregister("agent-1")  # what was known then counts, not what is known now
        new = {
            "classification": [{"provider": "local", "model": "llama3.1:8b", "endpoint": BIG}],
            "reasoning": [{"provider": "openai", "model": "gpt-4"}],
        }
        body = (await s.http.post("/what-if", {"capabilities": new})).json
        assert (body["replayed"], body["unchanged"], body["changed"], body["lost"]) == (3, 0, 3, 1)
        assert body["by_capability"] == {"classification": [2, 2], "reasoning": [1, 1]}
        first = body["shown"][0]
        assert (first["before"]["endpoint"], first["after"]["endpoint"]) == (SMALL, BIG)
        assert body["map_hash"] != body["before_hash"]
        same = (await s.http.get("/map")).json["capabilities"]
        body = (await s.http.post("/what-if", {"capabilities": same, "limit": 2})).json
        assert (body["replayed"], body["changed"]) == (2, 0)
        assert body["map_hash"] == body["before_hash"]


async def test_decisions_are_logged_the_latest_first(autojump_clock):
    async with serving() as s:
        await s.registered(BIG)
        await s.http.post("/route", {"capability": "reasoning"})
        await s.http.post("/route", {"capability": "filtering"})
        body = (await s.http.get("/decisions?limit=5")).json
        assert [(one["capability"], one["fallback"]) for one in body["decisions"]] == [
            ("filtering", "not_registered"),
            ("reasoning", None),
        ]
        assert body["decisions"][0]["chosen"] is None
        assert body["decisions"][1]["chosen"]["endpoint"] == BIG
        for query in ("0", "1001", "x", ""):
            assert (await s.http.get(f"/decisions?limit={query}")).status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/route", {}),
        ("/route", {"capability": "a b"}),
        ("/route", {"capability": "x", "prefer_local": "yes"}),
        ("/route", {"capability": "x", "url": "http://10.0.0.1"}),
        ("/what-if", {"capabilities": {"x": [{"provider": "local", "model": "a", "endpoint": "http://10.0.0.1:1"}]}}),
        ("/what-if", {"capabilities": {"x": [{"provider": "local", "model": "a"}]}}),
        ("/what-if", {"capabilities": {"a b": []}}),
        ("/what-if", {"capabilities": {}, "limit": 0}),
        ("/what-if", {"capabilities": {f"c{n}": [] for n in range(257)}}),
        ("/what-if", {"capabilities": {"x": [{"provider": "openai", "model": "m"}] * 17}}),
        ("/what-if", b"[" * 60_000),
    ],
)
async def test_what_makes_no_request_is_refused(autojump_clock, path, body):
    async with serving() as s:
        answer = await s.http.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")


async def test_a_path_that_is_not_there_is_told_what_is(autojump_clock):
    async with serving() as s:
        answer = await s.http.get("/register")
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        assert "/route" in answer.error["message"]


async def test_its_own_health(autojump_clock):
    async with serving() as s:
        body = (await s.http.get("/health")).json
        assert (body["status"], body["port"], body["registry"], body["broker_on"]) == ("healthy", 6103, True, False)
        assert body["map_hash"] == (await s.http.get("/map")).json["map_hash"]
