"""From a prompt to frames and back to silence, on a real process."""

from __future__ import annotations

import json
import re
import signal

import pytest
import trio

from engine.domain.energy import EnergyMeter, EnergyParams, read
from tests.system.frames import LONG, frames_of, rebuilt, start_session, text_of

TOLERANCE = 1e-9
SESSION_ID = re.compile(rb'"session_id":"([0-9a-f]+)"')


@pytest.mark.parametrize("model", ["synthetic/bursty", "embedded/mixed"])
async def test_frames_and_lines_tell_the_same_text(engine, model):
    async with frames_of(engine) as frames, engine.async_client() as http:
        body = {"model": model, "prompt": "what is a glacier?", "parameters": {"max_tokens": 25, "seed": 7}}
        async with http.stream("POST", "/generate", json=body | {"stream": True}) as response:
            assert response.headers["content-type"] == "application/x-ndjson"
            lines = [json.loads(line) for line in (await response.aread()).splitlines()]
        session_id = lines[0]["session_id"]
        await frames.until(lambda: ends_of(frames, session_id))
        events = [e for e in frames.events() if e["session_id"] == session_id]
        text = text_of([line for line in lines if line["type"] == "experience.token"])
        assert len(text) > 25
        assert frames.text(session_id) == text
        assert events[0]["type"] == lines[0]["type"] == "experience.session_start"
        assert events[-1]["type"] == lines[-1]["type"] == "experience.session_end"
        assert lines[-1]["payload"] == ends_of(frames, session_id)[0]["payload"]
        assert lines[-1]["payload"]["totals"]["tokens"] == 25
        offsets = [
            t["offset"] for line in lines if line["type"] == "experience.token" for t in line["payload"]["tokens"]
        ]
        assert offsets == sorted(offsets)


async def test_frame_numbers_rise_and_a_session_ends_once(engine):
    async with frames_of(engine) as frames, engine.async_client() as http:
        session_id = await start_session(http, max_tokens=10)
        await frames.until(lambda: ends_of(frames, session_id))
        await frames.another("system.heartbeat")
        numbers = [message["frame"] for message in frames.messages if message["frame"] is not None]
        assert numbers == sorted(set(numbers))
        deadlines = [message["mono_ms"] for message in frames.messages if message["frame"] is not None]
        assert deadlines == sorted(set(deadlines))
        types = [e["type"] for e in frames.events() if e["session_id"] == session_id]
        assert types.count("experience.session_start") == types.count("experience.session_end") == 1
        assert types[-2:] == ["energy.update", "experience.session_end"]


@pytest.mark.parametrize("model", ["synthetic/stalling", "synthetic/nologprobs", "embedded/hacker"])
async def test_energy_recomputed_from_the_events_alone_equals_the_wire(engine, model):
    async with frames_of(engine, top=True) as frames, engine.async_client() as http:
        session_id = await start_session(http, model, max_tokens=24)
        await frames.until(lambda: ends_of(frames, session_id))
    start = next(e for e in frames.events("experience.session_start") if e["session_id"] == session_id)["payload"]
    params = EnergyParams(**start["energy_params"])
    meter = EnergyMeter.started(params, start["start_us"])
    tokens, readings = 0, 0
    for message in frames.messages:
        for event in (e for e in message["events"] if e["session_id"] == session_id):
            if event["type"] == "experience.token":
                for item in event["payload"]["tokens"]:
                    sample = meter.token(rebuilt(item))
                    assert sample.energy == pytest.approx(item["energy"], abs=TOLERANCE)
                    assert sample.energy_base == pytest.approx(item["energy_base"], abs=TOLERANCE)
                    tokens += 1
            elif event["type"] == "energy.update":
                stream, at_us = event["payload"]["streams"][0], round(message["mono_ms"] * 1000)
                if stream["state"] == "DRAINED":  # the last reading is of the end itself
                    at_us = ends_of(frames, session_id)[0]["payload"]["summary"]["end_us"]
                    meter.end(at_us)
                now = read(meter.state, at_us, params)
                assert now.energy == pytest.approx(stream["energy"], abs=TOLERANCE)
                assert now.phase == stream["state"]
                readings += 1
    assert tokens == 24
    assert readings > 1  # one a frame; a busy machine misses frames


