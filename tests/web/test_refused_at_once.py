"""What this machine can never do is refused before a session begins, with the numbers and in the caller's dialect; what
is only in use at the moment is waited for."""

from __future__ import annotations

import pytest
import trio

from engine.settings import PoolSettings, Settings
from tests.actors.pool_rig import GB, SizedRuntime
from tests.fakes.api import running_api
from tests.fakes.runtime import words
from tests.web.lens.ways import ANTHROPIC, WAYS

SIZES = {"giant": 9 * GB, "big": 7 * GB, "other": 7 * GB, "third": 7 * GB}
HOT = Settings(pool=PoolSettings(cooldown_s=0))


def sized(clock):
    return SizedRuntime(clock, words(3), sizes=dict(SIZES))


async def fill(api):
    """14 of 16 GB, for good."""
    for name in ("big", "other"):
        assert (await api.post("/models/load", {"name": name, "warm_up": False, "pin": True})).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_native_request_is_refused_before_its_session_begins(autojump_clock, stream):
    async with running_api(sized, HOT) as api:
        await fill(api)
        answer = await api.post("/generate", {"model": "third", "prompt": "x", "stream": stream})
        assert (answer.status, answer.error["code"]) == (507, "INSUFFICIENT_MEMORY")
        assert answer.error["message"] == (
            "third would take 8.4 GB of memory, and the budget is 16.0 GB, of which pinned models keep 14.0 GB"
        )
        details = {name: value for name, value in answer.error["details"].items() if name != "request_id"}
        assert details == {
            "needed_bytes": 8_400_000_000, "budget_bytes": 16 * GB, "used_bytes": 14 * GB, "evictable_bytes": 0,
        }  # fmt: skip
        answer = await api.post("/generate", {"model": "giant", "prompt": "x", "stream": stream})
        assert (answer.status, answer.error["code"]) == (429, "TIER_LIMIT_EXCEEDED")
        assert answer.error["details"]["model_bytes_max"] == 8 * GB
        stats = (await api.get("/stats")).json
        assert (stats["sessions"]["total"], stats["pool"]["refused"]) == (0, 2)
        why = (await api.get("/models/third/why")).json
        assert (why["decisions"][-1]["decision"], why["decisions"][-1]["numbers"]["used_bytes"]) == ("refused", 14 * GB)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_every_dialect_refuses_in_its_own_words_also_a_stream(autojump_clock, way):
    async with running_api(sized, HOT) as api:
        for body in (way.body(model="giant"), way.streamed(model="giant")):
            answer = await api.post(way.path, body)
            assert answer.status == 429
            assert "9.0 GB on disk, and this tier takes models up to 8.0 GB" in (way.failed(answer.json) or "")
        if way is ANTHROPIC:
            assert answer.json["error"]["type"] == "rate_limit_error"
        assert (await api.get("/stats")).json["sessions"]["total"] == 0
        assert (api.slice.runtime.loads, api.slice.runtime.opened) == ([], 0)


async def test_a_council_with_a_member_that_can_never_be_had_is_refused_at_once(autojump_clock):
    async with running_api(sized, HOT) as api:
        answer = await api.post("/generate", {"models": ["big", "giant"], "mode": "council", "prompt": "x"})
        assert (answer.status, answer.error["details"]["model"]) == (429, "giant")
        answer = await api.post("/generate", {"models": ["big", "other", "third"], "mode": "council", "prompt": "x"})
        assert answer.status == 202  # in waves


async def test_what_is_only_in_use_is_waited_for(autojump_clock):
    async with running_api(sized, HOT) as api, trio.open_nursery() as nursery:
        for name in ("big", "other"):
            nursery.start_soon(use, api, name)
        await trio.sleep(1)
        started = await api.post("/generate", {"model": "third", "prompt": "x"})
        assert started.status == 202
        await trio.sleep(1)
        session = api.slice.core.sessions.get(started.json["session_id"])
        assert session.state == "queued"
        nursery.cancel_scope.cancel()
    assert session.reason is not None


async def use(api, name):
    async with api.engine.pool.lease(api.slice.model(name), nobody):
        await trio.sleep_forever()


async def nobody(state, position, reason):
    await trio.lowlevel.checkpoint()
