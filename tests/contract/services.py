"""What the local services, the registry of agents and the router take and answer, recorded from the real code: a sample
for each published schema, under its name."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import trio

from tests.fakes.api import Answer
from tests.web.services.running import CLASSIFIER, LLAMA, AnsweringRuntime, Says, answering, question_of, with_service
from tests.web.test_registry import LLAMA as CARD
from tests.web.test_registry import serving as serving_registry
from tests.web.test_router import BIG
from tests.web.test_router import serving as serving_router
from web.services.blueprint import taxonomy_body

Samples = dict[str, Any]

QUERY: Final = "What is the role of glucose in diabetes?"
DOCUMENTS: Final = ["Diabetes is a metabolic disorder...", "Glucose regulation is critical..."]
UPTIME_S: Final = 3600.5
ANSWERS: Final = {
    "Which domain": [Says("MED", 0.92, {"BIO": 0.05, "CHE": 0.02}), Says("ICINE", 0.99)],
    "What does": [Says("ANSWER", 0.95)],
    "How is": [Says("DENSE", 0.88)],
}


def _answer(request: Any) -> list[Says | Exception]:
    asked = question_of(request)
    return list(next(said for words, said in ANSWERS.items() if words in asked))


async def record_services() -> Samples:
    """Samples by `services/` and the name of their schema."""
    found = await _services() | await _registry() | await _router()
    return {f"services/{name}": sample for name, sample in found.items()}


async def _services() -> Samples:
    found: Samples = {}
    async with with_service(LLAMA, answering(lambda _: [Says("AI")], url="http://127.0.0.1:11434")) as (api, _):
        await trio.sleep(UPTIME_S)
        found["services.health"] = _body(await api.get("/health"))
    async with with_service(CLASSIFIER, _classifier) as (api, service):
        calls: Samples = {
            "classify_domain": {"query": QUERY, "top_k": 3},
            "extract_tmd": {"query": QUERY, "context_docs": DOCUMENTS},
            "validate_domain": {"domain": "medicin"},
        }
        for name, asked in calls.items():
            found[f"services.{name}.request"] = asked
            found[f"services.{name}.response"] = _body(await api.post(f"/{name}", asked))
        await trio.sleep(1)
        found["services.info"] = _body(await api.get("/info"))
        found["services.taxonomy"] = msgspec.to_builtins(taxonomy_body(service))
    return found


def _classifier(clock: Any) -> AnsweringRuntime:
    return answering(_answer)(clock)


async def _registry() -> Samples:
    found: Samples = {}
    async with serving_registry() as (http, _):
        agent_id = CARD["agent_id"]
        calls: Samples = {
            "register": CARD,
            "heartbeat": {"agent_id": agent_id, "status": "degraded"},
            "discover": {"capabilities": ["reasoning"]},
            "deregister": {"agent_id": agent_id},
        }
        for name, asked in calls.items():
            found[f"registry.{name}.request"] = asked
            found[f"registry.{name}.response"] = _body(await http.post(f"/{name}", asked))
        found["registry.health"] = _body(await http.get("/health"))
    return found


async def _router() -> Samples:
    found: Samples = {}
    async with serving_router() as rig:
        await rig.registered(BIG)
        asked: Samples = {"capability": "reasoning", "prefer_local": True}
        found |= {"router.route.request": asked, "router.route.response": _body(await rig.http.post("/route", asked))}
        for name in ("decisions", "map", "health"):
            found[f"router.{name}"] = _body(await rig.http.get(f"/{name}"))
        asked = {"capabilities": {"reasoning": [{"provider": "openai", "model": "gpt-4"}]}, "limit": 10}
        found["router.what-if.request"] = asked  # last: a thread decides it, and time flies
        found["router.what-if.response"] = _body(await rig.http.post("/what-if", asked))
    return found


def _body(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json