async def test_stop_says_how_and_says_it_again(engine):
    async with frames_of(engine) as frames, engine.async_client() as http:
        session_id = await start_session(http)
        await frames.until(lambda: len(frames.events("experience.token")) > 3)
        report = (await http.post("/stop", json={"session_id": session_id})).json()
        assert report["success"] is True
        assert (report["state"], report["reason"]) == ("ended", "aborted")
        assert report["tokens_generated"] > 3
        assert report["stop_latency_ms"] >= 0
        assert (await http.post("/stop", json={"session_id": session_id})).json() == report
        await frames.until(lambda: ends_of(frames, session_id))
        await frames.another("system.heartbeat")
        (end,) = ends_of(frames, session_id)
        assert end["payload"]["reason"] == "aborted"
        assert end["payload"]["totals"]["tokens"] == report["tokens_generated"]
        assert end["payload"]["stop_latency_ms"] == report["stop_latency_ms"]


def test_stop_of_an_unknown_session_is_404(engine):
    with engine.client() as http:
        response = http.post("/stop", json={"session_id": "00000000000000000000000000000000"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "SESSION_NOT_FOUND")


async def test_a_session_runs_on_without_a_listener_and_late_readers_get_it_whole(engine):
    async with engine.async_client() as http:
        session_id = await start_session(http, max_tokens=15)
        body = (await http.get(f"/stream/{session_id}")).text
        again = (await http.get(f"/stream/{session_id}")).text
    events = [json.loads(block.split("data: ", 1)[1]) for block in body.strip().split("\n\n")]
    assert body == again
    assert events[0]["type"] == "experience.session_start"
    assert (events[-1]["type"], events[-1]["payload"]["reason"]) == ("experience.session_end", "length")
    assert sum(len(e["payload"]["tokens"]) for e in events if e["type"] == "experience.token") == 15


async def test_leaving_a_streamed_answer_aborts_its_session(engine):
    async with frames_of(engine) as frames:
        async with await trio.open_tcp_stream("127.0.0.1", engine.port()) as caller:
            await caller.send_all(engine.request("POST", "/generate", LONG | {"stream": True}))
            answer = b""
            while b'"experience.token"' not in answer:
                piece = bytes(await caller.receive_some())
                assert piece, "the answer ended before its first token"
                answer += piece
        session_id = SESSION_ID.search(answer)[1].decode()
        (end,) = await frames.until(lambda: ends_of(frames, session_id))  # others may end meanwhile
        assert end["payload"]["reason"] == "aborted"


async def test_two_sessions_share_frames_and_keep_their_own_text(engine):
    async with frames_of(engine) as frames, engine.async_client() as http:
        models = ["synthetic/steady", "synthetic/bursty"]
        ids = [await start_session(http, model) for model in models]
        await frames.until(lambda: any({e["session_id"] for e in m["events"]} >= set(ids) for m in frames.messages))
        for session_id in ids:
            await http.post("/stop", json={"session_id": session_id})
        await frames.until(lambda: all(ends_of(frames, session_id) for session_id in ids))
        for session_id in ids:
            answer = (await http.get(f"/stream/{session_id}")).text
            events = [json.loads(block.split("data: ", 1)[1]) for block in answer.strip().split("\n\n")]
            assert frames.text(session_id) == text_of([e for e in events if e["type"] == "experience.token"])


async def test_the_whole_way_from_a_prompt_to_sigterm(start):
    engine = start()
    async with frames_of(engine) as frames, engine.async_client() as http:
        session_id = await start_session(http)
        await frames.until(lambda: len(frames.events("experience.token")) > 5)
        assert (await http.post("/stop", json={"session_id": session_id})).json()["success"]
        await frames.until(lambda: ends_of(frames, session_id))
        engine.signal(signal.SIGTERM)
        assert await frames.until_closed() == 1001
    assert await trio.to_thread.run_sync(engine.wait_exit) == 0
    assert not (engine.state / "engine.json").exists()


def ends_of(frames, session_id):
    return [e for e in frames.events("experience.session_end") if e["session_id"] == session_id]
