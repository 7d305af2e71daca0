"""Going on with an answer in a real llama.cpp: what it says behind the seam is what it would have said."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from engine.domain.errors import UpstreamTruncated
from engine.domain.generation import GenerationRequest, Parameters, ResumeRules, TokenKind
from policies.resume import Given, continuation
from tests.fakes.llama_server import require_xllamacpp
from tests.system.test_llama_cpp import PROMPT, answer_of, running

TOKENS = 16
GREEDY = Parameters(max_tokens=TOKENS, temperature=0.0, seed=1)
CHAT = GenerationRequest("lexicon", prompt=PROMPT, parameters=GREEDY)
BARE = attrs.evolve(CHAT, prompt=f"Q: {PROMPT}\nA:", raw=True)


@pytest.mark.parametrize("asked", [CHAT, BARE], ids=["chat", "bare"])
@pytest.mark.parametrize("broke_after", [1, 5, 11])
async def test_a_greedy_answer_goes_on_as_it_would_have(tmp_path: Path, asked: GenerationRequest, broke_after: int):
    require_xllamacpp()
    async with running(tmp_path) as runtime:
        whole = [chunk.text for chunk in await answer_of(runtime, asked) if chunk.text]
        text = "".join(whole[:broke_after])
        given = Given(text, broke_after, frozenset({TokenKind.ANSWER}))
        rest = continuation(UpstreamTruncated("cut"), asked, given, ResumeRules(), 0)
        assert isinstance(rest, GenerationRequest)
        chunks = await answer_of(runtime, rest)
        end = chunks[-1].end
        assert end is not None
        assert end.eval_count == TOKENS - broke_after
        assert text + "".join(chunk.text for chunk in chunks) == "".join(whole)
