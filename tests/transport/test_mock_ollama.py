"""The mock Ollama: shapes on the wire as the real one has them, and time that is waited as it says."""

from __future__ import annotations

import msgspec
import pytest
import trio

from tests.fakes.mock_server import lines, post, running_mock, unchunked
from tests.fakes.network import receive
from transport.mock_ollama.catalogue import BEHAVIOURS, SLOW_LOAD_MS
from transport.mock_ollama.script import Schedule
from transport.mock_ollama.server import Abort

# Records of a real Ollama (0.33.0-rc2), shortened: what counts is which fields there are, and their order.
REAL_GENERATE = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.177546051Z","response":" streams","done":false,"logprobs":[{'
    b'"token":" streams","logprob":-0.9,"bytes":[32,115],"top_logprobs":[{"token":" a","logprob":-0.9,"bytes":[32]}]}]}'
)
REAL_GENERATE_DONE = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.21043562Z","response":"","done":true,"done_reason":"length","context":'
    b'[259,287],"total_duration":29644041,"load_duration":2243444,"prompt_eval_count":56,"prompt_eval_duration":21790000,'
    b'"eval_count":3,"eval_duration":2774000}'
)
REAL_CHAT = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.2Z","message":{"role":"assistant","content":" the"},"done":false,'
    b'"logprobs":[{"token":" the","logprob":-2.2,"bytes":[32],"top_logprobs":[{"token":"a","logprob":-2,"bytes":[]}]}]}'
)
REAL_CHAT_DONE = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.222925068Z","message":{"role":"assistant","content":""},"done":true,'
    b'"done_reason":"length","total_duration":10184002,"load_duration":1746153,"prompt_eval_count":56,'
    b'"prompt_eval_duration":1781000,"eval_count":3,"eval_duration":2693000}'
)
REAL_THINKING = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.284841097Z","message":{"role":"assistant","content":"","thinking":'
    b'"The"},"done":false}'
)
REAL_TOOL_CALL = (
    b'{"model":"m","created_at":"2026-11-20T10:29:46.33Z","message":{"role":"assistant","content":"","tool_calls":[{"id":'
    b'"call_dc858wh6","function":{"index":0,"name":"get_weather","arguments":{"city":"Oslo"}}}]},"done":false}'
)
REAL_LOAD = b'{"model":"m","created_at":"2026-11-20T10:29:46.1Z","response":"","done":true,"done_reason":"load"}'
REAL_TAG = (
    b'{"name":"m:v1","model":"m:v1","modified_at":"2026-11-20T10:29:12.440762431Z","size":4265302,"digest":"9c83","details":'
    b'{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"1.06M",'
    b'"quantization_level":"unknown","context_length":2048,"embedding_length":416},"capabilities":["completion"]}'
)
REAL_PS = (
    b'{"name":"m:v1","model":"m:v1","size":24893194,"digest":"c80d","details":{"parent_model":"","format":"gguf","family":'
    b'"llama","families":["llama"],"parameter_size":"2.27M","quantization_level":"unknown"},"expires_at":'
    b'"2026-11-20T10:34:46.170368321Z","size_vram":0,"context_length":2048}'
)
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def shape(value):
    """Names and order of all fields; of a list, its first entry's."""
    if isinstance(value, bytes):
        value = msgspec.json.decode(value)
    if isinstance(value, dict):
        return [(name, shape(inner)) for name, inner in value.items()]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shape(value[0])]
    return type(value) if not isinstance(value, int | float) else float


# ── shapes on the wire ──


async def test_generate_is_shaped_as_the_real_one(autojump_clock):
    async with running_mock() as client:
        answer = await client.generate("mock:steady", logprobs=True, top_logprobs=2, options={"num_predict": 3})
        *records, done = lines(answer)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert [shape(record) for record in records] == [shape(REAL_GENERATE)] * 3
        assert shape(done) == shape(REAL_GENERATE_DONE)
        assert done["done_reason"] == "length"
        for record in records:
            (entry,) = record["logprobs"]
            assert bytes(entry["bytes"]).decode() == entry["token"] == record["response"]
        raw = lines(await client.generate("mock:steady", raw=True))[-1]
        assert "context" not in raw
        assert (raw["done_reason"], raw["eval_count"]) == ("stop", 20)


