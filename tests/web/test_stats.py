from __future__ import annotations

import pytest
import trio

from tests.fakes.api import running_api
from tests.fakes.runtime import ScriptedRuntime, words

LONG = words(2000)


async def test_health_tells_who_runs_and_since_when(autojump_clock):
    async with running_api() as api:
        await trio.sleep(2)
        body = (await api.get("/health")).json
        assert (body["status"], body["uptime_s"], body["tier"], body["level"]) == ("ok", 2.0, "mid", 5)
        assert body["runtimes"] == [
            {"name": "scripted", "kind": "scripted", "url": None, "local": True, "up": True, "reason": None}
        ]
        assert body["sessions_active"] == 0


async def test_health_counts_sessions_and_touches_no_model(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, LONG)) as api:
        await api.generate()
        await trio.sleep(1)
        asked = len(api.slice.runtime.requests), len(api.slice.runtime.loads)
        assert (await api.get("/health")).json["sessions_active"] == 1
        assert (len(api.slice.runtime.requests), len(api.slice.runtime.loads)) == asked


async def test_without_a_runtime_the_engine_is_degraded_and_says_why(autojump_clock):
    async with running_api() as api:
        api.slice.runtime.up = False
        await trio.sleep(6)  # asked again every five seconds
        body = (await api.get("/health")).json
        assert body["status"] == "degraded"
        assert (body["runtimes"][0]["up"], body["runtimes"][0]["reason"]) == (False, "switched off")


async def test_health_says_what_to_do_next(autojump_clock):
    def ollama(clock):
        return ScriptedRuntime(clock, kind="ollama", models=())

    async with running_api(ollama) as api:
        body = (await api.get("/health")).json
        assert (body["state"], body["suggested_model"], body["remote"]) == ("no_models", "llama3.2:3b", False)
        assert body["next"] == "scripted answers but has no model; load one there"
        api.slice.runtime.up = False
        await trio.sleep(6)
        body = (await api.get("/health")).json
        assert body["state"] == "no_runtime"
        assert "https://ollama.com/download" in body["next"]
        api.slice.runtime.up, api.slice.runtime.models = True, ("a",)
        await trio.sleep(6)
        body = (await api.get("/health")).json
        assert (body["state"], body["next"]) == ("ready", None)


async def test_what_pages_told_of_their_painting_is_shown(autojump_clock):
    async with running_api() as api:
        api.slice.client()
        api.slice.core.hub.clients[0].receive(b'{"type":"ack_rendered","frame":0,"fps":60,"lag_ms":3.5}')
        (client,) = (await api.get("/stats")).json["clients"]
        assert (client["frame"], client["fps"], client["lag_ms"]) == (0, 60, 3.5)
        assert client["behind"] == api.engine.frame_counter.last


async def test_stats_of_an_engine_that_did_nothing_are_zero_and_null(autojump_clock):
    async with running_api() as api:
        body = (await api.get("/stats")).json
        assert body["models"] == {}
        assert body["sessions"] == {"active": 0, "running": [], "queued": 0, "total": 0, "ended": {}}
        system = body["system"]
        assert system["lateness_ms"] == system["frame_ms"] == {"p50": None, "p95": None, "p99": None}
        assert system["frames"] == system["frames_missed"] == 0
        assert {queue["name"] for queue in system["queues"]} == {"signals", "samples", "frames", "pool"}
        assert system["rss_bytes"] > 1_000_000
        assert system["cpu_s"] > 0


async def test_a_running_session_is_shown_with_its_figures(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, LONG)) as api:
        session_id = await api.generate()
        await trio.sleep(2.01)
        body = (await api.get("/stats")).json
        assert body["sessions"]["running"] == [
            {
                "session_id": session_id,
                "model": "a",
                "origin": "api",
                "state": "streaming",
                "tokens": 40,
                "duration_ms": 2010.0,
            }
        ]
        figures = body["models"]["a"]
        assert (figures["active_sessions"], figures["total_tokens"]) == (1, 40)
        assert figures["tps_current"] == pytest.approx(20.0)
        assert body["system"]["fps_current"] == 60.0


async def test_a_session_on_its_way_says_where_it_is(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, LONG, load_s=5.0)) as api:
        await api.generate()
        states = []
        for wait_s in (1.0, 4.02, 1.0):
            await trio.sleep(wait_s)
            states.append((await api.get("/stats")).json["sessions"]["running"][0]["state"])
        assert states == ["loading", "waiting", "streaming"]


async def test_after_a_session_its_figures_stay(autojump_clock):
    async with running_api() as api:
        for _ in range(2):
            await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        body = (await api.get("/stats")).json
        assert body["sessions"]["ended"] == {"finished": 2}
        figures = body["models"]["a"]
        assert (figures["sessions"], figures["active_sessions"], figures["total_tokens"]) == (2, 0, 10)
        assert (figures["tps_current"], figures["tps_average"]) == (None, pytest.approx(20.0))
        assert figures["ttft_ms"] == {"cold": 50.0, "warm": 50.0, "p50": 50.0, "p95": 50.0}
        assert figures["eu_rate"] > 0


async def test_what_was_merged_or_dropped_is_counted(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, words(40))) as api:
        slow = api.slice.client()
        slow.reading = False
        api.slice.core.hub.clients[0].receive(b"nonsense")
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        drops = (await api.get("/stats")).json["system"]["drops"]
        assert drops["client_frames_merged"] > 50
        assert drops["energy_replaced"] > 50
        assert drops["bad_messages"] == 1
        assert drops["clients_closed_slow"] == drops["orphan_tokens"] == drops["unmeasured_tokens"] == 0


async def test_an_engine_that_is_never_late_misses_no_frame(autojump_clock):
    """Also when it was idle for less than a second in between."""
    async with running_api() as api:
        await api.generate()
        await trio.sleep(0.75)
        await api.generate()
        await trio.sleep(0.75)
        system = (await api.get("/stats")).json["system"]
        assert system["frames"] > 30
        assert system["frames_missed"] == 0
        assert system["lateness_ms"]["p99"] == 0.0
