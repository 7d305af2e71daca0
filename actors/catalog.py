"""Which models there are, which runtime has them, and what is in its memory. The exact name counts first, then
`runtime/name`."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

import attrs
import trio

from engine.domain.errors import EngineError, InvalidRequest, ModelNotFound
from engine.domain.generation import Clock
from engine.domain.models import MemoryUse, ModelInfo, Probe, is_model_name
from engine.domain.runtime import Runtime
from policies.council import CouncilSpec

if TYPE_CHECKING:
    from actors.councils import Councils

logger = logging.getLogger("wf.catalog")

SETTLE_S: Final = 10.0
LISTED_S: Final = 0.5  # so old may a list be that is shown to whoever asks for one
# Kinds whose models are always listed as `runtime/name`.
QUALIFIED: Final = frozenset({"embedded", "synthetic", "satellite"})


@attrs.frozen
class ModelRef:
    """A model somebody can ask for: its public name (unique) and where it is."""

    name: str
    runtime: Runtime
    info: ModelInfo
    seats: Seats | None = None  # of a council, which is a model to whoever asks it

    @property
    def satellite(self) -> bool:
        """It answers from outside this machine, by leave of the broker."""
        return self.runtime.kind == "satellite"

    @property
    def synthetic(self) -> bool:
        members = (self,) if self.seats is None else self.seats.members
        return any(model.runtime.kind == "synthetic" for model in members)


@attrs.frozen
class Seats:
    """Who is in a council. `dropped` were asked for and left out; `celebrates`: tier and level show resonance;
    `reason` says why it is smaller than it might be."""

    spec: CouncilSpec
    mode: str  # council | turbo
    members: tuple[ModelRef, ...]
    dropped: tuple[str, ...] = ()
    judge: ModelRef | None = None
    celebrates: bool = False
    reason: str | None = None


@attrs.frozen
class Residency:
    """What a runtime said is in its memory, by public names. `asked_us` is when it was asked: what happened later is
    not in it. `gone`: it has no process any more, and so nothing in memory. `silent`: it does not answer, and may still
    hold what it held; `models` says nothing then. Not `local`: its memory is that of another machine."""

    runtime: str
    asked_us: int
    models: Mapping[str, MemoryUse]
    gone: bool = False
    silent: bool = False
    local: bool = True


@attrs.frozen
class _Answer:
    probe: Probe
    asked_us: int
    models: tuple[ModelInfo, ...] = ()
    resident: Mapping[str, MemoryUse] | None = None


@attrs.define(eq=False)
class Catalog:
    """The last answers of all runtimes. A runtime that does not answer keeps nothing in the list and says why.

    `seen` hears what is in a runtime's memory, each time one that can tell was asked."""

    runtimes: Mapping[str, Runtime]
    clock: Clock
    seen: Callable[[Residency], None] = lambda _: None
    starting: Callable[[], bool] = lambda: False  # a runtime of ours is on its way up
    only: Mapping[str, Collection[str]] = attrs.field(factory=dict)  # by runtime: other models of it are not listed
    councils: Councils | None = None  # models that are several; given once there are models to sit in them
    models: tuple[ModelRef, ...] = ()
    probes: dict[str, Probe] = attrs.field(factory=dict)
    asked_us: dict[str, int] = attrs.field(factory=dict)  # when each runtime was asked what it has
    asked: trio.Event = attrs.field(factory=trio.Event)  # set once every runtime has been asked
    _asking: trio.Lock = attrs.field(factory=trio.Lock)
    rounds: int = 0  # in which all were asked
    _round_s: float = -math.inf  # when the last of them began, on the clock of trio
    settled: trio.Event = attrs.field(factory=trio.Event)  # set once none of them is still being started
    looked: trio.Event = attrs.field(factory=trio.Event)  # set when somebody reads `probes`; a new one for each round

    async def refresh(self) -> None:
        """Ask every runtime, all at once; bounded by their own probe time-outs. Callers at the same moment share one
        round, which begins after each of them asked."""
        wanted = self.rounds + 2 if self._asking.locked() else self.rounds + 1  # one under way may be too old
        async with self._asking:
            if self.rounds < wanted:
                await self._ask_all()

    async def recent(self, within_s: float = LISTED_S) -> float:
        """As `refresh`, unless they were asked less than `within_s` before the call. Gives the age of what is known
        now, in seconds since they were asked. Callers at the same moment share one round."""
        since_s = trio.current_time() - within_s
        if self._round_s <= since_s:
            async with self._asking:
                if self._round_s <= since_s:
                    await self._ask_all()
        return trio.current_time() - self._round_s

    async def _ask_all(self) -> None:
        began_s, answers = trio.current_time(), dict[str, _Answer]()

        async def ask(name: str, runtime: Runtime) -> None:
            answers[name] = await _ask(runtime, self.clock())

        async with trio.open_nursery() as nursery:
            for name, runtime in self.runtimes.items():
                nursery.start_soon(ask, name, runtime)
        self.rounds, self._round_s = self.rounds + 1, began_s
        self._log_changes(answers)
        self.probes = {name: answers[name].probe for name in self.runtimes}
        self.models = self._named(answers)
        self.asked_us = {name: answer.asked_us for name, answer in answers.items()}
        self.asked.set()
        if not self.starting():
            self.settled.set()
        for name, answer in answers.items():
            if not answer.probe.up:
                self.seen(Residency(name, answer.asked_us, {}, answer.probe.gone, silent=not answer.probe.gone))
            elif answer.resident is not None:
                of_runtime = {model.info.name: model.name for model in self.models if model.runtime.name == name}
                models = {of_runtime[m]: use for m, use in answer.resident.items() if m in of_runtime}
                self.seen(Residency(name, answer.asked_us, models, local=self.runtimes[name].local))

    def _log_changes(self, answers: Mapping[str, _Answer]) -> None:
        for name, answer in answers.items():
            before, probe = self.probes.get(name), answer.probe
            if probe.up and (before is None or not before.up):
                logger.info("%s is here, with %d models", name, len(answer.models))
            elif not probe.up and before is not None and before.up:
                logger.warning("%s %s: %s", name, "is gone" if probe.gone else "is not there for us", probe.reason)

    def _named(self, answers: Mapping[str, _Answer]) -> tuple[ModelRef, ...]:
        """Each under its own name; where an earlier runtime has that one already, as `runtime/name`."""
        found: dict[str, ModelRef] = {}
        for name, runtime in self.runtimes.items():
            for info in answers[name].models:
                if info.name not in self.only.get(name, (info.name,)):
                    continue
                full = f"{runtime.name}/{info.name}"
                public = full if runtime.kind in QUALIFIED or info.name in found else info.name
                found.setdefault(public, ModelRef(public, runtime, info))
        return tuple(found.values())

    @property
    def askable(self) -> tuple[ModelRef, ...]:
        """Everything that can be asked: the models, and the councils that can be formed of them."""
        return self.models if self.councils is None else (*self.models, *self.councils.listed())

    async def resolve(self, name: str) -> ModelRef:
        """The model called `name`. When it is not known yet the runtimes are asked again, and one that is being started
        is waited for, up to 10 s. Raises as `find` does."""
        await self.asked.wait()
        try:
            return self.find(name)
        except ModelNotFound:
            with trio.move_on_after(SETTLE_S):
                await self.settled.wait()
            await self.refresh()
            return self.find(name)

    def listed(self, name: str) -> ModelRef | None:
        """The model with exactly this public name, None when no runtime has it now."""
        return next((model for model in self.models if model.name == name), None)

    def find(self, name: str) -> ModelRef:
        """The model called `name`; a tag left out means `:latest`, as people type it.

        Raises InvalidRequest for a name outside the grammar, ModelNotFound otherwise."""
        if self.councils is not None and (council := self.councils.find(name)) is not None:
            return council
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
        hint += "; a runtime is still being started" if self.starting() else ""
        raise ModelNotFound(f"there is no model {name}{hint}", model=name, available=names)


async def _ask(runtime: Runtime, asked_us: int) -> _Answer:
    probe = await runtime.probe()
    if not probe.up:
        return _Answer(probe, asked_us)
    try:
        return _Answer(probe, asked_us, await runtime.list_models(), await runtime.resident())
    except EngineError as error:
        return _Answer(Probe(up=False, reason=error.message, version=probe.version), asked_us)
