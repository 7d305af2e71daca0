"""Crash, restart and stop, in virtual time."""

from __future__ import annotations

import pytest
import trio

from actors.supervise import supervise
from engine.domain.errors import RestartsExhausted
from policies.restart import NEVER, RestartPolicy

POLICY = RestartPolicy(max_restarts=3, within_s=5.0, backoff_s=0.05, backoff_max_s=2.0)


class Crashing:
    """Starts, lives for a while, crashes; the last one ends properly."""

    def __init__(self, log, lives_s, before_started=False):
        self.log, self.lives_s, self.before_started = log, lives_s, before_started

    async def run(self, *, task_status):
        if self.before_started:
            raise ValueError("cannot start")
        task_status.started()
        self.log.append(round(trio.current_time(), 3))
        await trio.sleep(self.lives_s.pop(0))
        if self.lives_s:
            raise ZeroDivisionError("boom")


async def test_a_crash_is_answered_with_a_new_incarnation_after_a_growing_pause(autojump_clock, caplog):
    log, lives, crashes = [], [1.0, 0.0, 0.0, 3.0], []
    start = trio.current_time()
    await supervise("it", lambda: Crashing(log, lives), POLICY, on_crash=crashes.append)
    assert [round(at - start, 3) for at in log] == [0.0, 1.05, 1.15, 1.35]
    assert [type(e) for e in crashes] == [ZeroDivisionError] * 3
    assert "boom" not in "".join(r.getMessage() for r in caplog.records)


async def test_too_many_crashes_end_it_with_the_cause(autojump_clock):
    with pytest.raises(RestartsExhausted) as caught:
        await supervise("it", lambda: Crashing([], [0.0] * 9), POLICY)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_crashes_far_apart_are_forgiven_for_ever(autojump_clock):
    log = []
    await supervise("it", lambda: Crashing(log, lives), POLICY) if (lives := [10.0] * 20) else None
    assert len(log) == 20


async def test_never_means_the_first_crash_ends_it(autojump_clock):
    with pytest.raises(RestartsExhausted):
        await supervise("it", lambda: Crashing([], [1.0, 1.0]), NEVER)


async def test_a_crash_before_started_is_a_start_failure_and_not_retried(autojump_clock):
    made = []

    def make():
        made.append(1)
        return Crashing([], [1.0], before_started=True)

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise, "it", make, POLICY)
    assert caught.group_contains(ValueError)
    assert made == [1]


async def test_a_cancelled_actor_is_not_restarted(autojump_clock):
    log = []
    with trio.move_on_after(1):
        await supervise("it", lambda: Crashing(log, [100.0]), POLICY)
    assert len(log) == 1
