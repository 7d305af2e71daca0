from __future__ import annotations

import attrs
import pytest
import trio

from engine.domain.errors import ModelLoadFailed, RuntimeUnavailable
from engine.settings import LimitSettings, Settings, TimeoutSettings
from tests.fakes.api import running_api
from tests.fakes.runtime import End, Fail, Say, ScriptedRuntime, words

LONG = words(2000)


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps or words(5), **more)


async def models(api):
    return {model["name"]: model for model in (await api.get("/models")).json["models"]}


async def test_every_model_is_listed_with_its_state(autojump_clock):
    async with running_api() as api:
        body = (await api.get("/models")).json
        assert [(m["name"], m["runtime"], m["state"]) for m in body["models"]] == [
            ("a", "scripted", "absent"),
            ("b", "scripted", "absent"),
            ("c", "scripted", "absent"),
        ]
        fresh = body["models"][0]
        assert (fresh["size_bytes"], fresh["resident_bytes"], fresh["last_used"]) == (1000, 0, None)
        assert (fresh["tps"], fresh["ttft_ms"]) == (None, None)
        assert (body["tier"], body["memory"]["used_bytes"]) == ("mid", 0)
        assert body["virtual"] == [{"name": "council/default", "members": ["a", "b", "c"]}]


async def test_listing_asks_the_runtime_again(autojump_clock):
    async with running_api() as api:
        api.slice.runtime.models = ("new",)
        assert list(await models(api)) == ["new"]
        api.slice.runtime.up = False
        assert await models(api) == {}


async def test_a_used_model_shows_what_was_measured(autojump_clock):
    async with running_api() as api:
        for _ in range(2):  # the second one is warm
            await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        used = (await models(api))["a"]
        assert (used["state"], used["resident_bytes"]) == ("ready", 1000)
        assert (used["tps"], used["ttft_ms"]) == (pytest.approx(20.0), 50.0)
        assert used["last_used"] is not None
        assert (await api.get("/models")).json["memory"]["used_bytes"] == 1000


# ── loading ──


