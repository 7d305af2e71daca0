"""Which models there are, and which runtime has them. The exact name counts first, then
`runtime/name`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

import attrs
import trio

from engine.domain.errors import EngineError, InvalidRequest, ModelNotFound
from engine.domain.generation import Runtime
from engine.domain.models import ModelInfo, Probe, is_model_name

QUALIFIED: Final = frozenset({"embedded", "synthetic"})  # kinds whose models are always listed as `runtime/name`


@attrs.frozen
class ModelRef:
    """A model somebody can ask for: its public name and where it is."""

    name: str
    runtime: Runtime
    info: ModelInfo

    @property
    def synthetic(self) -> bool:
        return self.runtime.kind == "synthetic"


@attrs.define(eq=False)
class Catalog:
    """The last answers of all runtimes. A runtime that does not answer keeps nothing in the list and says why."""

    runtimes: Mapping[str, Runtime]
    models: tuple[ModelRef, ...] = ()
    probes: dict[str, Probe] = attrs.field(factory=dict)
    asked: trio.Event = attrs.field(factory=trio.Event)  # set once every runtime has been asked

    async def refresh(self) -> None:
        """Ask every runtime, all at once; bounded by their own probe time-outs."""
        found: dict[str, tuple[ModelInfo, ...]] = {}

        async def ask(name: str, runtime: Runtime) -> None:
            probe = await runtime.probe()
            if probe.up:
                try:
                    found[name] = await runtime.list_models()
                except EngineError as error:
                    probe = Probe(up=False, reason=error.message, version=probe.version)
            self.probes[name] = probe

        async with trio.open_nursery() as nursery:
            for name, runtime in self.runtimes.items():
                nursery.start_soon(ask, name, runtime)
        self.models = tuple(
            ModelRef(_public_name(runtime, info), runtime, info)
            for name, runtime in self.runtimes.items()
            for info in found.get(name, ())
        )
        self.asked.set()

    async def resolve(self, name: str) -> ModelRef:
        """The model called `name`, asking the runtimes again when it is not known yet. Raises as `find` does."""
        await self.asked.wait()
        try:
            return self.find(name)
        except ModelNotFound:
            await self.refresh()
            return self.find(name)

    def find(self, name: str) -> ModelRef:
        """The model called `name`; a tag left out means `:latest`, as people type it.

        Raises InvalidRequest for a name outside the grammar, ModelNotFound otherwise."""
        if not is_model_name(name):
            raise InvalidRequest(
                "model: not a model name (letters, digits, `._-`, at most three parts with `/`, one `:tag`)"
            )
        for model in self.models:
            if model.name == name:
                return model
        for model in self.models:
            if f"{model.runtime.name}/{model.info.name}" in (name, f"{name}:latest") or model.name == f"{name}:latest":
                return model
        names = [model.name for model in self.models]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelNotFound(f"there is no model {name}{hint}", model=name, available=names)


def _public_name(runtime: Runtime, info: ModelInfo) -> str:
    return f"{runtime.name}/{info.name}" if runtime.kind in QUALIFIED else info.name
