"""The registry over HTTP: what it takes, what it tells, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from actors.clock import EngineClock
from actors.kernel import mailbox
from actors.registry import EXPIRY_S, HEARTBEAT_S, AgentRegistry, Command, RegistryHandle
from tests.actors.test_registry import card, wall_s
from tests.fakes.http import Http
from tests.fakes.stores import ListedAgents
from web import registry
from web.app import app_of

LLAMA = {
    "agent_id": "llm_llama31_8b",
    "name": "Llama 3.1 8B Service",
    "tier": 2,
    "role": "execution",
    "capabilities": ["reasoning", "planning", "code_review", "explanation"],
    "endpoint": "http://localhost:8050",
    "transport": "rest",
    "cost_per_1k_tokens": 0.0,
    "metadata": {"model": "llama3.1:8b", "provider": "ollama", "parameters": "8B", "avg_latency_ms": None},
}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Http, RegistryHandle]]:
    commands, inlet = mailbox[Command]("registry", 16)
    handle = RegistryHandle(AgentRegistry(inlet, ListedAgents(), EngineClock.start(), wall_s), commands)
    routes = registry.blueprint(handle, 6121, trio.current_time)
    app = app_of([routes], body_bytes_max=65_536, lens_body_bytes_max=65_536, body_timeout_s=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(handle.registry.run)
        yield Http(app), handle
        handle.close()


def changed(**more: Any) -> dict[str, Any]:
    return LLAMA | more


async def test_what_was_registered_is_found_by_capability(autojump_clock):
    async with serving() as (http, _):
        answer = await http.post("/register", LLAMA)
        assert answer.status == 200
        assert answer.json["success"] is True
        assert (answer.json["heartbeat_s"], answer.json["expires_s"]) == (HEARTBEAT_S, EXPIRY_S)
        await http.post("/register", changed(agent_id="tiny", capabilities=["tagging"], endpoint="http://[::1]:8051"))
        (agent,) = (await http.post("/discover", {"capabilities": ["reasoning"]})).json["agents"]
        assert {key: agent[key] for key in LLAMA} == LLAMA
        assert agent["status"] == "healthy"
        assert agent["registered_at"] == agent["last_seen_at"] == "2026-11-20T10:06:49.000Z"
        for asked in ({}, b""):
            assert len((await http.post("/discover", asked)).json["agents"]) == 2
        both = {"capabilities": ["reasoning", "tagging"]}
        assert (await http.post("/discover", both)).json == {"agents": []}


async def test_heartbeats_keep_it_and_without_them_it_goes(autojump_clock):
    async with serving() as (http, _):
        await http.post("/register", LLAMA)
        for status in ("degraded", "unhealthy", "healthy"):
            await trio.sleep(EXPIRY_S - 1)
            beat = {"agent_id": "llm_llama31_8b", "status": status}
            assert (await http.post("/heartbeat", beat)).json["status"] == status
            assert (await http.post("/discover", {})).json["agents"][0]["status"] == status
        await trio.sleep(EXPIRY_S + 1)
        assert (await http.post("/discover", {})).json == {"agents": []}
        answer = await http.post("/heartbeat", {"agent_id": "llm_llama31_8b"})
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        assert (await http.get("/health")).json["counters"]["expired"] == 1


async def test_deregistered_it_is_gone(autojump_clock):
    async with serving() as (http, _):
        await http.post("/register", LLAMA)
        answer = await http.post("/deregister", {"agent_id": "llm_llama31_8b"})
        assert answer.json == {"success": True, "agent_id": "llm_llama31_8b"}
        assert (await http.post("/deregister", {"agent_id": "llm_llama31_8b"})).status == 404


async def test_services_of_the_engine_cannot_be_taken_over(autojump_clock):
    async with serving() as (http, handle):
        await handle.register(card("llm_llama31_8b", endpoint="http://localhost:8050"), own=True)
        for path, body in (("/register", LLAMA), ("/deregister", {"agent_id": "llm_llama31_8b"})):
            answer = await http.post(path, body)
            assert (answer.status, answer.error["code"]) == (409, "SESSION_CONFLICT")


@pytest.mark.parametrize(
    "body",
    [
        changed(endpoint="http://10.0.0.5:8050"),
        changed(endpoint="https://localhost:8050"),
        changed(endpoint="http://localhost:8050/../x"),
        changed(endpoint="http://localhost.example.org:8050"),
        changed(agent_id=""),
        changed(agent_id="../x"),
        changed(agent_id="x\n"),
        changed(name="x\n"),
        changed(capabilities=["x\n"]),
        changed(name="a\x1b[31m"),
        changed(capabilities=[]),
        changed(capabilities=["a b"]),
        changed(capabilities=[str(n) for n in range(65)]),
        changed(transport="grpc"),
        changed(cost_per_1k_tokens=-1),
        changed(tier="2"),
        changed(metadata={"deep": {"er": 1}}),
        changed(metadata={str(n): 1 for n in range(65)}),
        changed(more=1),
        {"agent_id": "x"},
        [],
        b"[" * 16_000,
        b"{",
    ],
)
async def test_what_makes_no_agent_is_refused(autojump_clock, body):
    async with serving() as (http, handle):
        answer = await http.post("/register", body)
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
        assert handle.registry.agents == {}


async def test_its_own_health(autojump_clock):
    async with serving() as (http, handle):
        await http.post("/register", LLAMA)
        body = (await http.get("/health")).json
        assert (body["status"], body["service"], body["port"], body["agents"]) == ("healthy", "registry", 6121, 1)
        handle.registry.store.broken = True
        await http.post("/register", LLAMA)
        body = (await http.get("/health")).json
        assert (body["status"], body["problem"]) == ("degraded", "the disk is full")
        assert (await http.get("/register")).status == 405
        assert (await http.get("/nothing")).status == 404


async def test_a_definition_has_a_bound(autojump_clock):
    async with serving() as (http, _):
        answer = await http.post("/register", changed(metadata={f"k{n}": "v" * 500 for n in range(40)}))
        assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
        assert (await http.post("/discover", {})).json["agents"] == []


async def test_a_path_that_is_not_there_is_told_what_is(autojump_clock):
    async with serving() as (http, _):
        answer = await http.post("/route", {"capability": "x"})
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        assert "/discover" in answer.error["message"]
