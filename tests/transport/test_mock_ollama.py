from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import zlib

import httpx
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.mock import add_flags, run_mock
from tests.fakes.mock_server import HOST, lines, listening_mock, post, running_mock, unchunked
from tests.fakes.network import http_head, read_answer, read_to_end, receive
from transport.listen import ListenLimits
from transport.mock_ollama import behaviours, connection, server
from transport.mock_ollama.catalogue import BEHAVIOURS
from transport.mock_ollama.script import Schedule
from transport.mock_ollama.server import ABORTS_KEPT, Abort
from transport.mock_ollama.speech import FAULT_AFTER

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
WITHOUT_OPTIONS = ("/api/pull", "/api/show")
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
        assert trio.current_time() == pytest.approx(5.0)
        assert shape(load) == shape(REAL_LOAD)
        done = lines(await client.generate("mock:slow-load"))[-1]
        assert done["load_duration"] == pytest.approx(1e6)


async def test_leaving_during_a_load_drops_the_model(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:slow-load", "prompt": "x"}))
        await trio.sleep(4.9)
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


# ── faults, down to the byte ──


async def test_silence_in_the_middle(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:stall", "prompt": "x"}))
        data = b""
        with trio.move_on_after(3600):
            while True:
                data += await receive(stream)
        assert unchunked(data).count(b"\n") == FAULT_AFTER
        await stream.aclose()
        assert await client.mock.wait_left() == Abort("mock:stall", FAULT_AFTER)


async def test_silence_from_the_start(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:stall-first", "prompt": "x"}))
        with trio.move_on_after(3600) as waited:
            await receive(stream)
        assert waited.cancelled_caught
        assert client.counters.listen.bytes_out == 0


async def test_a_cut_ends_the_body_without_its_end(autojump_clock):
    async with running_mock() as client:
        wire = await client.wire("mock:cut")
        assert wire.endswith(b"\n\r\n")
        assert unchunked(wire).count(b"\n") == FAULT_AFTER
        assert b"0\r\n\r\n" not in wire
        assert b'"done":true' not in wire
        assert client.counters.streams_left == 0


async def test_a_cut_in_a_record(autojump_clock):
    async with running_mock() as client:
        whole, last = unchunked(await client.wire("mock:cut-json")).rsplit(b"\n", 1)
        assert whole.count(b"\n") == FAULT_AFTER - 1
        assert last.startswith(b'{"model":"mock:cut-json"')
        with pytest.raises(msgspec.DecodeError, match="truncated"):
            msgspec.json.decode(last)


async def test_a_broken_chunk(autojump_clock):
    async with running_mock() as client:
        assert (await client.wire("mock:bad-chunk")).endswith(b"\n\r\nwhat is this\r\n")


async def test_an_end_in_good_order_without_done_keeps_the_connection(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:silent-end", "prompt": "x"}))
        records = lines(await read_answer(stream))
        assert [record["done"] for record in records] == [False] * FAULT_AFTER
        await stream.send_all(http_head("GET", "/", HOST))
        assert (await read_answer(stream)).body == b"Ollama is running"


async def test_the_repeat_guard_ends_after_32_lines_without_done(autojump_clock):
    async with running_mock() as client:
        _, *rest = lines(await client.generate("mock:repeat-guard", logprobs=True, top_logprobs=1))
        assert len(rest) == 31
        assert {(record["response"], record["done"]) for record in rest} == {(" again", False)}


async def test_a_crash_is_the_last_line_or_the_status(autojump_clock):
    crash = {"error": "an error was encountered while running the model: unexpected EOF"}
    async with running_mock() as client:
        *records, last = lines(await client.chat("mock:error-line"))
        assert len(records) == FAULT_AFTER
        assert last == crash
        whole = await client.chat("mock:error-line", stream=False)
        assert (whole.status, msgspec.json.decode(whole.body)) == (500, crash)


async def test_records_after_the_end(autojump_clock):
    async with running_mock() as client:
        assert [record["done"] for record in lines(await client.generate("mock:late-records"))][-4:] == [
            True,
            *[False] * 3,
        ]


async def test_garbage_between_records(autojump_clock):
    async with running_mock() as client:
        bad = []
        for line in (await client.generate("mock:garbage")).body.split(b"\n")[:-1]:
            try:
                assert msgspec.json.decode(line)["model"] == "mock:garbage"
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, AssertionError):
                bad.append(line)
        assert len(bad) == 6
        assert max(len(line) for line in bad) == behaviours.NESTING


async def test_a_text_that_is_no_utf8(autojump_clock):
    async with running_mock() as client:
        (bad,) = [line for line in (await client.generate("mock:bad-utf8")).body.split(b"\n") if b"\xff" in line]
        with pytest.raises(UnicodeDecodeError):
            bad.decode()
        assert msgspec.json.decode(bad.replace(b"\xff\xfe\xc3(", b""))["response"] == " "


async def test_a_line_without_end(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:endless-line", "prompt": "x"}))
        data = b""
        while len(data) < 4 << 20:
            data += await receive(stream)
        assert b"\n" not in unchunked(data.rpartition(b"\r\n")[0].rpartition(b"\r\n")[0] + b"\r\n")
        await stream.aclose()
        await client.mock.wait_left()


async def test_a_gzip_bomb_unpacks_to_a_thousand_times_its_size(autojump_clock, monkeypatch):
    monkeypatch.setattr(behaviours, "ENDLESS_BYTES", 8 << 20)
    async with running_mock() as client:
        answer = await client.generate("mock:gzip-bomb")
        assert answer.headers["content-encoding"] == "gzip"
        assert len(answer.body) < 80_000
        unpacked = zlib.decompress(answer.body, zlib.MAX_WBITS | 16)
        assert len(unpacked) > 8 << 20
        assert unpacked.count(b"\n") == 1


async def test_a_drip_is_a_byte_a_chunk_every_50_ms(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(post("/api/generate", {"model": "mock:drip", "prompt": "x"}))
        head = await receive(stream)
        assert head.endswith(b"\r\n\r\n1\r\n{\r\n")
        began = trio.current_time()
        for byte in b'"model":':
            assert await receive(stream) == b"1\r\n%c\r\n" % byte
        assert trio.current_time() - began == pytest.approx(8 * 0.05)


async def test_a_flood_has_all_its_tokens(autojump_clock):
    async with running_mock() as client:
        *records, done = lines(await client.generate("mock:flood", options={"num_predict": 5000}))
        assert len(records) == done["eval_count"] == 5000
        assert trio.current_time() < 1


async def test_busy_twice_then_well(autojump_clock):
    async with running_mock() as client:
        answers = [await client.generate("mock:busy") for _ in range(3)]
        assert [answer.status for answer in answers] == [503, 503, 200]
        assert b"server busy, please try again.  maximum pending requests exceeded" in answers[0].body
        assert client.counters.asked["mock:busy"] == 3


async def test_missing_until_pulled(autojump_clock):
    async with running_mock() as client:
        assert (await client.generate("mock:missing")).status == 404
        assert (await client.post("/api/generate", {"model": "mock:missing"})).status == 404
        records = lines(await client.post("/api/pull", {"model": "mock:missing"}))
        assert [record["status"] for record in records if "digest" not in record] == [
            "pulling manifest",
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        done = [record.get("completed", 0) for record in records if "digest" in record]
        assert done == sorted(done)
        assert done[-1] == records[1]["total"]
        assert (await client.generate("mock:missing")).status == 200
        again = await client.post("/api/pull", {"model": "mock:missing", "stream": False})
        assert again.body == b'{"status":"success"}'
        assert lines(await client.post("/api/pull", {"model": "nope"})) == [
            {"error": "pull model manifest: file does not exist"}
        ]


async def test_a_long_prompt_is_cut_silently_or_refused(autojump_clock):
    async with running_mock() as client:
        ask = {"model": "mock:long-prompt-cut", "prompt": "word " * 100}
        assert lines(await client.post("/api/generate", ask))[-1]["prompt_eval_count"] == 32
        refused = await client.post("/api/generate", ask | {"truncate": False})
        assert refused.status == 400
        inner = msgspec.json.decode(msgspec.json.decode(refused.body)["error"])["error"]
        assert (inner["n_prompt_tokens"], inner["n_ctx"]) == (100, 64)


async def test_same_seed_same_bytes_but_for_times(autojump_clock):
    def timeless(record):
        return {name: value for name, value in record.items() if name != "created_at" and "duration" not in name}

    answers = []
    for _ in range(2):
        async with running_mock() as client:
            records = lines(await client.chat("mock:logprobs", logprobs=True, top_logprobs=4, options={"seed": 3}))
            answers.append([timeless(record) for record in records])
    assert answers[0] == answers[1]


# ── clients that leave, and clients that are no clients ──


async def test_an_abort_is_counted_with_its_tokens(autojump_clock):
    async with running_mock(Schedule(tps=10, ttft_ms=0, tokens=100)) as client:
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await trio.sleep(1.05)  # 20 ms of loading, tokens at 0, 100, … 1000 ms
        assert client.counters.streams_open == 1
        await stream.aclose()
        assert await client.mock.wait_left() == Abort("mock:steady", 11)
        assert (client.counters.streams_open, client.counters.streams_left) == (0, 1)
        await client.generate("mock:steady", options={"num_predict": 2})
        assert (client.counters.streams_opened, client.counters.streams_left) == (2, 1)


async def test_a_client_that_talks_on_and_leaves_is_noticed_when_written_to(autojump_clock):
    """What comes during an answer is read ahead up to a bound, and then no more."""
    async with running_mock(Schedule(tps=1, ttft_ms=1000, tokens=100)) as client:
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await trio.sleep(0.5)
        await stream.send_all(b"x" * connection.PIPELINED_BYTES_MAX)
        await trio.sleep(2.0)
        await stream.aclose()
        await trio.sleep(0.1)
        assert client.counters.streams_left == 0
        assert await client.mock.wait_left() == Abort("mock:steady", 2)
        assert trio.current_time() < 4


async def test_a_connection_too_many_is_told_so(autojump_clock, monkeypatch):
    monkeypatch.setattr(server, "LIMITS", ListenLimits(connections_max=1, reserve=1))
    async with running_mock() as client:
        first = await client.open()
        assert (await client.get("/")).status == 503
        await first.send_all(http_head("GET", "/", HOST))
        assert (await read_answer(first)).status == 200


async def test_only_so_many_aborts_are_kept(autojump_clock):
    async with running_mock() as client:
        for n in range(1, ABORTS_KEPT + 3):
            stream = await client.open(post("/api/generate", {"model": "mock:stall-first", "prompt": "x"}))
            await stream.aclose()
            await client.mock.wait_left(n)
        assert len(client.counters.aborts) == ABORTS_KEPT


async def test_stopping_the_server_is_no_abort_of_a_client(autojump_clock):
    async with running_mock() as client:
        await client.open(post("/api/generate", {"model": "mock:stall", "prompt": "x"}))
        await trio.sleep(10)
    assert client.counters.streams_left == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: nine\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_are_refused_and_the_server_goes_on(request_bytes, autojump_clock):
    async with running_mock() as client:
        wire = await read_to_end(await client.open(request_bytes))
        assert re.findall(rb"HTTP/1.1 (\d+) ", wire)[-1] in (b"400", b"431", b"501")
        assert b"connection: close" in wire
        assert client.counters.malformed == 1
        assert (await client.get("/")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"options":' * 50_000,
        b"\xff\xfe",
        b'{"model": 5}',
        b'"mock:steady"',
        b'{"model":"mock:steady","prompt":"x","options":{"num_predict":1e999}}',
        b'{"model":"mock:steady","prompt":"x","options":{"stop":["' + b'","'.join([b"a"] * 65) + b'"]}}',
    ],
)
async def test_hostile_bodies_are_refused_and_the_connection_goes_on(body, autojump_clock):
    async with running_mock() as client:
        for path in ("/api/generate", "/api/chat", "/api/pull", "/api/show"):
            stream = await client.open(post(path, body))
            answer = await read_answer(stream)
            assert answer.status in (400, 404, 500) or (path in WITHOUT_OPTIONS and b'"mock:steady"' in body)
            assert answer.body.startswith(b'{"error":') == (answer.status != 200)
            await stream.send_all(http_head("GET", "/", HOST))
            assert (await read_answer(stream)).status == 200
        assert client.counters.listen.crashed == 0


async def test_a_body_over_the_limit_is_refused(autojump_clock, monkeypatch):
    monkeypatch.setattr(connection, "BODY_BYTES_MAX", 1000)
    async with running_mock() as client:
        wire = await read_to_end(await client.open(post("/api/chat", b"x" * 1001)))
        assert wire.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_says_nothing_is_let_go(autojump_clock):
    async with running_mock() as client:
        assert await read_to_end(await client.open(b"GET / HT")) == b""
        assert trio.current_time() == pytest.approx(connection.IDLE_S)


async def test_a_slow_client_has_its_time_anew_with_every_piece(autojump_clock):
    async with running_mock() as client:
        stream = await client.open(b"GET / HT")
        for piece in (b"TP/1.1\r\n", b"Host: localhost\r\n", b"\r\n"):
            await trio.sleep(connection.IDLE_S - 1)
            await stream.send_all(piece)
        assert (await read_answer(stream)).status == 200


async def test_uploads_in_chunks_and_with_expect(autojump_clock):
    body = msgspec.json.encode({"model": "mock:steady"})
    async with running_mock() as client:
        head = http_head("POST", "/api/generate", HOST, ["Transfer-Encoding: chunked"])
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        assert (await read_answer(await client.open(head + chunks))).status == 200
        head = http_head("POST", "/api/generate", HOST, [f"Content-Length: {len(body)}", "Expect: 100-continue"])
        stream = await client.open(head)
        assert await receive(stream) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(body)
        assert (await read_answer(stream)).status == 200


async def test_closing_one_side_is_leaving_a_stream_and_harmless_elsewhere(autojump_clock):
    """As with Go's server."""
    async with running_mock() as client:
        stream = await client.open(http_head("GET", "/", HOST))
        await stream.send_eof()
        assert (await read_answer(stream)).status == 200
        stream = await client.open(post("/api/generate", {"model": "mock:steady", "prompt": "x"}))
        await stream.send_eof()
        assert await client.mock.wait_left() == Abort("mock:steady", 0)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
async def test_head_is_get_without_a_body(path, autojump_clock):
    async with running_mock() as client:
        head, get = await client.get(path, "HEAD"), await client.get(path)
        assert (head.status, head.headers, head.body) == (200, get.headers, b"")


async def test_requests_one_after_the_other_and_all_at_once(autojump_clock):
    async with running_mock() as client:
        ask = post("/api/generate", {"model": "mock:steady", "prompt": "x"})
        stream = await client.open(
            ask + http_head("GET", "/", HOST) + http_head("GET", "/api/ps", HOST, ["Connection: close"])
        )
        wire = await read_to_end(stream)
        assert wire.count(b"HTTP/1.1 200 ") == 3
        assert client.counters.streams_left == 0


async def test_http_1_0_is_served_without_chunks_and_closed(autojump_clock):
    body = b'{"model":"mock:steady","prompt":"x"}'
    async with running_mock() as client:
        head = http_head("POST", "/api/generate", HOST, [f"Content-Length: {len(body)}"], version="1.0")
        wire = await read_to_end(await client.open(head + body))
        assert b"transfer-encoding" not in wire
        assert wire.count(b"\n{") == 21


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/embed", 404, b"404 page not found"),
        ("POST", "/v1/chat/completions", 404, b"404 page not found"),
        ("GET", "/api/chat", 405, b"405 method not allowed"),
        ("DELETE", "/api/tags", 405, b"405 method not allowed"),
        ("HEAD", "/api/ps", 405, b""),
        ("GET", "/api/status", 200, b'{"cloud":{"disabled":true,"source":"none"}}'),
    ],
)
async def test_other_paths_and_methods(method, path, status, body, autojump_clock):
    async with running_mock() as client:
        answer = await client.get(path, method)
        assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:11434", None, 200),
        ("[::1]:11434", None, 200),
        ("evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("[::1", None, 403),
        ("localhost", "http://127.0.0.1:3000", 200),
        ("localhost", "https://evil.example", 403),
        ("localhost", "null", 403),
    ],
)
async def test_other_names_and_foreign_pages_are_refused(host, origin, status, autojump_clock):
    async with running_mock() as client:
        headers = [] if origin is None else [f"Origin: {origin}"]
        stream = await client.open(http_head("GET", "/", host, headers))
        assert (await read_answer(stream)).status == status


# ── real sockets ──


@pytest.fixture
async def real():
    async with (
        listening_mock(Schedule(tps=0, ttft_ms=0, tokens=20)) as (mock, url),
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        yield mock, http


async def test_a_real_client_gets_a_stream_and_reuses_the_connection(real):
    mock, http = real
    for _ in range(2):
        answer = await http.post(
            "/api/chat", json={"model": "mock:steady", "messages": [{"role": "user", "content": "x"}]}
        )
        assert len(answer.text.splitlines()) == 21
    assert mock.counters.listen.accepted == 1


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("mock:rst", httpx.ReadError),
        ("mock:cut", httpx.RemoteProtocolError),
        ("mock:cut-json", httpx.RemoteProtocolError),
        ("mock:bad-chunk", httpx.RemoteProtocolError),
    ],
)
async def test_a_real_client_sees_a_broken_connection(model, error, real):
    mock, http = real
    with pytest.raises(error):
        await http.post("/api/generate", json={"model": model, "prompt": "x"})
    assert mock.counters.streams_left == 0
    assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize("model", ["mock:stall", "mock:endless-line", "mock:gzip-bomb"])
async def test_a_real_client_that_leaves_is_noticed(model, real):
    mock, http = real
    stream = await trio.open_tcp_stream("127.0.0.1", http.base_url.port)
    await stream.send_all(post("/api/generate", {"model": model, "prompt": "x"}))
    assert await receive(stream)
    await stream.aclose()
    assert (await mock.wait_left()).model == model
    assert mock.counters.listen.crashed == 0


async def test_a_client_that_does_not_read_holds_up_nobody(real):
    mock, http = real
    async with http.stream("POST", "/api/generate", json={"model": "mock:endless-line", "prompt": "x"}):
        assert (await http.get("/api/version")).json() == {"version": "0.0.0-mock"}
        await wait_all_tasks_blocked()
        assert mock.counters.streams_open == 1


# ── the verb ──


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


def test_the_list_is_printed_for_people_and_for_scripts(capsys):
    assert run_mock(parsed("--list")) == 0
    people = capsys.readouterr().out
    assert run_mock(parsed("--json")) == 0
    scripts = msgspec.json.decode(capsys.readouterr().out)
    assert [one["name"] for one in scripts["models"]] == list(BEHAVIOURS)
    for one in scripts["models"]:
        assert f"{one['name']} " in people
        assert one["about"] in people


@pytest.mark.parametrize(
    "words", [("--tps", "-1"), ("--port", "70000"), ("--tokens", "0"), ("--ttft-ms", "nan"), ("--tps", "x")]
)
def test_flags_out_of_range_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as left:
        parsed(*words)
    assert left.value.code == 2
    assert words[0] in capsys.readouterr().err


VERB = """
import argparse, sys
from engine import mock
parser = argparse.ArgumentParser()
mock.add_flags(parser)
sys.exit(mock.run_mock(parser.parse_args()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(number):
    with subprocess.Popen(
        [sys.executable, "-c", VERB, "--port", "0", "--tps", "0", "--tokens", "3"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().split()[-1]
            answer = httpx.post(f"{url}/api/generate", json={"model": "mock:steady", "prompt": "x"}, trust_env=False)
            assert len(answer.text.splitlines()) == 4
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "1 requests, 1 answers begun, 0 left by the client before the end"
