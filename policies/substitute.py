"""Which model may stand in for one that cannot be had, where the caller allowed it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from engine.domain.models import ModelInfo
from engine.domain.runtime import Runtime
from policies.tiers import TierLimits

DEMONSTRATION: Final = frozenset({"embedded", "synthetic"})  # they show the engine, they never answer for another


class Offered(Protocol):
    """A model that can be asked for."""

    @property
    def name(self) -> str: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def info(self) -> ModelInfo: ...


M = TypeVar("M", bound=Offered)


def substitute(model: M, candidates: Iterable[M], limits: TierLimits) -> M | None:
    """The candidate most like `model` that the tier takes: it can do what `model` can, is no demonstration, no other
    copy of `model`, and no larger than the tier allows. First those of the same name with another tag, then those of
    the same family, then any; among them the largest, then the first by name. None when there is none."""
    wanted = set(model.info.capabilities)
    fitting = [
        candidate
        for candidate in candidates
        if candidate.name != model.name
        and candidate.runtime.kind not in DEMONSTRATION
        and (candidate.info.digest is None or candidate.info.digest != model.info.digest)
        and candidate.info.size_bytes is not None
        and candidate.info.size_bytes <= limits.max_model_size_bytes
        and wanted <= set(candidate.info.capabilities)
    ]
    return min(fitting, key=lambda candidate: _distance(model, candidate), default=None)


def _distance(model: Offered, other: Offered) -> tuple[bool, bool, int, str]:
    family = model.info.details.get("family")
    return (
        _stem(other) != _stem(model),
        family is None or other.info.details.get("family") != family,
        -(other.info.size_bytes or 0),
        other.name,
    )


def _stem(model: Offered) -> str:
    """`llama3.1` of `llama3.1:8b`."""
    return model.info.name.partition(":")[0]
