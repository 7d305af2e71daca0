"""The mock Ollama: every fault, down to the byte."""

from __future__ import annotations

import zlib

import msgspec
import pytest
import trio

from tests.fakes.mock_server import HOST, lines, post, running_mock, unchunked
from tests.fakes.network import http_head, read_answer, receive
from transport.mock_ollama import behaviours
from transport.mock_ollama.server import Abort
from transport.mock_ollama.speech import FAULT_AFTER


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
