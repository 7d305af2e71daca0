"""Downloads over HTTP: Ollama's `/api/pull`, `/models/load` of an absent model, and `pull: auto`."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.settings import PoolSettings, Settings
from tests.fakes.api import ndjson, running_api
from tests.fakes.runtime import PullingRuntime, ScriptedRuntime, words


def pulling(clock):
    return PullingRuntime(clock)


async def test_a_pull_is_followed_line_by_line(autojump_clock):
    async with running_api(pulling) as api:
        answer = await api.post("/api/pull", {"model": "new", "insecure": False})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        lines = ndjson(answer.body)
        assert {"status": "pulling manifest"} in lines[:2]
        assert {"status": "pulling layers", "completed": 400, "total": 1000} in lines
        assert lines[-1] == {"status": "success", "completed": 1000, "total": 1000}
        assert "new:latest" in [m["name"] for m in (await api.get("/models")).json["models"]]


async def test_a_pull_without_streaming_waits_for_the_end(autojump_clock):
    async with running_api(pulling) as api:
        answer = await api.post("/api/pull", {"name": "new", "stream": False})
        assert answer.json == {"status": "success"}
        assert api.slice.runtime.pulls == ["new"]


async def test_a_pull_that_fails_says_so_as_ollama_does(autojump_clock):
    async with running_api(pulling) as api:
        lines = ndjson((await api.post("/api/pull", {"model": "missing"})).body)
        assert lines[-1] == {"error": "nobody has missing"}
        whole = await api.post("/api/pull", {"model": "missing", "stream": False})
        assert (whole.status, whole.json) == (404, {"error": "nobody has missing"})


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [({}, 400, "give the name"), ({"model": "../x"}, 400, "not a model name"), ({"model": "elsewhere"}, 503, "health")],
)
async def test_what_cannot_be_pulled_is_refused_in_its_dialect(autojump_clock, body, status, words):
    async with running_api(pulling) as api:
        answer = await api.post("/api/pull", body)
        assert answer.status == status
        assert words in answer.json["error"]


async def test_leaving_stops_the_download_unless_somebody_else_waits(autojump_clock):
    async with running_api(pulling) as api:
        async with api.open("POST", "/api/pull", {"model": "new"}) as first:
            await first.receive()
            async with api.open("POST", "/api/pull", {"model": "new"}) as second:
                await second.receive()
            await trio.sleep(1)
            assert api.slice.runtime.pulls_left == 0
            under_way = (await api.get("/models")).json["pulls"]
            assert [(p["name"], p["status"]) for p in under_way] == [("new", "pulling layers")]
        await trio.sleep(1)
        assert (api.slice.runtime.pulls, api.slice.runtime.pulls_left) == (["new"], 1)
        assert (await api.get("/models")).json["pulls"] == []


async def test_leaving_before_the_first_line_stops_it_too(autojump_clock):
    async with running_api(pulling) as api:
        async with api.open("POST", "/api/pull", {"model": "new"}):
            await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert api.slice.runtime.pulls_left == len(api.slice.runtime.pulls)
        assert (await api.get("/models")).json["pulls"] == []


async def test_loading_an_absent_model_downloads_it_first_and_tells(autojump_clock):
    async with running_api(pulling) as api:
        sink = api.slice.client()
        body = (await api.post("/models/load", {"name": "new", "warm_up": False})).json
        assert (body["success"], body["model"]) == (True, "new:latest")
        await trio.sleep(0.1)
        told = [(e["payload"]["state"], e["payload"]["progress"]) for e in sink.events("experience.model")]
        assert ("pulling", 0.5) in told
        assert told[-1][0] == "ready"


async def test_an_answer_alone_downloads_nothing_unless_told_to(autojump_clock):
    async with running_api(pulling) as api:
        error = (await api.post("/generate", {"model": "new", "prompt": "x"})).error
        assert (error["code"], "`wf pull new`" in error["message"]) == ("MODEL_NOT_FOUND", True)
    async with running_api(pulling, Settings(pull="auto")) as api:
        answer = await api.post("/generate", {"model": "new", "prompt": "x", "stream": True})
        assert ndjson(answer.body)[-1]["payload"]["reason"] == "finished"


async def test_downloads_can_be_switched_off(autojump_clock):
    async with running_api(pulling, Settings(pull="never")) as api:
        assert (await api.post("/models/load", {"name": "new"})).error["code"] == "MODEL_NOT_FOUND"
        answer = await api.post("/api/pull", {"model": "new"})
        assert (answer.status, "pull: never" in answer.json["error"]) == (403, True)


# ── runner options ──


def ollama(clock):
    return ScriptedRuntime(clock, words(3), kind="ollama")


async def test_runner_options_are_passed_on_as_they_are(autojump_clock):
    async with running_api(ollama) as api:
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True, "runner_options": {"num_ctx": 2048}})
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        assert [request.runner_options for request in api.slice.runtime.requests] == [{"num_ctx": 2048}, {}]


async def test_pinned_runner_options_drop_those_of_requests_and_count_them(autojump_clock):
    async with running_api(ollama, Settings(pool=PoolSettings(pin_runner_options=True))) as api:
        await api.post("/generate", {"model": "a", "prompt": "x", "stream": True, "runner_options": {"num_ctx": 2048}})
        assert api.slice.runtime.requests[0].runner_options == {}
        assert (await api.get("/stats")).json["pool"]["runner_options_dropped"] == 1


async def test_runner_options_are_for_ollama_only(autojump_clock):
    async with running_api() as api:
        body = {"model": "a", "prompt": "x", "runner_options": {"num_ctx": 2048}}
        error = (await api.post("/generate", body)).error
        assert (error["code"], "they are Ollama's" in error["message"]) == ("VALIDATION_ERROR", True)
        error = (await api.post("/generate", body | {"runner_options": {"num_ctx": 0}})).error
        assert "num_ctx" in error["message"]


async def test_a_reload_is_counted_explained_and_booked_as_cold(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, words(3), kind="ollama", load_ms=260.0)) as api:
        sink = api.slice.client()
        for options in ({}, {"num_ctx": 4096}):
            await api.post("/generate", {"model": "a", "prompt": "x", "stream": True, "runner_options": options})
        await trio.sleep(0.1)
        reasons = [e["payload"]["reason"] for e in sink.events("experience.model") if e["payload"]["reason"]]
        assert reasons == ["loaded again in 260 ms (changed: num_ctx default → 4096)"]
        assert [e["payload"]["summary"]["cold"] for e in sink.events("experience.session_end")] == [True, True]
        assert (await api.get("/stats")).json["pool"]["reloads"] == 1