async def test_load_brings_a_model_into_memory_and_warms_it_up(autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        client = api.slice.client()
        began = trio.current_time()
        body = (await api.post("/models/load", {"name": "a"})).json
        assert trio.current_time() - began >= 2.0
        assert body == {"success": True, "model": "a", "load_time_ms": 2000.0, "resident_bytes": 1000, "evicted": []}
        assert (api.slice.runtime.loads, api.slice.runtime.opened, api.slice.runtime.closed) == (["a"], 1, 1)
        (request,) = api.slice.runtime.requests
        assert request.parameters.max_tokens == 1
        assert (await models(api))["a"]["state"] == "ready"
        await trio.sleep(1)
        news = client.events("experience.model")
        assert [(e["session_id"], e["payload"]["state"]) for e in news] == [(None, "loading"), (None, "ready")]


async def test_load_without_warm_up_generates_nothing(autojump_clock):
    async with running_api() as api:
        assert (await api.post("/models/load", {"name": "a", "warm_up": False})).json["success"]
        assert api.slice.runtime.requests == []


async def test_loading_what_is_loaded_takes_no_time(autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        await api.post("/models/load", {"name": "a"})
        assert (await api.post("/models/load", {"name": "a"})).json["load_time_ms"] == 0.0
        assert api.slice.runtime.loads == ["a"]


async def test_two_who_load_the_same_model_share_one_load(autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        answers = []

        async def load():
            answers.append((await api.post("/models/load", {"name": "a", "warm_up": False})).json["load_time_ms"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            nursery.start_soon(load)
        assert answers == [2000.0, 2000.0]
        assert api.slice.runtime.loads == ["a"]


async def test_a_caller_who_leaves_does_not_stop_the_load(autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        async with api.open("POST", "/models/load", {"name": "a"}):
            await trio.sleep(1)
        assert (await models(api))["a"]["state"] == "loading"
        await trio.sleep(2)
        assert (await models(api))["a"]["state"] == "ready"


async def test_a_caller_who_leaves_does_not_stop_the_warm_up_that_another_waits_for(autojump_clock):
    async with running_api(scripted(Say("x", after_s=3.0), End(), load_s=2.0)) as api, trio.open_nursery() as nursery:
        answers = []

        async def stay():
            answers.append((await api.post("/models/load", {"name": "a"})).json)

        async with api.open("POST", "/models/load", {"name": "a"}):
            await trio.sleep(2.5)  # loaded, and warming up
            nursery.start_soon(stay)
            await trio.sleep(1)
        await trio.sleep(1)
        assert (answers, api.slice.runtime.closed) == ([], 0)
        await trio.sleep(1)
        assert answers == [
            {"success": True, "model": "a", "load_time_ms": 0.0, "resident_bytes": 1000, "evicted": []},
        ]
        assert (api.slice.runtime.loads, api.slice.runtime.opened, api.slice.runtime.closed) == (["a"], 1, 1)


async def test_an_answer_beside_a_warm_up_neither_loads_again_nor_stops_it(autojump_clock):
    async with running_api(scripted(*words(5), load_s=2.0)) as api, trio.open_nursery() as nursery:
        api.slice.runtime.by_model = {"a": (Say("x", after_s=3.0), End())}
        loads = []

        async def load():
            loads.append((await api.post("/models/load", {"name": "a"})).status)

        nursery.start_soon(load)
        await trio.sleep(1)
        answer = await api.post("/generate", {"model": "a", "prompt": "x", "stream": True})
        await trio.sleep(1)
        assert (answer.status, loads) == (200, [200])
        prompts = [request.prompt for request in api.slice.runtime.requests]
        assert (api.slice.runtime.loads, sorted(prompts)) == (["a"], ["warm up", "x"])


async def test_a_warm_up_that_fails_is_told_to_all_who_wait_and_to_those_who_watch(autojump_clock):
    failing = scripted(Fail(RuntimeUnavailable("it went away"), after_s=1.0), load_s=2.0)
    async with running_api(failing) as api:
        client, answers = api.slice.client(), []

        async def load():
            answers.append(await api.post("/models/load", {"name": "a"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            nursery.start_soon(load)
        assert [(answer.status, answer.error["message"]) for answer in answers] == [(503, "it went away")] * 2
        assert api.slice.runtime.opened == 1
        await trio.sleep(1)
        news = [event["payload"] for event in client.events("experience.model")]
        assert [(told["state"], told["reason"]) for told in news if told["reason"]] == [("ready", "it went away")]
        assert (await models(api))["a"]["state"] == "ready"
        decisions = (await api.get("/models/a/why")).json["decisions"]
        assert [(told["decision"], told["reason"]) for told in decisions][-1] == ("not_warmed_up", "it went away")


NAMES = tuple(f"m{n}" for n in range(8))


@attrs.define(eq=False)
class SlowToFree(ScriptedRuntime):
    """Keeps `log` of what begins and ends; freeing a model takes a second."""

    log: list[str] = attrs.field(factory=list)

    async def load(self, model):
        self.log.append(f"load {model}")
        return await ScriptedRuntime.load(self, model)

    async def unload(self, model):
        await trio.sleep(1)
        self.log.append(f"freed {model}")
        return await ScriptedRuntime.unload(self, model)


async def fill(api, count=6):
    """As many models in memory as the tier allows."""
    for name in NAMES[:count]:
        await api.post("/models/load", {"name": name, "warm_up": False})
        await trio.sleep(1)


async def test_the_longest_unused_model_makes_room_and_is_named(autojump_clock):
    async with running_api(scripted(models=NAMES)) as api:
        await fill(api)
        body = (await api.post("/models/load", {"name": "m6", "warm_up": False})).json
        assert body["evicted"] == ["m0"]
        await trio.sleep(1)
        assert api.slice.runtime.unloads == ["m0"]
        assert (await models(api))["m0"]["state"] == "absent"


async def test_what_makes_room_is_gone_before_the_next_is_loaded(autojump_clock):
    async with running_api(lambda clock: SlowToFree(clock, models=NAMES)) as api:
        await fill(api)
        await api.post("/models/load", {"name": "m6", "warm_up": False})
        assert api.slice.runtime.log[-2:] == ["freed m0", "load m6"]


async def test_each_new_model_costs_one_old_one(autojump_clock):
    """Also when the next one is asked for before the last one has gone."""
    async with running_api(lambda clock: SlowToFree(clock, models=NAMES)) as api:
        await fill(api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.post, "/models/load", {"name": "m6", "warm_up": False})
            await trio.sleep(0.5)
            nursery.start_soon(api.post, "/models/load", {"name": "m7", "warm_up": False})
        await trio.sleep(5)
        assert api.slice.runtime.unloads == ["m0", "m1"]


@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "zzz"}, 404, "MODEL_NOT_FOUND"),
        ({"name": "a b"}, 400, "VALIDATION_ERROR"),
        ({"name": ""}, 400, "VALIDATION_ERROR"),
        ({}, 400, "VALIDATION_ERROR"),
        ({"name": "a", "warm_up": 1}, 400, "VALIDATION_ERROR"),
    ],
)
async def test_what_cannot_be_moved_is_refused(path, body, status, code, autojump_clock):
    async with running_api() as api:
        answer = await api.post(path, body)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert api.slice.runtime.loads == []


async def test_an_unknown_model_is_answered_with_those_there_are(autojump_clock):
    async with running_api() as api:
        details = (await api.post("/models/load", {"name": "zzz"})).error["details"]
        assert (details["model"], details["available"]) == ("zzz", ["a", "b", "c"])


async def test_a_load_that_fails_says_why_and_leaves_the_state(autojump_clock):
    async with running_api(scripted(load_error=ModelLoadFailed("a: no memory"))) as api:
        answer = await api.post("/models/load", {"name": "a"})
        assert (answer.status, answer.error["code"], answer.error["message"]) == (
            502,
            "MODEL_LOAD_FAILED",
            "a: no memory",
        )
        assert (await models(api))["a"]["state"] == "failed"
        api.slice.runtime.load_error = None
        assert (await api.post("/models/load", {"name": "a"})).status == 200
        assert (await models(api))["a"]["state"] == "ready"


async def test_a_load_that_fails_is_told_to_each_under_his_own_request(autojump_clock):
    async with running_api(scripted(load_s=1.0, load_error=ModelLoadFailed("a: no memory"))) as api:
        answers = []

        async def load(request_id):
            headers = {"x_request_id": request_id}
            answers.append((await api.post("/models/load", {"name": "a"}, **headers)).error["details"]["request_id"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, "first-of-two")
            nursery.start_soon(load, "second-of-two")
        assert sorted(answers) == ["first-of-two", "second-of-two"]
        assert api.slice.runtime.loads == ["a"]


async def test_a_load_without_end_is_a_timeout(autojump_clock):
    async with running_api(scripted(load_s=9999), Settings(timeouts=TimeoutSettings(load_s=30))) as api:
        answer = await api.post("/models/load", {"name": "a"})
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (504, "MODEL_LOAD_TIMEOUT", True)


async def test_a_warm_up_without_end_is_a_timeout(autojump_clock):
    settings = Settings(timeouts=TimeoutSettings(first_token_s=5, progress_s=5))
    async with running_api(scripted(Say("x", after_s=9_999), End()), settings) as api:
        with trio.move_on_after(60) as hung:
            answer = await api.post("/models/load", {"name": "a"})
        assert not hung.cancelled_caught
        assert answer.status == 504


async def test_a_load_may_say_that_it_pins_nothing(autojump_clock):
    async with running_api() as api:
        assert (await api.post("/models/load", {"name": "a", "pin": False})).status == 200


# ── unloading ──


async def test_unload_frees_what_the_runtime_says(autojump_clock):
    async with running_api() as api:
        await api.post("/models/load", {"name": "a"})
        assert (await api.post("/models/unload", {"name": "a"})).json == {"success": True, "freed_bytes": 1000}
        assert api.slice.runtime.unloads == ["a"]
        assert (await models(api))["a"]["state"] == "absent"


async def test_unloading_what_is_not_loaded_frees_nothing(autojump_clock):
    async with running_api() as api:
        assert (await api.post("/models/unload", {"name": "a"})).json == {"success": True, "freed_bytes": 0}
        assert api.slice.runtime.unloads == ["a"]  # it may be there without our knowledge


async def test_a_model_in_use_is_not_unloaded(autojump_clock):
    async with running_api(scripted(*LONG)) as api:
        session_id = await api.generate()
        await trio.sleep(1)
        answer = await api.post("/models/unload", {"name": "a"})
        assert (answer.status, answer.error["code"]) == (409, "SESSION_CONFLICT")
        assert answer.error["details"]["streams"] == 1
        await api.post("/stop", {"session_id": session_id})
        assert (await api.post("/models/unload", {"name": "a"})).json["freed_bytes"] == 1000


async def test_a_model_on_its_way_is_not_unloaded(autojump_clock):
    async with running_api(scripted(load_s=5.0)) as api:
        await api.generate()
        await trio.sleep(1)
        assert (await api.post("/models/unload", {"name": "a"})).status == 409


async def test_a_full_queue_is_503(autojump_clock):
    """A load waits like any other request; the one that finds no place is told when to come back."""
    names = tuple(f"m{n}" for n in range(6))
    limits = LimitSettings(streams_max=64, queued_max=1)
    async with (
        running_api(scripted(*LONG, models=names), Settings(limits=limits)) as api,
        trio.open_nursery() as nursery,
    ):
        for name in names[:4]:  # as many models as the tier allows at once
            await api.generate(model=name)
        await trio.sleep(1)
        nursery.start_soon(api.post, "/models/load", {"name": "m4"})
        await trio.sleep(1)
        answer = await api.post("/models/load", {"name": "m5"})
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "OVERLOADED", "1")
        nursery.cancel_scope.cancel()
