"""Whoever leaves a stream stops what computes it, whatever client it is and whatever runtime.

Each client is left in the way its users leave: the loop over the stream ends early, and what holds the connection is
closed or thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import ollama
import openai
import pytest
import trio

from tests.system.clients.lens import SCRIPTED, Lens

ASKED = [{"role": "user", "content": "G"}]  # an answer without an end
STALLED = "mock:stall"
ORIGINS = {"ollama": "ollama", "openai": "openai", "responses": "openai", "anthropic": "anthropic"}
ENDLESS = pytest.mark.parametrize("model", [SCRIPTED, STALLED])


@contextmanager
def ollama_stream(url: str, model: str) -> Iterator[Iterator[Any]]:
    with ollama.Client(host=url, verify=False) as client:
        stream = client.chat(model, ASKED, stream=True)
        yield stream
        stream.close()


@contextmanager
def openai_stream(url: str, model: str) -> Iterator[Iterator[Any]]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        with client.chat.completions.create(model=model, messages=ASKED, stream=True) as stream:
            yield stream


@contextmanager
def responses_stream(url: str, model: str) -> Iterator[Iterator[Any]]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        with client.responses.create(model=model, input="G", stream=True) as stream:
            yield stream


@contextmanager
def anthropic_stream(url: str, model: str) -> Iterator[Iterator[Any]]:
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as client:
        with client.messages.stream(model=model, max_tokens=100_000, messages=ASKED) as stream:
            yield stream


STREAMS = {
    "ollama": ollama_stream,
    "openai": openai_stream,
    "responses": responses_stream,
    "anthropic": anthropic_stream,
}


@ENDLESS
@pytest.mark.parametrize("client", STREAMS)
def test_leaving_a_stream_aborts_its_session_and_stops_the_runtime(lens: Lens, client, model):
    with lens.expect_abort(model):
        with STREAMS[client](lens.url, model) as stream:
            for _ in range(5):
                next(stream)
            lens.assert_running(model, ORIGINS[client])


def test_leaving_the_built_in_models_stops_them(start):
    """On an engine of its own, where they are slow enough to be left."""
    engine = start(env={"WF_EMBEDDED__PACE_TPS": "20"})
    with engine.client() as http:
        for count, open_stream in enumerate(STREAMS.values(), start=1):
            with open_stream(engine.http, "embedded/hacker") as stream:
                for _ in range(3):
                    next(stream)
            engine.wait_for(lambda: http.get("/stats").json()["sessions"]["ended"] == {"aborted": count})  # noqa: B023


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_an_answer_that_somebody_else_stops_ends_in_order(lens: Lens, client):
    """The reply says which session it is; whoever knows that can stop it."""
    with lens.expect_abort(SCRIPTED), lens.engine.client() as http, STREAMS[client](lens.url, SCRIPTED) as stream:
        next(stream)
        headers = stream.response.headers
        assert (headers["x-wf-model"], headers["x-wf-runtime"]) == ("scripted", "openai")
        stopped = http.post("/stop", json={"session_id": headers["x-wf-session"]}).json()
        assert (stopped["state"], stopped["reason"]) == ("ended", "aborted")
        *_, last = stream
    if client == "openai":
        assert last.choices[0].finish_reason == "length"  # there would have been more
    else:
        assert last.type == "message_stop"


# ── before the first token, and from within ──


async def ollama_answer(url: str, model: str) -> None:
    async with ollama.AsyncClient(host=url, verify=False) as client:
        await client.chat(model, ASKED)


async def openai_answer(url: str, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        await client.chat.completions.create(model=model, messages=ASKED)


async def anthropic_answer(url: str, model: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="unused", max_retries=0) as client:
        await client.messages.create(model=model, max_tokens=8000, messages=ASKED)


@pytest.mark.parametrize("ask", [ollama_answer, openai_answer, anthropic_answer])
@pytest.mark.parametrize("model", [SCRIPTED, "mock:stall-first", "mock:slow-load"])
async def test_cancelling_a_call_for_a_whole_answer_aborts_it_too(lens: Lens, ask: Callable, model):
    def leave_once_it_runs(scope: trio.CancelScope) -> None:
        with lens.expect_abort(model):
            lens.engine.wait_for(lambda: lens.sessions()["running"])
            trio.from_thread.run_sync(scope.cancel)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, lens.url, model)
        await trio.to_thread.run_sync(leave_once_it_runs, nursery.cancel_scope)
