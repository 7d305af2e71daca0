"""The calls of the drop-in APIs that ask for no text: what there is, what is in memory, and what is not served."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.catalog import LISTED_S
from engine.domain.errors import ModelLoadFailed
from engine.settings import LensSettings, Settings
from tests.fakes.api import HOST, running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.http_server import serving
from tests.fakes.network import http_head, read_answer
from tests.fakes.runtime import ScriptedRuntime, words
from tests.web.lens.ways import OLLAMA_CHAT, OLLAMA_GENERATE

RUNNING = {
    "name": "m:latest",
    "size": 2000,
    "size_vram": 1500,
    "expires_at": "2026-11-20T10:00:00.123456789+01:00",
    "context_length": 4096,
}

ALIASED = Settings(lens=LensSettings(aliases={"gpt-4o-mini": "b"}))


def scripted(*steps, **more):
    return lambda clock: ScriptedRuntime(clock, steps or words(5), **more)


# ── the root ──


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
async def test_a_program_that_asks_the_root_hears_what_ollama_says(accept, autojump_clock):
    async with running_api() as api:
        headers = {} if accept is None else {"accept": accept}
        answer = await api.get("/", **headers)
        assert (answer.status, answer.body) == (200, b"Ollama is running")
        async with serving(api.app) as server:
            stream = await server.listener.connect()
            given = [] if accept is None else [f"accept: {accept}"]
            await stream.send_all(http_head("HEAD", "/", HOST, given))
            head = await read_answer(stream, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_browser_gets_the_page(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert (answer.status, answer.body) == (200, b"<!doctype html>")


# ── what there is ──


async def test_the_version_is_one_that_clients_can_compare(autojump_clock):
    async with running_api() as api:
        version = (await api.get("/api/version")).json["version"]
        assert all(part.isdecimal() for part in version.split("."))


async def test_both_lists_name_the_models_as_the_engine_does(autojump_clock):
    async with running_api() as api:
        tags = (await api.get("/api/tags")).json["models"]
        assert [(model["name"], model["model"], model.get("size")) for model in tags] == [
            *((name, name, 1000) for name in "abc"),
            ("council/default", "council/default", None),
        ]
        listed = (await api.get("/v1/models")).json
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["a", "b", "c", "council/default"]
        api.slice.runtime.models = ("new",)
        await trio.sleep(LISTED_S)
        assert [model["name"] for model in (await api.get("/api/tags")).json["models"]] == ["new"]
        api.slice.runtime.models = ("newer",)
        await trio.sleep(LISTED_S)
        assert [model["id"] for model in (await api.get("/v1/models")).json["data"]] == ["newer"]


@attrs.define(eq=False)
class ListedRuntime(ScriptedRuntime):
    """Counts how often it was asked for its models, which takes `listing_s`."""

    listings: int = 0
    listing_s: float = 0.0

    async def list_models(self):
        self.listings += 1
        await trio.sleep(self.listing_s)
        return await ScriptedRuntime.list_models(self)


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/v1/models"])
async def test_a_list_says_how_old_it_is_and_is_never_older_than_half_a_second(path, autojump_clock):
    async with running_api(ListedRuntime) as api:
        runtime = api.slice.runtime
        for wait_s, age_ms, asks in (
            (1.0, "0", 1),
            (0.25, "250", 0),
            (0.125, "375", 0),
            (0.125, "0", 1),
            (0.0, "0", 0),
        ):
            await trio.sleep(wait_s)
            before = runtime.listings
            answer = await api.get(path)
            assert (answer.headers["x-wf-age-ms"], runtime.listings - before) == (age_ms, asks)


async def test_who_asks_for_a_list_meanwhile_shares_the_question(autojump_clock):
    async with running_api(ListedRuntime) as api:
        await trio.sleep(LISTED_S)
        runtime, ages = api.slice.runtime, list[str]()
        runtime.listing_s, before = 0.25, runtime.listings

        async def ask(path: str) -> None:
            ages.append((await api.get(path)).headers["x-wf-age-ms"])

        async with trio.open_nursery() as nursery:
            for path in ("/api/tags", "/v1/models", "/api/ps", "/api/tags"):
                nursery.start_soon(ask, path)
        assert (ages, runtime.listings - before) == (["250"] * 4, 1)


@pytest.mark.parametrize("name", ["a", "scripted/a"])
async def test_one_model_is_shown_under_the_name_it_was_asked_by(name, autojump_clock):
    async with running_api() as api:
        answer = await api.get(f"/v1/models/{name}")
        assert (answer.status, answer.json["id"], answer.json["object"]) == (200, name, "model")
        missing = await api.get("/v1/models/zzz")
        assert missing.status == 404
        assert "zzz" in missing.json["error"]["message"]


@pytest.mark.parametrize("body", [{"model": "a"}, {"name": "a"}, {"model": "scripted/a", "verbose": True}])
async def test_show_says_what_is_known(body, autojump_clock):
    async with running_api() as api:
        answer = await api.post("/api/show", body)
        assert (answer.status, answer.json["capabilities"]) == (200, ["completion"])
        assert set(answer.json) >= {"details", "model_info"}


@pytest.mark.parametrize(("body", "status"), [({"model": "zzz"}, 404), ({}, 400), ({"model": 1}, 400), (b"{", 400)])
async def test_show_refuses_in_ollamas_shape(body, status, autojump_clock):
    async with running_api() as api:
        answer = await api.post("/api/show", body)
        assert answer.status == status
        assert isinstance(answer.json["error"], str)


async def test_show_and_the_models_know_aliases(autojump_clock):
    async with running_api(settings=ALIASED) as api:
        assert (await api.post("/api/show", {"model": "gpt-4o-mini"})).status == 200
        assert (await api.get("/v1/models/gpt-4o-mini")).json["id"] == "gpt-4o-mini"


# ── in memory and out of it ──


async def test_ps_lists_what_is_in_memory_and_only_that(autojump_clock):
    async with running_api(scripted(load_s=1.0)) as api:
        assert (await api.get("/api/ps")).json["models"] == []
        await api.post("/api/chat", OLLAMA_CHAT.body())
        listed = (await api.get("/api/ps")).json["models"]
        assert [(model["name"], model["size"]) for model in listed] == [("a", 1000)]
        assert set(listed[0]) >= {"model", "digest", "details"}
        assert "size_vram" not in listed[0]  # its runtime says nothing of it


async def test_ps_says_of_a_model_in_an_ollama_what_that_says(autojump_clock):
    upstream = ListeningOllama(running=[RUNNING])
    async with running_api(upstream.runtime) as api:
        listed = (await api.get("/api/ps")).json["models"]
        assert [{name: model[name] for name in RUNNING} for model in listed] == [RUNNING]


async def test_ps_shows_what_the_engine_moved_at_once_and_else_asks_seldom(autojump_clock):
    upstream = ListeningOllama(running=[RUNNING])
    async with running_api(upstream.runtime) as api:

        async def listed() -> list[dict]:
            return (await api.get("/api/ps")).json["models"]

        await trio.sleep(LISTED_S)
        assert [model["expires_at"] for model in await listed()] == [RUNNING["expires_at"]]
        later = RUNNING | {"expires_at": "2026-11-20T11:00:00Z"}
        upstream.running = [later]  # somebody else asked it for more
        assert [model["expires_at"] for model in await listed()] == [RUNNING["expires_at"]]
        await trio.sleep(LISTED_S)
        assert [model["expires_at"] for model in await listed()] == [later["expires_at"]]
        upstream.running = [RUNNING]
        assert (await api.post("/api/generate", {"model": "m:latest", "keep_alive": 60})).status == 200
        assert [model["expires_at"] for model in await listed()] == [RUNNING["expires_at"]]
        upstream.running = [RUNNING, RUNNING | {"name": "n:1b", "size_vram": 700}]
        assert (await api.post("/api/generate", {"model": "n:1b"})).status == 200
        assert [(model["name"], model["size_vram"]) for model in await listed()] == [("m:latest", 1500), ("n:1b", 700)]
        assert (await api.post("/api/generate", {"model": "n:1b", "keep_alive": 0})).status == 200
        assert [model["name"] for model in await listed()] == ["m:latest"]


@pytest.mark.parametrize("stream", [False, True, None])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", {}), ("/api/generate", {"prompt": ""}), ("/api/chat", {}), ("/api/chat", {"messages": []})],
)
async def test_an_empty_prompt_loads_and_says_so_in_one_object(path, body, stream, autojump_clock):
    async with running_api(scripted(load_s=2.0)) as api:
        began = trio.current_time()
        asked = {"model": "a", **body} | ({} if stream is None else {"stream": stream})
        answer = await api.post(path, asked)
        assert trio.current_time() - began == 2.0
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        told = answer.json
        assert (told["model"], told["done"], told["done_reason"]) == ("a", True, "load")
        assert told.get("response", told.get("message", {}).get("content")) == ""
        assert (api.slice.runtime.loads, api.slice.runtime.opened) == (["a"], 0)


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", "0m", "0ms", "0h0m0s"])
@pytest.mark.parametrize("way", [OLLAMA_CHAT, OLLAMA_GENERATE], ids=lambda way: way.name)
async def test_an_empty_prompt_that_keeps_nothing_unloads_and_says_so(way, keep_alive, autojump_clock):
    async with running_api() as api:
        await api.post(way.path, {"model": "a"})
        answer = await api.post(way.path, {"model": "a", "keep_alive": keep_alive})
        assert answer.status == 200
        assert api.slice.runtime.unloads == ["a"]
        assert (answer.json["done"], answer.json["done_reason"]) == (True, "unload")
        assert (await api.get("/api/ps")).json["models"] == []


@pytest.mark.parametrize("keep_alive", [-1, "-1s", "10m", 300])
async def test_an_empty_prompt_that_keeps_it_loads(keep_alive, autojump_clock):
    async with running_api() as api:
        answer = await api.post("/api/generate", {"model": "a", "keep_alive": keep_alive})
        assert (answer.status, answer.json["done_reason"]) == (200, "load")
        assert (api.slice.runtime.loads, api.slice.runtime.unloads) == (["a"], [])


async def test_a_model_in_use_is_not_taken_away(autojump_clock):
    async with running_api(scripted(*words(100))) as api:
        await api.generate()
        await trio.sleep(1)
        answer = await api.post("/api/generate", {"model": "a", "keep_alive": 0})
        assert answer.status == 409
        assert isinstance(answer.json["error"], str)


async def test_a_load_that_fails_says_why(autojump_clock):
    async with running_api(scripted(load_error=ModelLoadFailed("no room for it"))) as api:
        answer = await api.post("/api/generate", {"model": "a"})
        assert answer.status == 502
        assert "no room for it" in answer.json["error"]


async def test_loading_what_is_not_there_is_404(autojump_clock):
    async with running_api() as api:
        assert (await api.post("/api/generate", {"model": "zzz"})).status == 404


async def test_an_empty_prompt_is_no_load_for_the_other_dialects(autojump_clock):
    async with running_api() as api:
        answer = await api.post("/v1/chat/completions", {"model": "a", "messages": []})
        assert answer.status == 400
        assert api.slice.runtime.loads == []


# ── what is not served ──


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/push"),
        ("POST", "/api/blobs/sha256:abc"),
    ],
)
@pytest.mark.parametrize("body", [{"model": "a"}, b"not JSON"])
async def test_calls_that_change_what_is_installed_are_refused(body, method, path, autojump_clock):
    async with running_api() as api:
        answer = await api.ask(method, path, body)
        assert answer.status == 403
        assert isinstance(answer.json["error"], str)
        assert (await api.get("/v1/models")).json["data"]


async def test_asking_whether_a_blob_is_there_is_refused_too(autojump_clock):
    async with running_api() as api:
        assert (await api.ask("HEAD", "/api/blobs/sha256:abc")).status == 403


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/api/create"])
async def test_the_wrong_method_is_405(path, autojump_clock):
    async with running_api() as api:
        answer = await api.get(path)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


# ── vectors ──


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"input": "x"}),
        ("/api/embeddings", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ],
)
async def test_a_runtime_that_makes_no_vectors_says_so(path, body, autojump_clock):
    async with running_api() as api:
        answer = await api.post(path, {"model": "a", **body})
        assert answer.status == 400
        error = answer.json["error"]
        assert "scripted" in (error if isinstance(error, str) else error["message"])
        assert api.slice.runtime.loads == []


async def test_counting_is_an_answer_of_one_token_that_is_not_shown(autojump_clock):
    async with running_api() as api:
        body = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
        answer = await api.post("/v1/messages/count_tokens", body)
        assert (answer.status, answer.json) == (200, {"input_tokens": 3})