async def test_chat_is_shaped_as_the_real_one(autojump_clock):
    async with running_mock() as client:
        *records, done = lines(
            await client.chat("mock:steady", logprobs=True, top_logprobs=1, options={"num_predict": 3})
        )
        assert [shape(record) for record in records] == [shape(REAL_CHAT)] * 3
        assert shape(done) == shape(REAL_CHAT_DONE)
        whole = await client.chat("mock:steady", stream=False)
        assert whole.headers["content-type"] == "application/json; charset=utf-8"
        assert int(whole.headers["content-length"]) == len(whole.body)
        assert shape(whole.body) == shape(REAL_CHAT_DONE)
        assert msgspec.json.decode(whole.body)["message"]["content"].startswith(" ")


async def test_chosen_token_only_has_no_list_of_alternatives(autojump_clock):
    async with running_mock() as client:
        first, *_ = lines(await client.generate("mock:logprobs", logprobs=True))
        assert list(first["logprobs"][0]) == ["token", "logprob", "bytes"]
        assert "logprobs" not in lines(await client.generate("mock:nologprobs", logprobs=True))[0]
        assert "logprobs" not in lines(await client.generate("mock:logprobs", top_logprobs=5))[0]


async def test_thinking(autojump_clock):
    async with running_mock() as client:
        records = lines(await client.chat("mock:thinking"))
        thoughts = ["thinking" in record["message"] for record in records]
        assert thoughts == [True] * 12 + [False] * 9
        assert shape(records[0]) == shape(REAL_THINKING)
        assert not any("thinking" in r["message"] for r in lines(await client.chat("mock:thinking", think=False)))
        assert list(lines(await client.generate("mock:thinking"))[0])[2:4] == ["response", "thinking"]


async def test_tool_calls(autojump_clock):
    async with running_mock() as client:
        call, done = lines(await client.chat("mock:tools", tools=[TOOL]))
        assert shape(call) == shape(REAL_TOOL_CALL)
        assert call["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
        assert done["eval_count"] == 20
        *silent, call, done = lines(await client.chat("mock:tools", tools=[TOOL], logprobs=True))
        assert [(r["message"]["content"], len(r["logprobs"])) for r in silent] == [("", 1)] * 20
        assert len(lines(await client.chat("mock:tools"))) == 21


async def test_listings_are_shaped_as_the_real_ones_and_say_what_they_are(autojump_clock):
    async with running_mock() as client:
        assert msgspec.json.decode((await client.get("/api/version")).body) == {"version": "0.0.0-mock"}
        assert (await client.get("/")).body == b"Ollama is running"
        tags = msgspec.json.decode((await client.get("/api/tags")).body)["models"]
        assert [tag["name"] for tag in tags] == list(BEHAVIOURS)
        await client.generate("mock:steady")
        ps = msgspec.json.decode((await client.get("/api/ps")).body)["models"]
        show = msgspec.json.decode((await client.post("/api/show", {"model": "mock:tools"})).body)
        for details in (tags[0]["details"], ps[0]["details"], show["details"]):
            assert details.pop("synthetic") is True
            assert details.pop("about")
            assert details["family"] == "mock"
        assert shape(tags[0]) == shape(REAL_TAG)
        assert shape(ps[0]) == shape(REAL_PS)
        assert show["capabilities"] == ["completion", "tools"]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/chat", {"model": "nope", "messages": [{}]}, 404, "model 'nope' not found"),
        ("/api/generate", {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/show", {"name": "nope"}, 404, "model 'nope' not found"),
        ("/api/generate", b"", 400, "missing request body"),
        (
            "/api/generate",
            {"model": "mock:steady", "prompt": "x", "top_logprobs": 21},
            400,
            "top_logprobs must be between 0 and 20",
        ),
        ("/api/chat", {"model": "mock:steady", "think": True}, 400, '"mock:steady" does not support thinking'),
        ("/api/chat", {"model": "mock:steady", "keep_alive": "abc"}, 400, "time: invalid duration in keep_alive"),
        ("/api/generate", {"model": "mock:steady", "options": {"seed": "x"}}, 500, "an option has the wrong type"),
        ("/api/pull", {"model": "nope", "stream": False}, 500, "pull model manifest: file does not exist"),
    ],
)
async def test_refusals_have_a_status_and_one_error(path, body, status, error, autojump_clock):
    async with running_mock() as client:
        answer = await client.post(path, body)
        assert (answer.status, msgspec.json.decode(answer.body)) == (status, {"error": error})
        assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_tools_are_refused_where_they_do_not_work(autojump_clock):
    async with running_mock() as client:
        assert (await client.chat("mock:steady", tools=[TOOL])).status == 400
        assert (await client.chat("mock:steady", tools=[])).status == 200


# ── time ──


async def test_records_come_on_schedule_and_durations_are_what_was_waited(autojump_clock):
    async with running_mock(Schedule(tps=10, ttft_ms=300, tokens=4)) as client:
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "a b c"}))
        data, arrivals = b"", []
        while b"0\r\n\r\n" not in data:
            data += await receive(stream)
            arrivals.append(round(trio.current_time(), 6))
        # 20 ms of loading, 300 ms to the first token, then one every 100 ms; the end comes with the last.
        assert sorted(set(arrivals)) == [0.32, 0.42, 0.52, 0.62]
        done = msgspec.json.decode(unchunked(data).split(b"\n")[-2])
        durations = [done[f"{name}_duration"] / 1e6 for name in ("total", "load", "prompt_eval", "eval")]
        assert durations == pytest.approx([620, 20, 300, 300])
        assert (done["prompt_eval_count"], done["eval_count"]) == (3, 4)


