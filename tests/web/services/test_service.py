"""`/health` and `/info`, and which model answers for a service: the one it is for, or another one that is told."""

from __future__ import annotations

import pytest
import trio

from engine.domain.errors import ModelNotFound
from engine.domain.models import Capability, ModelInfo
from engine.settings import Settings
from tests.fakes.runtime import End, PullingRuntime, Say, ScriptedRuntime, words
from tests.web.services.running import (
    CLASSIFIER,
    LLAMA,
    MODELS,
    TINY,
    running_service,
    scripted,
    table_of,
    with_service,
)
from web.services.service import Service, agent_definition

GENERATE = {"prompt": "What is AI?", "stream": False}


class DescribedRuntime(ScriptedRuntime):
    """Says of its models what an Ollama says; some of them are for embeddings."""

    async def list_models(self):
        return tuple(self._info(name) for name in self.models)

    def _info(self, name):
        details = {"parameter_size": "8.0B", "quantization_level": "Q4_K_M", "context_length": 131_072,
                   "embedding_length": 4096}  # fmt: skip
        if "embed" in name:
            return ModelInfo(name, self.name, 1000, details=details | {"capabilities": ["embedding"]})
        return ModelInfo(name, self.name, 1000, capabilities=(Capability.CHAT,), details=details)


def described(*models, **more):
    return lambda clock: DescribedRuntime(clock, (Say("x"), Say("y"), End()), models=models or MODELS, **more)


# ── health ──


@pytest.mark.parametrize(
    ("name", "said", "port", "model"),
    [(LLAMA, "llama31_8b_wrapper", 8050, "llama3.1:8b"), (TINY, "tinyllama_wrapper", 8051, "tinyllama:1.1b"),
     (CLASSIFIER, "tlc_domain_classifier", 8052, "tinyllama:1.1b")],
)  # fmt: skip
async def test_a_service_that_is_well(autojump_clock, name, said, port, model):
    async with running_service(name, scripted(url="http://127.0.0.1:11434")) as api:
        await trio.sleep(90.5)
        answer = await api.get("/health")
        assert answer.status == 200
        assert answer.json == {
            "status": "healthy",
            "service": said,
            "port": port,
            "ollama_backend": "http://127.0.0.1:11434",
            "model": model,
            "model_loaded": False,
            "uptime_seconds": 90,
            "runtime": "scripted",
            "requested_model": model,
            "fallback_reason": None,
        }
        assert api.slice.runtime.loads == []


async def test_health_says_when_the_model_is_in_memory_and_where_no_backend_is(autojump_clock):
    async with running_service(make_runtime=described()) as api:
        await api.post("/generate", GENERATE)
        body = (await api.get("/health")).json
        assert (body["model_loaded"], body["ollama_backend"]) == (True, None)


async def test_a_service_without_any_model_is_not_well(autojump_clock):
    async with running_service(make_runtime=scripted(models=())) as api:
        health = await api.get("/health")
        assert (health.status, health.json["status"], health.json["model"]) == (503, "unhealthy", "llama3.1:8b")
        assert health.json["model_loaded"] is False
        answer = await api.post("/generate", GENERATE)
        assert (answer.status, answer.error["code"]) == (404, "MODEL_NOT_FOUND")
        assert "wf pull llama3.1:8b" in answer.error["message"]
        assert (await api.get("/info")).json["model"]["name"] == "llama3.1:8b"


# ── info ──


async def test_info_tells_what_the_runtime_tells_and_measures_the_rest(autojump_clock):
    async with running_service(make_runtime=described()) as api:
        assert (await api.get("/info")).json == {
            "service_name": "Llama 3.1 8B Wrapper",
            "version": api.engine.facts.version,
            "model": {
                "name": "llama3.1:8b",
                "parameters": "8.0B",
                "quantization": "Q4_K_M",
                "context_length": 131_072,
                "embedding_dim": 4096,
            },
            "capabilities": ["reasoning", "planning", "code_review", "explanation"],
            "performance": {"avg_throughput_tok_s": None, "avg_latency_ms": None, "p95_latency_ms": None},
            "endpoints": ["/chat/completions", "/generate", "/health", "/info"],
            "requested_model": "llama3.1:8b",
            "fallback_reason": None,
        }


