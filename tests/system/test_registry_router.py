"""The registry, the router and the ledger of a real engine over real sockets."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.system.process import WATCHDOG_S, EngineProcess

TABLE = {name: {"port": 0} for name in ("llama31_8b", "tinyllama", "tlc_domain_classifier")}
OTHERS = {name: {"port": 0, "agent_id": f"other_{name}"} for name in TABLE}
FREE = {
    "WF_SERVICES__TABLE": json.dumps(TABLE),
    "WF_SERVICES__REGISTRY_PORT": "0",
    "WF_SERVICES__ROUTER_PORT": "0",
}
OURS = {"llm_llama31_8b", "llm_tinyllama_1b", "tlc_domain_classifier"}
AGENT = {"agent_id": "mine", "name": "Mine", "capabilities": ["singing"], "endpoint": "http://127.0.0.1:9"}
ASK = {"model": "synthetic/steady", "prompt": "hello", "stream": True, "parameters": {"max_tokens": 5}}

Start = Callable[..., EngineProcess]


class Service:
    """A service of the engine, by its name in the port file."""

    def __init__(self, engine: EngineProcess, name: str) -> None:
        self.url = json.loads((engine.folder / "ports.json").read_bytes())["services"][name]
        self.http = httpx.Client(base_url=self.url, trust_env=False, verify=False, timeout=WATCHDOG_S)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()


def started(start: Start, **env: str) -> EngineProcess:
    return start("--services", env=FREE | env)


def discovered(registry: Service, *capabilities: str) -> dict[str, dict[str, Any]]:
    found = registry.post("/discover", {"capabilities": list(capabilities)}).json()["agents"]
    return {agent["agent_id"]: agent for agent in found}


def settled(registry: Service) -> dict[str, dict[str, Any]]:
    """Ours in the registry, once each of them is there and well: they register themselves after the start."""
    agents = discovered(registry)
    return agents if OURS <= agents.keys() and all(a["status"] == "healthy" for a in agents.values()) else {}


def models_here(engine: EngineProcess) -> bool:
    with engine.client() as http:
        return len(http.get("/models").json()["models"]) > 0


def test_our_services_are_registered_and_the_router_leads_to_them(start: Start):
    engine = started(start)
    engine.wait_for(lambda: models_here(engine))
    with Service(engine, "registry") as registry, Service(engine, "router") as router:
        assert set(engine.wait_for(lambda: settled(registry))) == OURS
        llama = discovered(registry, "reasoning")["llm_llama31_8b"]
        assert llama["endpoint"] == Service(engine, "llama31_8b").url.replace("127.0.0.1", "localhost")
        route = router.post("/route", {"capability": "reasoning", "prefer_local": True})
        assert route.status_code == 200
        assert (route.json()["provider"], route.json()["endpoint"]) == ("local", llama["endpoint"])
        answer = httpx.post(
            f"{route.json()['endpoint'].replace('localhost', '127.0.0.1')}/generate",
            json={"prompt": "x", "stream": False, "options": {"num_predict": 3}},
            trust_env=False, verify=False, timeout=WATCHDOG_S,
        )  # fmt: skip
        assert answer.json()["done"] is True
        replayed = router.post("/what-if", {"capabilities": {}}).json()
        assert (replayed["replayed"], replayed["lost"]) == (1, 0)  # it registered the capability itself
    with engine.client() as http:
        usage = engine.wait_for(lambda: (u := http.get("/usage?by=agent").json())["totals"]["requests"] and u)
        assert usage["totals"]["requests"] == 1
        assert usage["totals"]["cost_usd"] == 0
        assert usage["ledger"]["persistent"] is True
        told = {(row["place"], row["reason"].partition(";")[0]) for row in usage["fallbacks"]}
        assert ("session", "llama3.1:8b is not here") in told


def test_the_guards_of_the_api_hold_here_too(start: Start):
    engine = started(start)
    with Service(engine, "registry") as registry, Service(engine, "router") as router:
        for service, path in ((registry, "/register"), (router, "/route")):
            assert service.post(path, AGENT, host="evil.example").status_code == 403
            assert service.post(path, AGENT, origin="http://evil.example").status_code == 403
            refused = service.http.post(path, content=json.dumps(AGENT), headers={"sec-fetch-site": "cross-site"})
            assert refused.status_code == 403
        assert registry.post("/register", AGENT | {"endpoint": "http://192.168.1.5:80"}).status_code == 400
        assert registry.post("/register", AGENT).status_code == 200  # no token is needed
        engine.wait_for(lambda: "llm_llama31_8b" in discovered(registry))
        assert registry.post("/deregister", {"agent_id": "llm_llama31_8b"}).status_code == 409


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_knows_who_registered_and_what_was_used(start: Start, number: signal.Signals):
    engine = started(start)
    with Service(engine, "registry") as registry, engine.client() as http:
        engine.wait_for(lambda: models_here(engine))
        assert registry.post("/register", AGENT).status_code == 200
        http.post("/generate", json=ASK, headers={"x-wf-agent": "planner"}).read()
        before = engine.wait_for(lambda: (u := http.get("/usage?by=agent").json())["totals"]["requests"] and u)
        row = http.get("/usage?by=agent").json()["rows"][0]
    engine.signal(number)
    engine.wait_exit()
    (engine.folder / "ports.json").unlink(missing_ok=True)  # one that is killed leaves it
    again = started(start)
    with Service(again, "registry") as registry, again.client() as http:
        assert discovered(registry, "singing")["mine"]["endpoint"] == AGENT["endpoint"]
        after = http.get("/usage?by=agent").json()
        assert after["rows"] == [row] == before["rows"]
        assert row["key"] == "planner"


def test_with_another_registry_ours_register_there_and_leave_it(start: Start, tmp_path):
    first = started(start)
    with Service(first, "registry") as registry:
        registry.post("/register", AGENT)
        elsewhere = {"WF_SERVICES__REGISTRY": registry.url, "WF_SERVICES__TABLE": json.dumps(OTHERS)}
        second = start("--services", folder=tmp_path / "second", env=FREE | elsewhere)
        assert "registry" not in json.loads((second.folder / "ports.json").read_bytes())["services"]
        second.wait_for(lambda: "other_llama31_8b" in discovered(registry))
        second.signal(signal.SIGTERM)
        assert second.wait_exit() == 0
        assert set(discovered(registry)) == OURS | {"mine"}


def test_a_registry_that_is_not_there_is_a_warning_and_no_failed_start(start: Start):
    engine = started(start, WF_SERVICES__REGISTRY="http://127.0.0.1:9")
    engine.wait_for(lambda: "cannot be registered" in engine.stderr())
    with Service(engine, "llama31_8b") as service:
        assert service.http.get("/info").status_code == 200
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0


def test_switched_off_neither_listens(start: Start):
    engine = started(start, WF_SERVICES__REGISTRY="off", WF_SERVICES__ROUTER="off")
    assert set(json.loads((engine.folder / "ports.json").read_bytes())["services"]) == set(TABLE)


def test_a_damaged_file_does_not_keep_the_engine_from_starting(start: Start, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "usage.db").write_bytes(b"no database" * 1000)
    engine = started(start)
    with engine.client() as http:
        assert http.get("/usage").json()["ledger"] == {"persistent": True, "problem": None, "written": 0, "lost": 0}
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    with closing(sqlite3.connect(state / "usage.db")) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
