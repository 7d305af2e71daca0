"""From scores to the next token. Reported log-probabilities are the model's own; parameters bend only the choice."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.domain.generation import Parameters

TEMPERATURE_DEFAULT = 0.7

Doubles = NDArray[np.float64]


def log_softmax(scores: NDArray[np.floating[Any]]) -> Doubles:
    """Natural log-probabilities, each ≤ 0, of a vector of finite scores."""
    shifted: Doubles = scores.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def ranked(values: Doubles, count: int) -> NDArray[np.intp]:
    """The positions of the `count` largest values, largest first; equals stand by position."""
    chosen = np.arange(len(values))
    if count < len(values):
        chosen = np.argpartition(-values, count)[:count]
    return chosen[np.lexsort((chosen, -values[chosen]))]


@attrs.define(eq=False)
class Sampler:
    """Draws tokens: temperature first, then the `top_k` most probable, then the smallest set with a mass of `top_p`.

    The same seed and the same distributions give the same tokens. Temperature 0 takes the most probable token.
    """

    temperature: float
    top_k: int | None
    top_p: float
    _random: np.random.Generator

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Sampler:
        temperature, top_p, seed = parameters.temperature, parameters.top_p, parameters.seed
        return cls(
            temperature=TEMPERATURE_DEFAULT if temperature is None else temperature,
            top_k=parameters.top_k,
            top_p=1.0 if top_p is None else top_p,
            random=np.random.default_rng(None if seed is None else seed % (1 << 64)),  # numpy takes no negative seed
        )

    def pick(self, logprobs: Doubles) -> int:
        """One token id, drawn from `logprobs` (V,)."""
        if self.temperature == 0:
            return int(logprobs.argmax())
        with np.errstate(over="ignore"):  # a temperature near 0 sends all but the best to -inf, as it should
            scaled = (logprobs - logprobs.max()) / self.temperature
        if self.top_k is None and self.top_p == 1:
            ids = np.arange(len(scaled))
        else:
            ids = ranked(scaled, self.top_k or len(scaled))
        mass = np.exp(scaled[ids]).cumsum()
        if self.top_p < 1:
            mass = mass[: np.searchsorted(mass, self.top_p * mass[-1]) + 1]
        drawn = np.searchsorted(mass, self._random.random() * mass[-1], side="right")
        return int(ids[min(drawn, len(mass) - 1)])
