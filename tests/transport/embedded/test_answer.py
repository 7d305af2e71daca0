"""Every reported log-probability is what the model says about the context it claims to have."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from engine.domain.generation import Parameters
from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import END_TEXT, Answer, Model, Sampled
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import Transformer
from transport.runtimes.embedded.prompt import Prompt
from transport.runtimes.embedded.sampler import Sampler, log_softmax

CONTEXT = 24
PROMPT = Prompt((0, 50, 27, 200, 100), dropped=0)


def tiny(end_weight: float = 1.0) -> Model:
    """A model with random weights. With an `end_weight` of 0 end-of-text is never the likeliest token."""
    metadata, tensors = gguf_writer.tiny_parts(context=CONTEXT, tied=False)
    tensors["output.weight"][0] = np.float16(end_weight) * tensors["token_embd.weight"][9]
    file = gguf.parse(gguf_writer.write(metadata, tensors), "tiny.gguf")
    return Model(Transformer.from_gguf(file), Tokenizer.from_gguf(file))


def generated(model: Model, count: int, temperature: float = 1.5, top_logprobs: int = 10) -> list[tuple[int, Sampled]]:
    sampler = Sampler.from_parameters(Parameters(temperature=temperature, seed=5))
    answer = Answer(model, PROMPT, sampler, top_logprobs)
    answer.start()
    return [(answer._definition[-1], sampled) for sampled in (answer.next_token() for _ in range(count))]


def fresh(model: Model, ids: list[int]) -> np.ndarray:
    return log_softmax(model.transformer.feed(ids, model.transformer.new_cache()))


def test_each_definition_begins_anew_and_every_logprob_is_true():
    model = tiny()
    definition: list[int] = []
    ends = 0
    for id_, sampled in generated(model, 120):
        if len(PROMPT.ids) + len(definition) > CONTEXT:
            del definition[: -((CONTEXT - len(PROMPT.ids)) // 2)]
        logprobs = fresh(model, [*PROMPT.ids, *definition])
        assert sampled.logprob.logprob == pytest.approx(logprobs[id_], abs=1e-4)
        assert sampled.logprob.token == model.tokenizer.display[id_]
        best = np.sort(logprobs)[::-1][:10]
        assert [entry.logprob for entry in sampled.logprob.top] == pytest.approx(list(best), abs=1e-4)
        definition.append(id_)
        if id_ == 0:
            assert sampled.written == END_TEXT
            assert sampled.logprob.token == "<|end|>"
            definition, ends = [], ends + 1
        else:
            assert sampled.written == model.tokenizer.token_bytes[id_]
    assert ends >= 2


def test_a_definition_that_fills_the_context_goes_on_with_its_tail():
    model = tiny(end_weight=0)
    tokens = generated(model, 60, temperature=0)
    ids = [id_ for id_, _ in tokens]
    assert 0 not in ids
    room = CONTEXT - len(PROMPT.ids)
    for position, seen in ((room, ids[:room]), (room + 1, ids[room + 1 - room // 2 : room + 1])):
        expected = fresh(model, [*PROMPT.ids, *seen])[ids[position]]
        assert tokens[position][1].logprob.logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, CONTEXT - len(PROMPT.ids)])
def test_a_definition_that_was_begun_is_gone_on_with(count: int):
    model = tiny(end_weight=0)
    whole = [id_ for id_, _ in generated(model, 60, temperature=0)]
    begun = tuple(whole[:count])
    answer = Answer(model, attrs.evolve(PROMPT, begun=begun), Sampler.from_parameters(Parameters(temperature=0)), 1)
    answer.start()
    (id_, sampled), *_ = [(answer._definition[-1], s) for s in [answer.next_token()]]
    room = CONTEXT - len(PROMPT.ids)
    seen = begun if count <= room else begun[-(room // 2) :]
    assert sampled.logprob.logprob == pytest.approx(fresh(model, [*PROMPT.ids, *seen])[id_], abs=1e-4)
    assert id_ == whole[count]
    assert [answer._definition[-1] for _ in (answer.next_token() for _ in range(3))] == whole[count + 1 : count + 4]


@pytest.mark.parametrize("count", [0, 1, 20, 10_000])
def test_as_many_candidates_as_asked(count: int):
    model = tiny()
    _, sampled = generated(model, 1, top_logprobs=count)[0]
    assert len(sampled.logprob.top) == min(count, len(model.tokenizer.display))
    masses = [entry.logprob for entry in sampled.logprob.top]
    assert masses == sorted(masses, reverse=True)
    assert sum(np.exp(masses)) <= 1 + 1e-9
