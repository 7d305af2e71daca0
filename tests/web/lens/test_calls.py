"""Calls at the lens that are no sessions: what their replies say of themselves, and what an engine that stops says."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from actors.clock import EngineClock
from engine.domain.errors import Overloaded
from engine.domain.runtime import Embeddings, EmbedRequest
from tests.fakes.api import running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.runtime import ScriptedRuntime
from web.lens.calls import CallsInFlight

EMBEDS = (
    ("/api/embed", {"model": "a", "input": "x"}),
    ("/api/embeddings", {"model": "a", "prompt": "x"}),
    ("/v1/embeddings", {"model": "a", "input": "x"}),
)


@attrs.define(eq=False)
class EmbeddingRuntime(ScriptedRuntime):
    """Takes a minute for every embedding."""

    embed_s: float = 60.0
    cut: int = 0

    async def embed(self, request: EmbedRequest) -> Embeddings:
        try:
            await trio.sleep(self.embed_s)
        except trio.Cancelled:
            self.cut += 1
            raise
        return Embeddings(((1.0,),), 1)


def embedding(load_s: float = 0.0, embed_s: float = 60.0):
    def made(clock: EngineClock) -> EmbeddingRuntime:
        return EmbeddingRuntime(clock, load_s=load_s, embed_s=embed_s)

    return made


@pytest.mark.parametrize(("path", "body"), EMBEDS)
async def test_embeddings_say_who_made_them_and_how_long_it_took(path, body, autojump_clock):
    async with running_api(embedding(load_s=2.0, embed_s=1.0)) as api:
        answer = await api.post(path, body)
        assert answer.status == 200, answer.body
        headers = answer.headers
        assert (headers["x-wf-model"], headers["x-wf-runtime"], headers["x-wf-route"]) == (
            "a",
            "scripted",
            "translated",
        )
        assert float(headers["x-wf-queue-ms"]) >= 2000
        assert float(headers["x-wf-overhead-ms"]) < 100


@pytest.mark.parametrize("keep_alive", [None, 0])
async def test_loads_and_unloads_say_so_too(keep_alive, autojump_clock):
    async with running_api(embedding(load_s=2.0)) as api:
        body = {"model": "a"} | ({} if keep_alive is None else {"keep_alive": keep_alive})
        answer = await api.post("/api/generate", body)
        assert (answer.headers["x-wf-model"], answer.headers["x-wf-route"]) == ("a", "translated")
        queue_ms = float(answer.headers["x-wf-queue-ms"])
        assert queue_ms >= 2000 if keep_alive is None else queue_ms < 100


async def test_a_load_that_the_runtime_itself_was_asked_for(autojump_clock):
    server = ListeningOllama()
    async with running_api(server.runtime) as api:
        answer = await api.post("/api/generate", {"model": "m"})
        assert (answer.headers["x-wf-model"], answer.headers["x-wf-route"]) == ("m:latest", "native")
        assert {"x-wf-queue-ms", "x-wf-overhead-ms"} <= set(answer.headers)


@pytest.mark.parametrize(("path", "body"), EMBEDS)
async def test_an_embedding_in_flight_at_shutdown_gets_an_answer(path, body, autojump_clock):
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with running_api(embedding()) as api:

            async def ask() -> None:
                got.append(await api.post(path, body))

            nursery.start_soon(ask)
            await trio.sleep(1)
    (answer,) = got
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    error = answer.json["error"]
    assert "stopping" in (error if isinstance(error, str) else error["message"])
    assert api.slice.runtime.cut == 1


async def test_a_load_in_flight_at_shutdown_too(autojump_clock):
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with running_api(embedding(load_s=60.0)) as api:

            async def ask() -> None:
                got.append(await api.post("/api/generate", {"model": "a"}))

            nursery.start_soon(ask)
            await trio.sleep(1)
    assert got[0].status == 503


async def _waits() -> None:
    await trio.sleep_forever()


async def test_what_comes_while_it_stops_is_cut_at_once(autojump_clock):
    calls = CallsInFlight()
    calls.stop()
    with pytest.raises(Overloaded):
        await calls.run(_waits())


async def test_a_call_that_is_cancelled_from_outside_stays_cancelled(autojump_clock):
    calls = CallsInFlight()
    with trio.move_on_after(1) as scope:
        await calls.run(_waits())
    assert scope.cancelled_caught
    calls.stop()


async def test_a_call_that_fails_fails_as_it_did(autojump_clock):
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await CallsInFlight().run(fails())
