"""What a model cannot do is refused before a session begins: nothing is loaded for it, and it is nobody's failure."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from engine.domain.errors import InvalidRequest
from engine.domain.generation import GenerationRequest, Tool
from engine.settings import PoolSettings, Settings
from tests.actors.pool_rig import GB, SizedRuntime
from tests.fakes.api import running_api
from tests.fakes.runtime import words
from tests.web.lens.ways import ANTHROPIC, OLLAMA_CHAT, OLLAMA_GENERATE, OPENAI_CHAT, Way
from transport.runtimes.embedded.runtime import EmbeddedRuntime
from transport.runtimes.ollama import OllamaRuntime
from transport.runtimes.openai import OpenAIRuntime
from transport.runtimes.synthetic import SyntheticRuntime
from transport.wire.requests import refuse_all_but_words

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
HOT = Settings(pool=PoolSettings(cooldown_s=0))


class WordsOnly(SizedRuntime):
    """Knows words and nothing else. Two of its models do not fit into memory together."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock, words(3), sizes={"resident": 7 * GB, "other": 7 * GB, "third": 7 * GB})

    def check(self, request: GenerationRequest) -> None:
        refuse_all_but_words(request, self.name)


class AllButOne(WordsOnly):
    """One of its models takes everything."""

    def check(self, request: GenerationRequest) -> None:
        if request.model != "other":
            super().check(request)


@asynccontextmanager
async def full(make_runtime: Any):
    """Two models in memory, so that a third one could only come in another's place."""
    async with running_api(make_runtime, HOT) as api:
        for name in ("resident", "other"):
            assert (await api.post("/models/load", {"name": name, "warm_up": False})).status == 200
        loads = list(api.slice.runtime.loads)
        yield api
        assert api.slice.runtime.loads == loads
        assert (await api.get("/stats")).json["sessions"]["total"] == 0
        usage = (await api.get("/usage")).json
        assert (usage["totals"]["requests"], usage["totals"]["uncounted"], usage["ended"]) == (0, 0, {})
        assert sum(usage["latency"]["duration_ms"]["counts"]) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("way", "more", "field"),
    [
        (OPENAI_CHAT, {"tools": [TOOL]}, "tools"),
        (OLLAMA_CHAT, {"tools": [TOOL]}, "tools"),
        (OLLAMA_GENERATE, {"format": "json"}, "format"),
        (OPENAI_CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (ANTHROPIC, {"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_nothing_is_loaded_and_nobody_evicted_for_it(
    way: Way, more: dict[str, Any], field: str, stream: bool, autojump_clock
):
    async with full(WordsOnly) as api:
        answer = await api.post(way.path, way.body(model="third", stream=stream, **more))
        assert answer.status == 400, answer.body
        assert (way.failed(answer.json) or "").startswith(f"{field}: scripted models cannot do that"), answer.body
        states = {model["name"]: model["state"] for model in (await api.get("/models")).json["models"]}
        assert states == {"resident": "ready", "other": "ready", "third": "absent"}


async def test_a_council_is_refused_where_none_of_its_members_can_do_it(autojump_clock):
    async with full(WordsOnly) as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.body(model="council:resident+third", tools=[TOOL]))
        assert (answer.status, answer.json["error"]["param"]) == (400, "tools")


async def test_a_council_answers_where_one_of_its_members_can(autojump_clock):
    async with running_api(AllButOne, HOT) as api:
        answer = await api.post(OPENAI_CHAT.path, OPENAI_CHAT.body(model="council:other+third", tools=[TOOL]))
        assert answer.status == 200, answer.body
        assert OPENAI_CHAT.text(answer.json) == "w0 w1 w2 "
        assert api.slice.runtime.loads == ["other"]
        await trio.sleep(1)  # the answer waits for no record of it
        rows = {row["key"]: row for row in (await api.get("/usage")).json["rows"]}
        assert (rows["third"]["requests"], rows["third"]["uncounted"]) == (1, 0)


ONE_MORE = GenerationRequest("m", prompt="x", tools=(Tool("look", "", "{}"),), tool_choice="required", raw=True)


@pytest.mark.parametrize(
    "make_runtime",
    [
        lambda: EmbeddedRuntime(lambda: 0),
        lambda: SyntheticRuntime(lambda: 0, seed=1),
        lambda: OllamaRuntime(lambda: 0),
        lambda: OpenAIRuntime(lambda: 0, "http://127.0.0.1:8080"),
    ],
)
def test_runtimes_know_it_from_the_request_alone(make_runtime):
    runtime = make_runtime()
    runtime.check(GenerationRequest("m", prompt="x"))
    with pytest.raises(InvalidRequest) as refusal:
        runtime.check(ONE_MORE)
    assert refusal.value.details["field"]