async def test_what_nobody_tells_of_a_model_is_null(autojump_clock):
    async with running_service() as api:
        model = (await api.get("/info")).json["model"]
        assert model == {"name": "llama3.1:8b"} | dict.fromkeys(
            ("parameters", "quantization", "context_length", "embedding_dim")
        )


async def test_performance_is_measured_here(autojump_clock):
    """Ten tokens 50 ms apart: 500 ms an answer, and 20 tokens a second after the first."""
    async with running_service(make_runtime=scripted(*words(10, 0.05))) as api:
        for stream in (False, True):
            await api.post("/generate", GENERATE | {"stream": stream})
        await trio.sleep(1)
        performance = (await api.get("/info")).json["performance"]
        assert performance["avg_throughput_tok_s"] == pytest.approx(20)
        assert performance["avg_latency_ms"] == pytest.approx(500)
        assert performance["p95_latency_ms"] == pytest.approx(500)


async def test_what_was_refused_or_left_is_no_latency(autojump_clock):
    async with running_service(make_runtime=scripted(*words(1000))) as api:
        await api.post("/generate", {"prompt": 3})
        async with api.open("POST", "/generate", {"prompt": "x"}) as leaving:
            await leaving.receive()
            session = api.slice.core.sessions.running()[0]
        await session.closed.wait()
        assert (await api.get("/info")).json["performance"]["avg_latency_ms"] is None


async def test_the_classifier_tells_its_endpoints_and_versions(autojump_clock):
    async with running_service(CLASSIFIER) as api:
        body = (await api.get("/info")).json
        assert body["endpoints"][4:] == ["/classify_domain", "/extract_tmd", "/validate_domain"]
        assert body["domain_taxonomy_version"] == "1.0"
        assert (body["task_vocabulary_version"], body["method_vocabulary_version"]) == ("1.0", "1.0")
        assert body["specialized_for"] == "TMD classification"


# ── which model ──


async def test_another_model_that_is_here_answers_and_says_so_everywhere(autojump_clock):
    reason = "llama3.1:8b is not here; qwen3:4b answers in its place"
    async with running_service(make_runtime=described("embed-x", "qwen3:4b")) as api:
        answer = await api.post("/generate", GENERATE | {"model": "llama3.1:8b"})
        assert (answer.status, answer.json["model"]) == (200, "qwen3:4b")
        assert answer.headers["x-wf-model"] == "qwen3:4b"
        assert answer.headers["x-wf-fallback"] == reason
        for path in ("/health", "/info"):
            body = (await api.get(path)).json
            assert (body["fallback_reason"], body["requested_model"]) == (reason, "llama3.1:8b")
        assert (await api.get("/health")).json["model"] == "qwen3:4b"
        assert (await api.get("/health")).json["status"] == "healthy"


@pytest.mark.parametrize(
    ("models", "answers"),
    [
        (("qwen3:4b", "tinyllama:latest", "tinyllama:1.1b"), "tinyllama:1.1b"),
        (("qwen3:4b", "tinyllama:latest"), "tinyllama:latest"),
        (("qwen3:4b", "other"), "qwen3:4b"),
        (("embed-x",), None),
    ],
)
async def test_the_order_of_those_that_may_answer(autojump_clock, models, answers):
    async with with_service(TINY, described(*models)) as (_, service):
        chosen = service.current()
        assert answers == (None if chosen is None else chosen.model.name)


async def test_a_model_on_another_machine_never_answers_whatever_its_name(autojump_clock):
    async with with_service(LLAMA, described(local=False)) as (api, service):
        assert service.current() is None
        assert (await api.post("/generate", GENERATE)).status == 404
        assert api.slice.runtime.opened == 0


