"""Requests in the runtime's own dialect: what goes out to it, and what of its answer comes back; in virtual time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from engine.domain.generation import EndReason
from engine.settings import LensSettings, PoolSettings, Settings
from tests.fakes.api import Answer, Api, running_api
from tests.fakes.forwarding import ListeningOllama
from tests.fakes.ollama import Break, Reply, Send, done, record, refused, whole
from tests.fakes.openai import DONE, delta, entry, finish, usage
from web.lens.flow import ConnectionCut

GENERATE, CHAT, COMPLETIONS = "/api/generate", "/api/chat", "/v1/chat/completions"
ASK = {"model": "m", "prompt": "hello"}
ASK_OPENAI = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
PROB = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": [{"token": "hi", "logprob": -0.5}]}
NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
ALIASED = Settings(lens=LensSettings(aliases={"gpt-4o-mini": "m"}))


def streaming(*steps: Any, content_type: str = NDJSON, after_s: float = 0.0) -> Reply:
    sent = [Send(step, 0.04) if isinstance(step, bytes) else step for step in steps]
    return Reply(sent, headers={"content-type": content_type}, after_s=after_s)


def events(*steps: Any) -> Reply:
    return streaming(*steps, content_type="text/event-stream")


def ollama(path: str, *replies: Reply | Exception) -> ListeningOllama:
    return ListeningOllama().plays(path, *replies)


def records(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.body.splitlines()]


def only_session(api: Api):
    (session,) = api.slice.core.sessions.known()
    return session


async def cut(api: Api, path: str, body: Any, **headers: str) -> bytes:
    """What a client got before its connection was reset."""
    got = b""
    with pytest.RaisesGroup(ConnectionCut, flatten_subgroups=True):
        async with api.open("POST", path, body, **headers) as client:
            while piece := await client.receive():
                got += piece
            assert client.status == 200
    return got


# ── active: what is asked ──


async def test_the_clients_own_body_goes_out_with_our_wishes_and_comes_back_without(autojump_clock):
    server = ollama(GENERATE, streaming(record("hi", logprobs=[PROB], odd=[1]), done(context=[1, 2])))
    async with running_api(server.runtime) as api:
        body = {"model": "m", "prompt": "hello", "options": {"num_predict": 3}, "odd": {"x": 1}}
        answer = await api.post(GENERATE, body)
        sent = server.body()
        assert sent == body | {"model": "m:latest", "stream": True, "logprobs": True, "top_logprobs": 10}
        first, last = records(answer)
        assert first == {"model": "m", "response": "hi", "done": False, "odd": [1]}
        assert (last["done"], last["context"], last["model"]) == (True, [1, 2], "m")
        assert (answer.headers["x-wf-route"], answer.headers["x-wf-lens"]) == ("native", "active")
        assert answer.headers["content-type"] == NDJSON


async def test_log_probabilities_that_were_asked_for_stay_as_many_as_asked(autojump_clock):
    several = PROB | {"top_logprobs": [{"token": str(i), "logprob": -float(i)} for i in range(10)]}
    server = ollama(GENERATE, *(streaming(record("hi", logprobs=[several]), done()) for _ in range(2)))
    async with running_api(server.runtime) as api:
        first, _ = records(await api.post(GENERATE, ASK | {"logprobs": True, "top_logprobs": 2}))
        assert [one["token"] for one in first["logprobs"][0]["top_logprobs"]] == ["0", "1"]
        first, _ = records(await api.post(GENERATE, ASK | {"logprobs": True}))
        assert [one["token"] for one in first["logprobs"]] == ["hi"]
        assert "top_logprobs" not in first["logprobs"][0]


async def test_records_that_only_our_asking_caused_are_left_out(autojump_clock):
    server = ollama(GENERATE, streaming(record("", logprobs=[PROB]), record("hi"), record(""), done()))
    async with running_api(server.runtime) as api:
        texts = [value["response"] for value in records(await api.post(GENERATE, ASK))]
        assert texts == ["hi", "", ""]  # one that was empty without them stays: it is the runtime's own


async def test_a_whole_answer_is_gathered_from_a_stream(autojump_clock):
    server = ollama(GENERATE, streaming(record("hi", logprobs=[PROB]), record(" there"), done(context=[7])))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"stream": False})
        assert server.body()["stream"] is True
        assert answer.json["response"] == "hi there"
        assert (answer.json["context"], answer.json["done"]) == ([7], True)
        assert "logprobs" not in answer.json
        assert answer.headers["content-type"] == JSON


async def test_an_answer_is_measured_as_it_passes(autojump_clock):
    server = ollama(GENERATE, streaming(record("hi", logprobs=[PROB]), done()))
    async with running_api(server.runtime) as api:
        client = api.slice.client()
        await api.post(GENERATE, ASK)
        await trio.sleep(0.5)
        (token,) = [t for e in client.events("experience.token") for t in e["payload"]["tokens"]]
        assert (token["text"], token["logprob"]) == ("hi", -0.5)


@pytest.mark.parametrize("name", ["gpt-4o-mini", "m", "m:latest", "ollama/m", "ollama/m:latest"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_runtime_hears_its_own_name_and_the_client_the_one_it_used(name, stream, autojump_clock):
    server = ollama(GENERATE, streaming(record("hi"), done()))
    async with running_api(server.runtime, ALIASED) as api:
        answer = await api.post(GENERATE, {"model": name, "prompt": "x", "stream": stream})
        assert server.body()["model"] == "m:latest"
        assert {value["model"] for value in records(answer)} == {name}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_runtime_that_refuses_log_probabilities_is_asked_without(stream, autojump_clock):
    refusal = refused(400, "this model does not support logprobs")
    server = ollama(GENERATE, refusal, *(streaming(record("hi"), done()) for _ in range(2)))
    async with running_api(server.runtime) as api:
        for _ in range(2):
            answer = await api.post(GENERATE, ASK | {"stream": stream})
            assert answer.status == 200, answer.body
        assert ["logprobs" in json.loads(body) for _, body in server.asked] == [True, False, False]


async def test_a_client_that_asks_for_log_probabilities_hears_that_there_are_none(autojump_clock):
    server = ollama(GENERATE, refused(400, "this model does not support logprobs"))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"logprobs": True})
        assert (answer.status, answer.json) == (400, {"error": "this model does not support logprobs"})


async def test_runner_options_that_the_configuration_pins_do_not_reach_the_runtime(autojump_clock):
    server = ollama(GENERATE, streaming(record("hi"), done()))
    settings = Settings(pool=PoolSettings(pin_runner_options=True))
    async with running_api(server.runtime, settings) as api:
        answer = await api.post(GENERATE, ASK | {"options": {"num_ctx": 8192, "temperature": 0}})
        assert answer.status == 200
        assert server.body()["options"] == {"temperature": 0}
        assert api.slice.core.sessions.runner_options_dropped == 1


async def test_runner_options_go_out_unless_they_are_pinned(autojump_clock):
    server = ollama(GENERATE, streaming(record("hi"), done()))
    async with running_api(server.runtime) as api:
        await api.post(GENERATE, ASK | {"options": {"num_ctx": 8192}})
        assert server.body()["options"] == {"num_ctx": 8192}


# ── active: other dialects at the same runtime ──


async def test_openai_at_an_ollama_takes_its_own_path(autojump_clock):
    reply = events(delta("hi", entry("hi")), finish(), usage(), DONE)
    server = ollama(COMPLETIONS, reply)
    async with running_api(server.runtime) as api:
        answer = await api.post(COMPLETIONS, ASK_OPENAI | {"stream": True})
        assert server.body()["logprobs"] is True
        assert (answer.status, answer.headers["x-wf-route"]) == (200, "native")
        assert b"logprobs" not in answer.body
        assert b'"usage"' not in answer.body
        assert answer.body.endswith(DONE)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_without_the_path_is_spoken_to_in_its_own_words_from_then_on(stream, autojump_clock):
    missing = Reply((Send(b"404 page not found"),), 404, {"content-type": "text/plain"})
    server = ollama(COMPLETIONS, missing).plays(CHAT, *(streaming(*_chat()) for _ in range(2)))
    async with running_api(server.runtime) as api:
        for _ in range(2):
            answer = await api.post(COMPLETIONS, ASK_OPENAI | {"stream": stream})
            assert (answer.status, answer.headers["x-wf-route"]) == (200, "translated")
        assert [path for path, _ in server.asked] == [COMPLETIONS, CHAT, CHAT]


def _chat() -> tuple[bytes, ...]:
    said = json.dumps({"model": "m", "message": {"role": "assistant", "content": "hi"}, "done": False}).encode()
    end = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return said + b"\n", json.dumps(end).encode() + b"\n"


async def test_anthropic_at_an_ollama_is_translated(autojump_clock):
    server = ollama(CHAT, streaming(*_chat()))
    async with running_api(server.runtime) as api:
        answer = await api.post("/v1/messages", ASK_OPENAI | {"max_tokens": 5})
        assert (answer.status, answer.headers["x-wf-route"]) == (200, "translated")
        assert answer.json["content"][0]["text"] == "hi"


# ── active: refusals and faults ──


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lens", ["active", "passive"])
@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
async def test_what_the_runtime_refuses_comes_back_as_it_is(status, lens, stream, autojump_clock):
    reply = refused(status, "in its own words", content_type="application/json; x=1")
    server = ollama(GENERATE, reply)
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest", "stream": stream}, x_wf_lens=lens)
        assert (answer.status, answer.body) == (status, b'{"error": "in its own words"}')
        assert answer.headers["content-type"] == "application/json; x=1"
        assert (answer.headers["x-wf-route"], answer.headers["x-wf-lens"]) == ("native", lens)
        session = api.slice.core.sessions.get(answer.headers["x-wf-session"])
        assert session.reason is EndReason.ERROR


@pytest.mark.parametrize("lens", ["active", "passive"])
async def test_a_busy_runtimes_word_on_when_to_come_back_comes_along(lens, autojump_clock):
    server = ollama(GENERATE, refused(503, "busy", retry_after="7"))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest"}, x_wf_lens=lens)
        assert (answer.status, answer.headers.get("retry-after")) == (503, "7")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_the_runtime_reports_within_an_answer_is_told_at_its_end(stream, autojump_clock):
    server = ollama(GENERATE, streaming(record("half"), b'{"error":"the model crashed"}\n'))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"stream": stream})
        assert answer.status == (200 if stream else 502)
        last = records(answer)[-1]
        assert "the model crashed" in last["error"]


@pytest.mark.parametrize("ending", [(), (Break(),)], ids=["ends", "breaks"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_its_end_gets_an_error_as_its_end(stream, ending, autojump_clock):
    server = ollama(GENERATE, streaming(record("half"), *ending))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"stream": stream})
        assert answer.status == (200 if stream else 502)
        assert "broke" in records(answer)[-1]["error"]


# ── passive ──


ODD = b'{"odd":1,  "response":"h\\u0069", "done":false}\n'


@pytest.mark.parametrize("by_config", [False, True])
async def test_passive_changes_no_byte_either_way(by_config, autojump_clock):
    sent = b'{ "model":"m:latest","prompt":"x" , "odd": 1.50}'
    pieces = (ODD[:7], ODD[7:], ODD + done(), b'{"late":1}\n')
    server = ollama(GENERATE, streaming(*pieces, content_type="application/x-ndjson; odd=1"))
    settings = Settings(lens=LensSettings(mode="passive")) if by_config else Settings()
    async with running_api(server.runtime, settings) as api:
        answer = await api.post(GENERATE, sent, **({} if by_config else {"x_wf_lens": "passive"}))
        assert server.asked == [(GENERATE, sent)]
        assert answer.body == b"".join(pieces)
        assert answer.headers["content-type"] == "application/x-ndjson; odd=1"
        assert (answer.headers["x-wf-lens"], answer.headers["x-wf-route"]) == ("passive", "native")
        session = api.slice.core.sessions.get(answer.headers["x-wf-session"])
        assert (session.reason, session.report().tokens_generated) == (EndReason.FINISHED, 2)


async def test_passive_gives_each_read_as_it_comes(autojump_clock):
    pieces = (ODD[:7], ODD[7:], done())
    server = ollama(GENERATE, streaming(*pieces))
    async with running_api(server.runtime) as api:
        async with api.open("POST", GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive") as client:
            assert [await client.receive() for _ in pieces] == list(pieces)
            assert await client.receive() == b""


async def test_passive_hands_a_whole_answer_on_as_it_is(autojump_clock):
    data = b'{"response" : "hi",  "done": true, "eval_count": 1}'
    server = ollama(GENERATE, whole(data, content_type="application/json; charset=utf-8"))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest", "stream": False}, x_wf_lens="passive")
        assert (answer.status, answer.body) == (200, data)


async def test_passive_hands_on_what_it_cannot_read_to_its_end(autojump_clock):
    pieces = (record("hi"), record("a") + b"no record\n" + record("b"), record("c"), done())
    server = ollama(GENERATE, streaming(*pieces))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive")
        assert (answer.status, answer.body) == (200, b"".join(pieces))
        session = only_session(api)
        assert (session.reason, session.report().tokens_generated) == (EndReason.ERROR, 2)


async def test_passive_hands_on_a_whole_answer_that_it_cannot_read(autojump_clock):
    data = b'{"response" : 7}'
    server = ollama(GENERATE, whole(data, content_type=JSON))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest", "stream": False}, x_wf_lens="passive")
        assert (answer.status, answer.body) == (200, data)
        assert only_session(api).reason is EndReason.ERROR


@pytest.mark.parametrize("lens", ["active", "passive"])
async def test_words_go_out_without_waking_who_waits_for_them_where_the_connection_takes_them(lens, autojump_clock):
    """The client of these tests takes every other piece at once, and nothing overtakes anything."""
    pieces = [record(f"w{number} ") for number in range(20)]
    server = ollama(GENERATE, streaming(*pieces, done()))
    async with running_api(server.runtime) as api:
        async with api.open("POST", GENERATE, ASK | {"model": "m:latest"}, x_wf_lens=lens) as client:
            answer = Answer(200, {}, await client.read_all())
        assert [value["response"] for value in records(answer)[:-1]] == [f"w{number} " for number in range(20)]
        assert client.pushed >= 9


async def test_a_stream_of_events_is_kept_alive_only_where_nothing_is_said(autojump_clock):
    """Words that went out at once count as said: the comment comes 15 s after the last of them."""
    spoken = [Send(delta(word), 4.0) for word in "abcdefgh"]  # 32 s of them
    reply = Reply([*spoken, Send(finish() + DONE, 20.0)], headers={"content-type": "text/event-stream"})
    server = ollama(COMPLETIONS, reply)
    async with running_api(server.runtime) as api:
        async with api.open("POST", COMPLETIONS, ASK_OPENAI | {"stream": True}) as client:
            began, heard = trio.current_time(), []
            while piece := await client.receive():
                heard.append((trio.current_time() - began, piece))
        alive = [at_s for at_s, piece in heard if piece == b": keep-alive\n\n"]
        assert alive == [pytest.approx(8 * 4.0 + 15.0)]


@pytest.mark.parametrize("model", ["m", "m:latest"])
async def test_passive_takes_a_name_without_its_tag_as_ollama_does(model, autojump_clock):
    server = ollama(GENERATE, streaming(record("hi"), done()))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": model}, x_wf_lens="passive")
        assert answer.status == 200, answer.body
        assert server.body()["model"] == model


@pytest.mark.parametrize("name", ["gpt-4o-mini", "ollama/m"])
async def test_passive_cannot_rename_and_says_so(name, autojump_clock):
    server = ollama(GENERATE)
    async with running_api(server.runtime, ALIASED) as api:
        answer = await api.post(GENERATE, ASK | {"model": name}, x_wf_lens="passive")
        assert answer.status == 400
        assert "passive" in answer.json["error"]
        assert "m:latest" in answer.json["error"]
        assert server.asked == []


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_passive_is_refused_where_the_path_is_never_forwarded(path, autojump_clock):
    server = ListeningOllama()
    body = {"model": "m:latest", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "input": "x"}
    async with running_api(server.runtime) as api:
        answer = await api.post(path, body, x_wf_lens="passive")
        assert answer.status == 400
        assert "passive" in answer.json["error"]["message"]


async def test_passive_resets_the_connection_of_an_answer_that_broke(autojump_clock):
    server = ollama(GENERATE, streaming(ODD, ODD, Break()))
    async with running_api(server.runtime) as api:
        got = await cut(api, GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive")
        assert got == ODD + ODD
        assert only_session(api).reason is EndReason.TRUNCATED


async def test_passive_hands_an_error_record_on_and_adds_nothing(autojump_clock):
    error = b'{"error":"the model crashed"}\n'
    server = ollama(GENERATE, streaming(ODD, error))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive")
        assert answer.body == ODD + error  # the runtime ended in good order, so the client's answer does


async def test_passive_ends_as_the_runtime_did_also_without_a_last_record(autojump_clock):
    server = ollama(GENERATE, streaming(ODD, ODD))
    async with running_api(server.runtime) as api:
        answer = await api.post(GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive")
        assert answer.body == ODD + ODD


async def test_a_stop_from_outside_resets_a_passive_stream(autojump_clock):
    server = ollama(GENERATE, streaming(ODD, Send(ODD, 60.0)))
    async with running_api(server.runtime) as api, trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(1)
            await api.post("/stop", {"session_id": only_session(api).id})

        nursery.start_soon(stop)
        assert await cut(api, GENERATE, ASK | {"model": "m:latest"}, x_wf_lens="passive") == ODD


async def test_a_stop_from_outside_ends_a_passive_whole_answer_in_the_dialects_words(autojump_clock):
    slow = Reply((Send(b"{}", 60.0),), headers={"content-type": "application/json"})
    server = ollama(GENERATE, slow)
    async with running_api(server.runtime) as api:
        body = ASK | {"model": "m:latest", "stream": False}
        async with api.open("POST", GENERATE, body, x_wf_lens="passive") as client:
            await trio.sleep(1)
            await api.post("/stop", {"session_id": only_session(api).id})
            told = json.loads(await client.read_all())
        assert client.status == 502
        assert "stopped" in told["error"]


# ── leaving ──


@pytest.mark.parametrize("lens", ["active", "passive"])
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_closes_the_connection_to_the_runtime_at_once(stream, lens, autojump_clock):
    reply = streaming(ODD, Send(ODD, 60.0))
    server = ollama(GENERATE, reply)
    async with running_api(server.runtime) as api:
        async with api.open("POST", GENERATE, ASK | {"model": "m:latest", "stream": stream}, x_wf_lens=lens):
            await trio.sleep(1)
            assert not reply.body.closed
            session = only_session(api)
            left = trio.current_time()
        await session.closed.wait()
        assert trio.current_time() == left
        assert reply.body.closed
        assert session.reason is EndReason.ABORTED


@pytest.mark.parametrize("lens", ["active", "passive"])
async def test_a_client_that_does_not_read_holds_the_connection_to_the_runtime(lens, autojump_clock):
    reply = streaming(*(Send(ODD) for _ in range(2000)), done())
    server = ollama(GENERATE, reply)
    async with running_api(server.runtime) as api:
        async with api.open("POST", GENERATE, ASK | {"model": "m:latest"}, x_wf_lens=lens) as client:
            await trio.sleep(1)
            assert reply.body.at < 300
            data = await client.read_all()
            assert data.count(b"\n") == 2001


async def test_keep_alives_are_for_streams_of_events_that_are_not_passive(autojump_clock):
    def slow() -> Reply:
        return events(delta("hi"), Send(finish() + usage() + DONE, 40.0))

    server = ollama(COMPLETIONS, slow(), slow()).plays(GENERATE, streaming(record("hi"), Send(done(), 40.0)))
    async with running_api(server.runtime) as api:
        ask = ASK_OPENAI | {"model": "m:latest", "stream": True}
        active = await api.post(COMPLETIONS, ask)
        assert active.body.count(b": keep-alive\n\n") == 2
        passive = await api.post(COMPLETIONS, ask, x_wf_lens="passive")
        assert passive.body == delta("hi") + finish() + usage() + DONE
        assert b"keep-alive" not in (await api.post(GENERATE, ASK)).body
