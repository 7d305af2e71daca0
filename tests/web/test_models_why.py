"""`GET /models/{name}/why`, what `/models` says of pace and memory, and refusals with their numbers."""

from __future__ import annotations

import attrs
import trio

from engine.console import model_lines, why_lines
from engine.settings import LimitSettings, PoolSettings, Settings
from tests.actors.pool_rig import GB, SizedRuntime
from tests.fakes.api import running_api
from tests.fakes.runtime import ScriptedRuntime, words

SIZES = {"org/small:q4": 2 * GB, "big": 7 * GB, "other": 7 * GB, "third": 7 * GB, "giant": 9 * GB}
HOT = Settings(pool=PoolSettings(cooldown_s=0))


def sized(clock):
    return SizedRuntime(clock, words(3), load_s=2.0, sizes=dict(SIZES))


async def why(api, name):
    answer = await api.get(f"/models/{name}/why")
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_model_nobody_asked_for_would_be_loaded(autojump_clock):
    async with running_api(sized) as api:
        body = await why(api, "org/small:q4")
        assert body == {
            "model": "org/small:q4", "state": "absent", "size_bytes": 2 * GB, "resident_bytes": 0,
            "expected_bytes": 2_400_000_000, "leases": 0, "pinned": False, "cools_for_ms": 0.0,
            "now": {"outcome": "load", "reason": None, "evict": [], "numbers": {}},
            "waiting": [], "decisions": [], "memory": body["memory"], "against_tier": body["against_tier"],
        }  # fmt: skip
        assert body["against_tier"]["ttft_cold_ms"] == {
            "measured": None, "aim": 10_000.0, "missed": None, "reason": "no answer of it was measured yet",
        }  # fmt: skip


async def test_loading_and_evicting_are_told_with_their_numbers(autojump_clock):
    async with running_api(sized, HOT) as api:
        for name in ("big", "other", "third"):
            assert (await api.post("/models/load", {"name": name, "warm_up": False})).status == 200
        loaded, evicted = (await why(api, "big"))["decisions"]
        assert (loaded["decision"], loaded["numbers"]) == ("loaded", {"load_ms": 2000.0, "resident_bytes": 7 * GB})
        assert (evicted["decision"], evicted["reason"]) == ("evicted", "to make room for third")
        assert evicted["at"] > loaded["at"]
        body = await why(api, "other")
        assert (body["state"], body["now"]["outcome"]) == ("ready", "ready")
        assert body["memory"]["used_bytes"] == 14 * GB
        assert (await why(api, "big"))["now"] == {"outcome": "load", "reason": None, "evict": ["other"], "numbers": {}}


async def test_a_model_that_cools_says_so(autojump_clock):
    async with running_api(sized) as api:
        await api.post("/models/load", {"name": "big", "warm_up": False, "pin": True})
        await trio.sleep(10)
        body = await why(api, "big")
        assert (body["pinned"], 19_000 < body["cools_for_ms"] <= 20_000) == (True, True)


async def test_who_waits_is_shown_with_place_and_reason(autojump_clock):
    async with running_api(sized, attrs.evolve(HOT, limits=LimitSettings(streams_max=1))) as api:
        first = api.slice.model("big")
        async with api.engine.pool.lease(first, _nobody), trio.open_nursery() as nursery:
            nursery.start_soon(_use, api, "org/small:q4")
            await trio.sleep(1)
            body = await why(api, "org/small:q4")
            (place,) = body["waiting"]
            assert place == {
                "position": 1, "reason": "1 streams are running, the most allowed at once", "wait_ms": None,
            }  # fmt: skip
            assert body["now"]["outcome"] == "wait"
            assert body["now"]["numbers"] == {"streams": 1, "wanted_streams": 1, "streams_max": 1}
            nursery.cancel_scope.cancel()


async def test_a_refusal_has_its_numbers_in_the_error_and_in_why(autojump_clock):
    async with running_api(sized, HOT) as api:
        answer = await api.post("/models/load", {"name": "giant"})
        assert (answer.status, answer.error["code"]) == (429, "TIER_LIMIT_EXCEEDED")
        body = await why(api, "giant")
        assert (body["now"]["outcome"], body["now"]["numbers"]["model_bytes_max"]) == ("refuse", 8 * GB)
        assert [decision["decision"] for decision in body["decisions"]] == ["refused"]
        for name in ("big", "other"):
            assert (await api.post("/models/load", {"name": name, "warm_up": False, "pin": True})).status == 200
        answer = await api.post("/models/load", {"name": "third"})
        assert (answer.status, answer.error["code"]) == (507, "INSUFFICIENT_MEMORY")
        details = {name: value for name, value in answer.error["details"].items() if name != "request_id"}
        assert details == {
            "needed_bytes": 8_400_000_000, "budget_bytes": 16 * GB, "used_bytes": 14 * GB, "evictable_bytes": 0,
        }  # fmt: skip
        assert (await api.get("/stats")).json["pool"]["refused"] == 2


