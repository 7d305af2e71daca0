"""Councils as models: what their names mean, which of them there are, and who may sit in one here.

To a caller a council is a model like any other; its runtime is this module's. Asking it opens a session, in which the
members speak (actors/council.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio.lowlevel

from actors.catalog import ModelRef, Seats
from actors.reply_line import Ended, ReplyLine
from actors.session import SessionRequest, SessionTable
from engine.domain.errors import EngineError, InvalidRequest, ModelNotFound, TierLimitExceeded, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, GenerationRequest, Origin
from engine.domain.models import Capability, Loaded, ModelInfo, Probe
from engine.domain.synthesis import CouncilMethod
from policies.council import (
    LISTED,
    MEMBERS_MAX,
    MEMBERS_MIN,
    NAMED,
    CouncilAdmission,
    CouncilSpec,
    admit_council,
    admit_size,
    is_council_name,
    parse_council,
)
from policies.tiers import Level, TierLimits

if TYPE_CHECKING:
    from actors.catalog import Catalog

DEFAULT: Final = "default"
SHARED: Final = (Capability.COMPLETION, Capability.LOGPROBS)  # a council can do it when all of its members can


@attrs.frozen
class Gates:
    """What tier and level allow. `smaller` is the next lower tier's number of models, for when memory is short."""

    limits: TierLimits
    tier: str
    level: Level
    celebrates: bool
    smaller: int
    memory_is_short: Callable[[], bool] = lambda: False


@attrs.define(eq=False)
class Councils:
    """`specs` are the configured ones, by name. Without one called default there is one all the same: of the models of
    the first runtime that has two, as many as tier and level allow."""

    catalog: Catalog
    specs: Mapping[str, CouncilSpec]
    gates: Gates
    runtime: CouncilRuntime = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runtime = CouncilRuntime(self)

    def find(self, name: str) -> ModelRef | None:
        """The council that `name` means; None when it means a model. Raises ModelNotFound for a council or a member
        that is not there, InvalidRequest for a list that makes no council, and what the gates raise."""
        if not is_council_name(name):  # as nearly all are
            return None
        spec = parse_council(name, self._known())
        return None if spec is None else self.seat(spec, "council", "truncate")

    def listed(self) -> tuple[ModelRef, ...]:
        """The named councils that can be asked now."""
        found = []
        for spec in self._known().values():
            with suppress(EngineError):  # a member is not there, or tier or level allow none
                found.append(self.seat(spec, "council", "truncate"))
        return tuple(found)

    def of_models(
        self, names: Sequence[str], mode: str, on_excess: str, method: CouncilMethod | None, judge: str | None
    ) -> tuple[CouncilSpec, CouncilAdmission]:
        """A council of these models, and whom tier and level let in; whether they are there is not asked yet. Raises
        InvalidRequest, and as `admit`."""
        admission = self.admit(names, mode, on_excess)
        chosen = method or (CouncilMethod.JUDGE if judge is not None else CouncilMethod.CONSENSUS)
        try:
            return CouncilSpec(LISTED + "+".join(names), tuple(names), chosen, judge=judge), admission
        except ValueError as error:
            raise InvalidRequest(str(error)) from None

    def admit(self, names: Sequence[str], mode: str, on_excess: str) -> CouncilAdmission:
        """Whom tier and level let in. Raises as `admit_council`."""
        gates = self.gates
        return admit_council(names, mode, gates.limits, gates.tier, gates.level, on_excess)

    def seat(self, spec: CouncilSpec, mode: str, on_excess: str) -> ModelRef:
        """The council of `spec` as a model, with those members that tier, level and memory allow. Raises as `admit`
        and `admit_size` do, and as `PoolHandle.plan` for a member that can never be in memory."""
        gates = self.gates
        admitted = self.admit(spec.members, mode, on_excess)
        members = [self.catalog.find(name) for name in admitted.members]
        if len({model.name for model in members}) < len(members):
            raise InvalidRequest("models: two of the names mean the same model", field="models")
        admit_size([model.info for model in members], gates.limits, gates.tier)
        dropped, reason = list(admitted.dropped), None
        room = max(MEMBERS_MIN, gates.smaller)
        if len(members) > room and gates.memory_is_short():
            if on_excess == "refuse":
                raise TierLimitExceeded(
                    f"{len(members)} models in one request; memory is short, and {room} are allowed for now",
                    requested=len(members),
                    max_models=room,
                    tier=gates.tier,
                )
            dropped = [model.name for model in members[room:]] + dropped
            members = members[:room]
            reason = f"memory is short: {room} models, as the next lower tier allows"
        elif dropped:
            reason = f"level {gates.level.name} and tier {gates.tier} allow {len(members)} models"
        judge = None if spec.judge is None else self.catalog.find(spec.judge)
        if self.runtime.table is not None:
            self.runtime.table.pool.plan(members)  # all refused when one can never be had: nobody asked for the rest
        seats = Seats(spec, mode, tuple(members), tuple(dropped), judge, gates.celebrates, reason)
        return ModelRef(spec.name, self.runtime, _info(spec, members), seats)

    def _known(self) -> dict[str, CouncilSpec]:
        specs = dict(self.specs)
        if DEFAULT not in specs and (default := self._default()) is not None:
            specs[DEFAULT] = default
        return specs

    def _default(self) -> CouncilSpec | None:
        limits, level = self.gates.limits, self.gates.level
        models_max = max(MEMBERS_MIN, min(MEMBERS_MAX, limits.max_parallel_models, level.max_models))
        for runtime in self.catalog.runtimes:
            able = [
                model.name
                for model in self.catalog.models
                if model.runtime.name == runtime
                and not model.satellite  # nobody is asked outside this machine unless he is named
                and Capability.COMPLETION in model.info.capabilities
                and (model.info.size_bytes or 0) <= limits.max_model_size_bytes
            ]
            if len(able) >= MEMBERS_MIN:
                return CouncilSpec(NAMED + DEFAULT, tuple(able[:models_max]))
        return None


