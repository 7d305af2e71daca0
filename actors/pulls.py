"""ModelPulls: downloads of models. One per model however many ask for it, and it ends when nobody waits for it any
more; what is on disk by then stays there, and the next one goes on from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final, Literal

import attrs
import trio

from actors.catalog import Catalog, ModelRef
from actors.kernel import Outlet
from engine.domain.errors import (
    EngineError,
    Forbidden,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
)
from engine.domain.events import ModelChanged, SessionSignal
from engine.domain.models import ModelState, is_model_name
from engine.domain.pull import PullProgress
from engine.domain.runtime import Puller
from engine.domain.synthesis import CouncilMethod

PULLS_MAX: Final = 4
MISSING_MAX: Final = 8  # models one name can stand for: the members of a council, and its judge
RETRY_AFTER_S: Final = 10
NEWS_INTERVAL_S: Final = 0.25  # between two events about one download

PullPolicy = Literal["explicit", "auto", "never"]  # only when asked to; also when a model is missing; not at all

logger = logging.getLogger("wf.pulls")


@attrs.define(eq=False)
class _Pull:
    """A download under way. `progress` is the newest; who follows sees that one, not every one."""

    model: str
    runtime: Puller
    progress: PullProgress = attrs.field(factory=lambda: PullProgress("asking for it"))
    error: EngineError | None = None
    over: bool = False
    waiting: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    changed: trio.Event = attrs.field(factory=trio.Event)

    def wake(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


@attrs.define(eq=False)
class Follower:
    """Somebody who waits for a download. The last one to leave stops it."""

    _pull: _Pull
    _shown: PullProgress | None = None
    _left: bool = False

    async def next(self) -> PullProgress | None:
        """The newest progress that was not given yet, as soon as there is one; None at the end. Raises what the runtime
        raised."""
        pull = self._pull
        while pull.progress is self._shown:
            if pull.error is not None:
                raise pull.error.again()
            if pull.over:
                return None
            await pull.changed.wait()
        self._shown = pull.progress
        return self._shown

    def leave(self) -> None:
        """Any number of times, from any callback of this thread."""
        if not self._left:
            self._left = True
            self._pull.waiting -= 1
            if not self._pull.waiting:
                self._pull.scope.cancel(reason="nobody waits for it")


@attrs.define(eq=False)
class ModelPulls:
    catalog: Catalog
    signals: Outlet[SessionSignal]
    policy: PullPolicy
    _pulls: dict[str, _Pull] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; downloads in flight are cancelled with it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def under_way(self) -> dict[str, PullProgress]:
        """The downloads of this moment, by model."""
        return {name: pull.progress for name, pull in self._pulls.items()}

    async def resolve(self, name: str, *, explicit: bool) -> ModelRef:
        """The model called `name`, downloaded first where it is missing and the policy allows that. `explicit`: the
        caller asked for the model to be brought here, not just for an answer.

        Raises as Catalog.find does, with the command that downloads it, and as `bring`."""
        for _ in range(MISSING_MAX):
            try:
                return await self.catalog.resolve(name)
            except ModelNotFound as error:
                missing = error.details.get("model")  # a member, where `name` is a council; none: it is no model at all
                if missing is None or self.policy == "never" or self._puller(missing) is None:
                    raise
                if not (explicit or self.policy == "auto"):
                    hint = f"{error.message}; if it is to be had, `wf pull {missing}` downloads it"
                    raise ModelNotFound(hint, **error.details) from None
            await self.bring(missing)
        return self.catalog.find(name)

    async def council(
        self, names: Sequence[str], mode: str, on_excess: str, method: CouncilMethod | None, judge: str | None
    ) -> ModelRef:
        """These models as one, each downloaded first as `resolve` does. Raises as that and Councils do."""
        councils = self.catalog.councils
        assert councils is not None
        spec, admission = councils.of_models(names, mode, on_excess, method, judge)
        for name in (*admission.members, *([] if judge is None else [judge])):
            await self.resolve(name, explicit=False)
        return councils.seat(spec, mode, on_excess)

    async def bring(self, name: str) -> None:
        """Download `name` and list it. Cancelled here: stops, unless somebody else waits for it too. Raises as `join`
        and what the runtime raises."""
        follower = await self.join(name)
        try:
            while await follower.next() is not None:
                pass
        finally:
            follower.leave()

    async def join(self, name: str) -> Follower:
        """A place at the download of `name`, which begins unless it is under way. `leave` it in any case.

        Raises InvalidRequest for a name outside the grammar, Forbidden, Overloaded, and RuntimeUnavailable when no
        runtime here can download it."""
        while (pull := self._pulls.get(name)) is not None and pull.scope.cancel_called:
            await pull.changed.wait()  # the one before has just been given up
        pull = pull or self._start(name)
        pull.waiting += 1
        return Follower(pull)

    def _start(self, name: str) -> _Pull:
        if not is_model_name(name):
            raise InvalidRequest("model: not a model name (letters, digits, `._-`, at most three parts, one `:tag`)")
        if self.policy == "never":
            raise Forbidden("downloads are switched off here (pull: never, or the core lock)")
        if len(self._pulls) >= PULLS_MAX:
            raise Overloaded(f"{PULLS_MAX} downloads are under way", limit=PULLS_MAX, retry_after_s=RETRY_AFTER_S)
        runtime = self._puller(name)
        if runtime is None or self._nursery is None:
            raise RuntimeUnavailable("no runtime here can download models; GET /health says what to do")
        pull = self._pulls[name] = _Pull(name, runtime)
        self._nursery.start_soon(self._download, pull, name=f"pull {name}")
        return pull

    def _puller(self, name: str) -> Puller | None:
        """The runtime that is configured for it, else the first that is up and can download it, else the first that
        could if it were."""
        able = [r for r in self.catalog.runtimes.values() if isinstance(r, Puller) and r.can_pull(name)]
        able.sort(key=lambda runtime: not runtime.pulls_first(name))
        if able and able[0].pulls_first(name):
            return able[0]
        up = [r for r in able if (probe := self.catalog.probes.get(r.name)) is not None and probe.up]
        return next(iter([*up, *able]), None)

    async def _download(self, pull: _Pull) -> None:
        try:
            await self._tell(pull, ModelState.PULLING)
            with pull.scope:
                await self._steps(pull)
                await self.catalog.refresh()
        except trio.Cancelled:
            pull.error = Overloaded("the engine is stopping; what is on disk stays there", retry_after_s=RETRY_AFTER_S)
            raise
        except EngineError as error:
            pull.error = error
        except Exception as error:
            logger.error("pulling %s failed: %s", pull.model, type(error).__name__, exc_info=error)
            pull.error = InternalError(f"{pull.model} could not be downloaded")
        finally:
            pull.over = True
            del self._pulls[pull.model]
            pull.wake()
        if pull.error is not None:
            await self._tell(pull, ModelState.FAILED, pull.error.message)
        else:
            await self._tell(pull, ModelState.ABSENT, "stopped" if pull.scope.cancelled_caught else "downloaded")

    async def _steps(self, pull: _Pull) -> None:
        told_at, told = trio.current_time(), pull.progress
        async with aclosing(pull.runtime.pull(pull.model)) as steps:
            async for progress in steps:
                pull.progress = progress
                pull.wake()
                if trio.current_time() >= told_at + NEWS_INTERVAL_S:
                    told_at, told = trio.current_time(), progress
                    await self._tell(pull, ModelState.PULLING)
        if told is not pull.progress:
            await self._tell(pull, ModelState.PULLING)

    async def _tell(self, pull: _Pull, state: ModelState, reason: str | None = None) -> None:
        share = pull.progress.share if state is ModelState.PULLING else None
        reason = reason or (pull.progress.status if state is ModelState.PULLING else None)
        await self.signals.put(ModelChanged(None, pull.model, state, progress=share, reason=reason))
