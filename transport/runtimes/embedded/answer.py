"""One answer, token by token: definition after definition of the same question.

The models were trained on pieces of 96 tokens, and their text falls apart when much more than that stands before it.
So each definition begins anew: when the model ends one (end-of-text is a token like any other, with its own
log-probability), the cache is rewound to the end of the question. A definition that fills the context keeps its tail.
One that was begun before, by whomever, is gone on with.
"""

from __future__ import annotations

from typing import Final

import attrs

from engine.domain.generation import TokenLogprob, TopEntry
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import Cache, Floats, Transformer
from transport.runtimes.embedded.prompt import Prompt
from transport.runtimes.embedded.sampler import Doubles, Sampler, log_softmax, ranked

END_TEXT: Final = b"\n"  # what end-of-text writes: each definition stands on its own line


@attrs.frozen(eq=False)
class Model:
    """A model in memory, shared by its generations."""

    transformer: Transformer
    tokenizer: Tokenizer


@attrs.frozen
class Sampled:
    """One generated token: the bytes it writes, and what the model thought of it and of the others."""

    written: bytes
    logprob: TokenLogprob


@attrs.define(eq=False)
class Answer:
    """The state of one generation. `start` and `next_token` compute: call them from a worker thread, one at a time."""

    model: Model
    prompt: Prompt
    sampler: Sampler
    top_logprobs: int
    _cache: Cache = attrs.field(init=False)
    _after_prompt: Floats = attrs.field(init=False)
    _scores: Floats = attrs.field(init=False)
    _definition: list[int] = attrs.field(factory=list, init=False)  # tokens since the question

    def start(self) -> None:
        """Read the prompt; of a definition that was begun all but the last token, which `next_token` reads."""
        self._cache = self.model.transformer.new_cache()
        self._scores = self._after_prompt = self.model.transformer.feed(self.prompt.ids, self._cache)
        self._definition = list(self.prompt.begun)
        if len(self._definition) > 1:
            self.model.transformer.feed(self._definition[:-1], self._cache)

    def next_token(self) -> Sampled:
        if self._definition:
            self._scores = self._advance()
        logprobs = log_softmax(self._scores)
        id_ = self.sampler.pick(logprobs)
        self._definition.append(id_)
        ends = id_ == self.model.tokenizer.end_id
        return Sampled(END_TEXT if ends else self.model.tokenizer.token_bytes[id_], self._reported(id_, logprobs))

    def _advance(self) -> Floats:
        """The scores after the last token."""
        asked = len(self.prompt.ids)
        if self._definition[-1] == self.model.tokenizer.end_id:
            self._definition.clear()
            self._cache.rewind(asked)
            return self._after_prompt
        if self._cache.room:
            return self.model.transformer.feed(self._definition[-1:], self._cache)
        self._cache.rewind(asked)
        del self._definition[: -(self._cache.room // 2)]
        return self.model.transformer.feed(self._definition, self._cache)

    def _reported(self, id_: int, logprobs: Doubles) -> TokenLogprob:
        display = self.model.tokenizer.display
        best = ranked(logprobs, min(max(self.top_logprobs, 0), len(logprobs)))
        top = tuple(TopEntry(display[n], float(logprobs[n])) for n in best)
        return TokenLogprob(display[id_], float(logprobs[id_]), top)
