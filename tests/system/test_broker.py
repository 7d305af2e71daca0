"""The broker of a real engine. What would leave for real is only tried where there is no network that it could take:
tests/system/test_namespace.py runs this file in such a place."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.broker_log import verify_chain
from tests.system.process import EngineProcess

KEY = "sk-this-is-secret"
QUESTION = "a very secret question"
PROVIDERS = "{openai: {preferred_models: [gpt-4o-mini]}, anthropic: {preferred_models: [claude-haiku-4-5]}}"
HYBRID = {
    "WF_TIER": "hybrid", "WF_PROVIDERS": PROVIDERS, "WF_BROKER__MODE": "advisory",
    "OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY,
}  # fmt: skip


@pytest.fixture
def no_network() -> None:
    devices = Path("/proc/net/dev").read_text().splitlines()[2:]
    if {line.partition(":")[0].strip() for line in devices} != {"lo"}:
        pytest.skip("there is a network here: test_namespace.py runs this where there is none")


def ask(engine: EngineProcess, **more: Any) -> Any:
    with engine.client() as http:
        body = {"model": "openai/gpt-4o-mini", "prompt": QUESTION, "broker": "allow", "stream": True} | more
        return http.post("/generate", json=body)


def token_of(engine: EngineProcess) -> str:
    return (engine.state / "token").read_text().strip()


def test_it_is_off_as_it_is_shipped(start):
    engine = start()
    assert ask(engine).json()["error"]["code"] == "BROKER_DISABLED"
    with engine.client() as http:
        assert http.post("/broker", json={"mode": "advisory"}).status_code == 401
        refused = http.post("/broker", json={"mode": "advisory"}, headers={"x-wf-token": token_of(engine)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "BROKER_DISABLED")
        assert http.get("/broker").json()["bytes_out"] == 0
    assert not (engine.state / "broker.jsonl").exists()


def test_the_core_lock_refuses_a_broker_and_a_far_runtime(start):
    for more in ({"WF_BROKER__MODE": "advisory", "WF_TIER": "hybrid"}, {"WF_ALLOW_REMOTE_RUNTIMES": "true"}):
        engine = start("--core-lock", ready=False, env=more)
        assert engine.wait_exit() == 78
        assert "core_lock" in engine.stderr()


def test_under_the_core_lock_local_answers_go_on(start):
    engine = start("--core-lock", env={"WF_EMBEDDED__PACE_TPS": "0"})
    for model in ("synthetic/steady", "embedded/mixed"):
        answer = ask(engine, model=model, parameters={"max_tokens": 3})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[-1]["payload"]["reason"] in ("length", "finished")
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0


def test_a_call_that_gets_nowhere_is_told_and_written_down(start, no_network):
    engine = start(env=HYBRID)
    for model in ("openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"):
        lines = [json.loads(line) for line in ask(engine, model=model).text.splitlines()]
        assert lines[0]["payload"]["origin"] == "satellite"
        assert lines[-1]["payload"]["error"]["code"] == "RUNTIME_UNAVAILABLE"
    record = [json.loads(line) for line in (engine.state / "broker.jsonl").read_text().splitlines()]
    assert [(line["event"], line["provider"]) for line in record] == [
        ("asked", "openai"), ("ended", "openai"), ("asked", "anthropic"), ("ended", "anthropic"),
    ]  # fmt: skip
    assert {line["bytes_out"] for line in record if line["event"] == "ended"} == {0}
    with engine.client() as http:
        stats, health = http.get("/stats").json(), http.get("/health").json()
        assert stats["system"]["bytes_out"] == 0
        assert {p["name"]: p["success_rate"] for p in stats["providers"] if not p["local"]} == {
            "openai": 0,
            "anthropic": 0,
        }
        assert health["status"] == "ok"
        shown = http.get("/broker").text + http.get("/stats").text + http.get("/models").text + json.dumps(health)
    engine.signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    chain = verify_chain(engine.state)
    assert (chain.lines, chain.broken) == (4, None)
    told = shown + engine.stdout() + engine.stderr() + json.dumps(record)
    assert KEY not in told
    assert QUESTION not in told


def test_a_restart_remembers_what_was_used_up(start, tmp_path, no_network):
    env = HYBRID | {"WF_POLICIES__BROKER__REQUESTS_PER_HOUR": "2", "WF_POLICIES__BROKER__RETRY__ATTEMPTS_MAX": "1"}
    for expected in ("RUNTIME_UNAVAILABLE", "RUNTIME_UNAVAILABLE"):
        engine = start(folder=tmp_path / "one", env=env)
        assert expected in ask(engine).text
        engine.signal(signal.SIGTERM)
        assert engine.wait_exit() == 0
    chain = verify_chain(engine.state)
    assert (chain.lines, chain.broken) == (4, None)  # of both engines
    refused = ask(start(folder=tmp_path / "one", env=env))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "OVERLOADED")
