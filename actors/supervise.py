"""The one place that restarts an actor. Everything else lets exceptions pass."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from actors.kernel import Actor
from engine.domain.errors import RestartsExhausted
from policies.restart import RestartPolicy, delay_s

logger = logging.getLogger("wf.supervise")


async def supervise(
    name: str,
    make: Callable[[], Actor],
    policy: RestartPolicy,
    *,
    on_crash: Callable[[Exception], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an actor; after a crash make a new one as `policy` allows, else raise RestartsExhausted with the cause.

    A crash before it reported started is a start failure and propagates unchanged."""
    crashes: list[float] = []
    started = False

    class Status:
        def started(self, value: None = None) -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

    while True:
        try:
            await make().run(task_status=Status())
            return
        except Exception as error:
            if not started:
                raise
            crashes = [*crashes[-policy.max_restarts :], trio.current_time()]
            logger.error("actor %s crashed: %s", name, type(error).__name__, exc_info=error)
            pause_s = delay_s(policy, crashes, crashes[-1])
            if pause_s is None:
                raise RestartsExhausted(f"{name} crashed {len(crashes)} times", actor=name) from error
            if on_crash is not None:
                on_crash(error)
        await trio.sleep(pause_s)
