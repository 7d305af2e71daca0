"""`keep_alive: 0` for runtimes that hold models themselves: the model goes as soon as nobody uses it, as in Ollama.

How long models stay otherwise is not theirs to say but the pool's, by what there is room for; so a longer `keep_alive`
only takes an earlier 0 back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from engine.domain.generation import GenerationRequest
from engine.domain.runtime import EmbedRequest


@attrs.define(eq=False)
class Uses:
    """Who uses which model now. `let_go` takes one out of memory, at once and without waiting; it may be out
    already."""

    let_go: Callable[[str], None]
    _counts: Counter[str] = attrs.field(factory=Counter, init=False)
    _leaving: set[str] = attrs.field(factory=set, init=False)

    @contextmanager
    def of(self, request: GenerationRequest | EmbedRequest) -> Iterator[None]:
        """Around an answer. On leaving, however that comes about, the model may go."""
        if request.keep_alive == 0:
            self._leaving.add(request.model)
        elif request.keep_alive is not None:
            self._leaving.discard(request.model)
        with self.of_model(request.model):
            yield

    @contextmanager
    def of_model(self, model: str) -> Iterator[None]:
        """Around another use, which says nothing of how long the model is to stay."""
        self._counts[model] += 1
        try:
            yield
        finally:
            self._counts[model] -= 1
            if not self._counts[model]:
                del self._counts[model]
                if model in self._leaving:
                    self._leaving.discard(model)
                    self.let_go(model)
