"""Log-probabilities that a client asks for itself: given, or refused; never left out of a whole answer in silence."""

from __future__ import annotations

import pytest

from tests.fakes.api import running_api
from tests.fakes.runtime import End, Say, ScriptedRuntime, words
from tests.web.lens.ways import OLLAMA_CHAT, OLLAMA_GENERATE, OPENAI_CHAT, OPENAI_COMPLETION, OPENAI_RESPONSE, Way

ASKS = (
    (OLLAMA_CHAT, {"logprobs": True}),
    (OLLAMA_GENERATE, {"logprobs": True}),
    (OPENAI_CHAT, {"logprobs": True}),
    (OPENAI_COMPLETION, {"logprobs": 1}),
    (OPENAI_RESPONSE, {"include": ["message.output_text.logprobs"]}),
)
asked = pytest.mark.parametrize(("way", "ask"), ASKS, ids=[way.name for way, _ in ASKS])
MUTE = (Say("w0 ", logprob=None), Say("w1 ", logprob=None), End())


@asked
async def test_the_runtime_hears_that_they_are_wanted(way: Way, ask: dict, autojump_clock):
    runtimes: list[ScriptedRuntime] = []

    def runtime(clock) -> ScriptedRuntime:
        runtimes.append(ScriptedRuntime(clock, words(2)))
        return runtimes[0]

    async with running_api(runtime) as api:
        for body in (way.body(), way.body(**ask), way.streamed(**ask)):
            assert (await api.post(way.path, body)).status == 200
    assert [request.logprobs_wanted for request in runtimes[0].requests] == [False, True, True]


@asked
async def test_a_whole_answer_without_any_is_a_refusal(way: Way, ask: dict, autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, MUTE)) as api:
        answer = await api.post(way.path, way.body(**ask))
        assert answer.status == 400
        assert way.failed(answer.json) == "logprobs: a gives none; leave them out, or use another model"
        assert way.text((await api.post(way.path, way.body())).json) == "w0 w1 "  # nobody asked


@asked
async def test_an_answer_without_words_has_none(way: Way, ask: dict, autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, (End(),))) as api:
        assert (await api.post(way.path, way.body(**ask))).status == 200