async def test_a_slow_load_takes_its_time_once(autojump_clock):
    async with running_mock() as client:
        load = msgspec.json.decode((await client.post("/api/generate", {"model": "mock:slow-load"})).body)
        assert trio.current_time() == pytest.approx(SLOW_LOAD_MS / 1000)
        assert shape(load) == shape(REAL_LOAD)
        done = lines(await client.generate("mock:slow-load"))[-1]
        assert done["load_duration"] == pytest.approx(1e6)


async def test_leaving_during_a_load_drops_the_model(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:slow-load", "prompt": "x"}))
        await trio.sleep(0.98 * SLOW_LOAD_MS / 1000)
        await stream.aclose()
        assert await client.mock.wait_left() == Abort("mock:slow-load", 0)
        assert client.mock.loaded == ()


async def test_keep_alive_sticks_until_another_request_states_one(autojump_clock):
    async with running_mock() as client:
        load = {"model": "mock:steady", "keep_alive": 60}
        await client.post("/api/generate", load)
        await trio.sleep(59)
        await client.generate("mock:steady")
        await trio.sleep(59)
        assert client.mock.loaded == ("mock:steady",)
        await trio.sleep(2)
        assert client.mock.loaded == ()
        await client.post("/api/chat", {"model": "mock:steady", "messages": [], "keep_alive": -1})
        await trio.sleep(80_000)
        assert b'"expires_at":"2318-' in (await client.get("/api/ps")).body
        unload = await client.post("/api/chat", {"model": "mock:steady", "messages": [], "keep_alive": 0})
        assert msgspec.json.decode(unload.body)["done_reason"] == "unload"
        assert client.mock.loaded == ()


async def test_keep_alive_0_is_unloaded_when_the_terminal_record_arrives(autojump_clock):
    async with running_mock() as client:
        ask = {"model": "mock:drip", "prompt": "x", "keep_alive": 0, "options": {"num_predict": 1}}
        stream = await client.open(post("/api/generate", ask))
        data = await receive(stream)
        assert client.mock.loaded == ("mock:drip",)
        while b'"done":true' not in unchunked(data):
            data += await receive(stream)
        assert client.mock.loaded == ()
        assert client.counters.streams_open == 1