async def test_a_model_that_comes_later_takes_over(autojump_clock):
    async with with_service(LLAMA, described("qwen3:4b")) as (api, service):
        assert (await service.choose()).model.name == "qwen3:4b"
        api.slice.runtime.models = ("qwen3:4b", "llama3.1:8b")
        await trio.sleep(6)  # the catalogue asks every five seconds
        assert (await service.choose()).fallback_reason is None


async def test_a_runtime_on_its_way_up_is_waited_for_before_another_model_answers(autojump_clock):
    async with with_service(LLAMA, described("qwen3:4b")) as (api, service):
        catalog = api.slice.core.catalog
        catalog.settled = trio.Event()

        async def comes() -> None:
            await trio.sleep(4)
            api.slice.runtime.models = MODELS
            catalog.settled.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(comes)
            began = trio.current_time()
            assert (await service.choose()).model.name == "llama3.1:8b"
            assert trio.current_time() - began == pytest.approx(4)


def pulling(clock):
    return PullingRuntime(clock, (Say("x"), End()), models=("a",))


async def test_with_pull_auto_the_model_is_downloaded_first(autojump_clock):
    table = table_of("llama31_8b: {model: fine}")
    async with with_service(LLAMA, pulling, table, Settings(pull="auto")) as (api, service):
        assert (await service.choose()).fallback_reason is not None or api.slice.runtime.pulls == ["fine"]
        assert api.slice.runtime.pulls == ["fine"]
        assert (await service.choose()).model.name == "fine:latest"


async def test_a_download_that_fails_leaves_another_model_to_answer(autojump_clock):
    table = table_of("llama31_8b: {model: missing}")
    async with with_service(LLAMA, pulling, table, Settings(pull="auto")) as (api, service):
        assert (await service.choose()).model.name == "a"
        assert api.slice.runtime.pulls == ["missing"]


async def test_by_default_nothing_is_downloaded(autojump_clock):
    async with with_service(LLAMA, pulling) as (api, service):
        assert (await service.choose()).model.name == "a"
        assert api.slice.runtime.pulls == []


async def test_without_a_model_choosing_fails(autojump_clock):
    async with with_service(LLAMA, scripted(models=())) as (_, service):
        with pytest.raises(ModelNotFound):
            await service.choose()


# ── for a registry ──


async def test_the_definition_of_an_agent_is_that_of_its_document(autojump_clock):
    async with with_service(CLASSIFIER, described(name="ollama", kind="ollama")) as (_, service):
        definition = agent_definition(service, "http://localhost:8052")
    assert definition == {
        "agent_id": "tlc_domain_classifier",
        "name": "TLC Domain Classifier",
        "tier": 2,
        "role": "execution",
        "capabilities": ["domain_classification", "tmd_extraction", "domain_validation"],
        "endpoint": "http://localhost:8052",
        "transport": "rest",
        "cost_per_1k_tokens": 0.0,
        "metadata": {
            "model": "tinyllama:1.1b",
            "provider": "ollama",
            "parameters": "8.0B",
            "quantization": "Q4_K_M",
            "avg_latency_ms": None,
            "throughput_tok_s": None,
            "requested_model": "tinyllama:1.1b",
            "specialized_for": "TMD classification",
            "domain_taxonomy_version": "1.0",
        },
    }


async def test_a_service_of_ones_own_is_one_like_the_others(autojump_clock):
    table = table_of("mine: {port: 0, title: My own, model: 'tinyllama:1.1b', capabilities: [joking]}")
    async with with_service("mine", described(), table) as (api, service):
        assert isinstance(service, Service)
        assert (await api.get("/health")).json["service"] == "mine"
        assert (await api.get("/info")).json["service_name"] == "My own"
        assert (await api.post("/generate", GENERATE)).json["response"] == "xy"
        definition = agent_definition(service, "http://127.0.0.1:1")
        assert (definition["agent_id"], definition["name"]) == ("mine", "My own")
