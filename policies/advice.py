"""What state the engine is in for somebody who wants an answer, and what to do next. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import attrs

DEMONSTRATION: Final = frozenset({"embedded", "synthetic"})  # kinds that show the engine and help nobody
GET_A_RUNTIME: Final = (
    "install Ollama (https://ollama.com/download) and it is found or started; or name a running server with "
    "openai.base_url; or a file with `wf serve --gguf FILE`"
)


class Readiness(enum.StrEnum):
    STARTING = "starting"  # not every runtime has answered yet, or one of ours is on its way up
    NO_RUNTIME = "no_runtime"
    NO_MODELS = "no_models"
    READY = "ready"


@attrs.frozen
class RuntimeView:
    """A runtime as last asked: `up` is null before its first answer, `models` how many it can run, `pulls` whether it
    can download one."""

    name: str
    kind: str
    up: bool | None
    models: int
    pulls: bool


@attrs.frozen
class Advice:
    """`next_step` is one sentence, null when there is nothing to do."""

    state: Readiness
    next_step: str | None


def advise(runtimes: Sequence[RuntimeView], starting: bool, suggested_model: str) -> Advice:
    """The built-in models do not count: they answer in every state. With nothing else switched on there is nothing to
    miss. `suggested_model` is one that fits the machine."""
    wanted = [view for view in runtimes if view.kind not in DEMONSTRATION]
    if any(view.up and view.models for view in wanted) or not wanted:
        return Advice(Readiness.READY, None)
    if starting or any(view.up is None for view in wanted):
        return Advice(Readiness.STARTING, None)
    here = [view for view in wanted if view.up]
    if not here:
        return Advice(Readiness.NO_RUNTIME, GET_A_RUNTIME)
    puller = next((view for view in here if view.pulls), None)
    if puller is None:
        return Advice(Readiness.NO_MODELS, f"{here[0].name} answers but has no model; load one there")
    return Advice(
        Readiness.NO_MODELS, f"{puller.name} has no model yet; `wf pull {suggested_model}` downloads one that fits"
    )