def _info(spec: CouncilSpec, members: Sequence[ModelRef]) -> ModelInfo:
    capabilities = [each for each in SHARED if all(each in model.info.capabilities for model in members)]
    names = [model.name for model in members]
    return ModelInfo(
        name=spec.name,
        runtime="council",
        size_bytes=None,
        capabilities=tuple(capabilities),
        details={"members": names, "method": spec.method.value},
    )


@attrs.define(eq=False)
class CouncilRuntime:
    """What runs a council, as a runtime: its members are elsewhere, and it brings nothing into memory itself."""

    councils: Councils
    table: SessionTable | None = None  # where its sessions run; given once that exists
    name: str = "council"
    kind: str = "council"
    url: str | None = None

    @property
    def local(self) -> bool:
        return all(runtime.local for runtime in self.councils.catalog.runtimes.values())

    async def probe(self) -> Probe:
        await trio.lowlevel.checkpoint()
        up = bool(self.councils.listed())
        return Probe(up, None if up else "there are no two models that could answer together")

    async def list_models(self) -> tuple[ModelInfo, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(council.info for council in self.councils.listed())

    async def resident(self) -> None:
        await trio.lowlevel.checkpoint()

    async def load(self, model: str) -> Loaded:
        await trio.lowlevel.checkpoint()
        raise InvalidRequest(f"{model} is a council: its members are loaded when it is asked, or load them by name")

    async def unload(self, model: str) -> int:
        await trio.lowlevel.checkpoint()
        raise InvalidRequest(f"{model} is a council and in no memory; unload its members by name")

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chosen answer, from a session of its own. Leaving stops that session."""
        council = self.councils.find(request.model)
        if council is None or self.table is None:
            raise ModelNotFound(f"there is no council {request.model}", model=request.model)
        line = ReplyLine()
        session = self.table.start(SessionRequest(council, request, Origin.API, reply=line))
        try:
            yield _chunks(line, self.table.clock)
        finally:
            line.leave()
            session.stop(EndReason.ABORTED)
            await session.closed.wait()


async def _chunks(line: ReplyLine, clock: Callable[[], int]) -> AsyncIterator[Chunk]:
    while not isinstance(item := await line.next(), Ended):
        if isinstance(item, Chunk):
            yield item
    if item.end is None:
        raise item.error or UpstreamTruncated("the council was stopped")
    yield Chunk("", clock(), end=item.end)
