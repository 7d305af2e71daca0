"""A number that nobody counted does not look counted."""

from __future__ import annotations

import attrs
import pytest

from engine.domain.generation import Chunk, EndReason, GenerationEnd
from tests.fakes.api import running_api
from tests.fakes.runtime import ScriptedRuntime

CHAT = {"model": "a", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


@attrs.define(eq=False)
class CountlessRuntime(ScriptedRuntime):
    """Says nothing of its prompt."""

    async def _chunks(self):
        yield Chunk('said "usage": nothing', self.clock())
        yield Chunk("", self.clock(), end=GenerationEnd(EndReason.FINISHED))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("runtime", [CountlessRuntime, ScriptedRuntime])
async def test_a_prompt_that_nobody_counted_is_told_beside_the_zero(path, runtime, autojump_clock):
    async with running_api(runtime) as api:
        body = (await api.post(path, CHAT)).json
        shown = next(body["usage"][name] for name in ("prompt_tokens", "input_tokens") if name in body["usage"])
        if runtime is ScriptedRuntime:
            assert (shown, "wf" in body) == (3, False)
        else:
            assert (shown, body["wf"]) == (0, {"uncounted": ["prompt_tokens"]})


async def test_where_no_usage_is_shown_nothing_is_added(autojump_clock):
    async with running_api(CountlessRuntime) as api:
        streamed = await api.post("/v1/chat/completions", CHAT | {"stream": True})
        assert b'"wf"' not in streamed.body
        ollama = await api.post("/api/chat", {"model": "a", "messages": CHAT["messages"], "stream": False})
        assert not {"wf", "prompt_eval_count"} & set(ollama.json)