async def test_an_unknown_model_has_no_why(autojump_clock):
    async with running_api(sized) as api:
        answer = await api.get("/models/nobody/why")
        assert (answer.status, answer.error["code"]) == (404, "MODEL_NOT_FOUND")


async def test_a_slow_model_is_flagged_and_not_refused(autojump_clock):
    async with running_api(lambda clock: _slow(clock, 0.1)) as api:  # 10 tokens/s, and mid aims at 15
        assert (await api.get("/models")).json["models"][0]["below_tier"] is None
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        assert (await api.get("/models")).json["models"][0]["below_tier"] is True
    async with running_api(lambda clock: _slow(clock, 0.01)) as api:
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        assert (await api.get("/models")).json["models"][0]["below_tier"] is False


async def test_a_first_token_that_waits_too_long_for_the_load_is_flagged_and_not_refused(autojump_clock):
    async with running_api(lambda clock: _slow(clock, 0.01, load_s=12.0)) as api:  # and mid aims at 10 s
        for _ in range(2):
            assert (await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})).status == 200
        (entry,) = (await api.get("/models")).json["models"]
        assert (entry["ttft_ms"], entry["ttft_cold_ms"], entry["below_tier"]) == (10.0, 12_010.0, True)
        assert entry["against_tier"] == {
            "tps": {"measured": entry["tps"], "aim": 15.0, "missed": False, "reason": None},
            "ttft_warm_ms": {"measured": 10.0, "aim": 2000.0, "missed": False, "reason": None},
            "ttft_cold_ms": {"measured": 12_010.0, "aim": 10_000.0, "missed": True, "reason": None},
        }
        body, stats = await why(api, "a"), (await api.get("/stats")).json
        assert body["against_tier"] == stats["models"]["a"]["against_tier"] == entry["against_tier"]
        flagged = "12010 ms, slower than the tier's 10000 ms"
        assert f"  first token with its load: {flagged}" in why_lines(body)
        assert f"  first token, cold  {flagged}" in model_lines(entry)


async def test_a_runtime_that_does_not_tell_of_loads_has_neither_time_and_says_so(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, words(3), silent=True)) as api:
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        entry = (await api.get("/models")).json["models"][0]
        held = [entry["against_tier"][kind] for kind in ("ttft_warm_ms", "ttft_cold_ms")]
        assert [one["reason"] for one in held] == ["its runtime does not tell whether it had to be loaded"] * 2
        assert [(one["measured"], one["missed"]) for one in held] == [(None, None)] * 2
        assert (entry["ttft_ms"], entry["ttft_cold_ms"], entry["below_tier"]) == (None, None, False)
        assert not any("load" in line or "first token" in line for line in model_lines(entry))


async def test_a_machine_without_a_gpu_has_no_budget_there(autojump_clock):
    async with running_api(sized) as api:
        memory = (await api.get("/models")).json["memory"]
        assert (memory["ram_budget_bytes"], memory["vram_budget_bytes"]) == (16 * GB, 0)


async def test_the_terminal_shows_it_in_lines(autojump_clock):
    async with running_api(sized, HOT) as api:
        for name in ("big", "other", "third"):
            await api.post("/models/load", {"name": name, "warm_up": False})
        assert why_lines(await why(api, "giant"))[1:3] == [
            "  asked for now, it would be refused: giant has 9.0 GB on disk, and this tier takes models up to 8.0 GB",
            "  takes 10.8 GB; models have 14.0 GB of 16.0 GB",
        ]
        lines = why_lines(await why(api, "big"))
        assert lines[0] == "big: absent"
        assert lines[1] == "  asked for now, it would be loaded, and other evicted for it"
        assert lines[-2].endswith("Z  loaded · load 2000 ms · resident 7.0 GB")
        assert lines[-1].endswith("Z  evicted · to make room for third · resident 7.0 GB")


def _slow(clock, after_s, load_s=0.0):
    return SizedRuntime(clock, words(10, after_s), load_s=load_s, sizes={"a": GB})


async def _nobody(state, position, reason):
    await trio.lowlevel.checkpoint()


async def _use(api, name):
    async with api.engine.pool.lease(api.slice.model(name), _nobody):
        await trio.sleep_forever()
