"""Councils over real sockets: of the built-in models, and of models in two Ollamas."""

from __future__ import annotations

import json

import openai
import pytest
import trio

from tests.fakes.mock_server import listening_mock
from tests.system.frames import frames_of
from tests.system.process import STEP_S, WATCHDOG_S
from transport.mock_ollama.script import Schedule

EMBEDDED = ["embedded/lexicon", "embedded/hacker", "embedded/mixed"]
ASKED = {"mode": "council", "models": EMBEDDED, "prompt": "entropy", "stream": True, "parameters": {"max_tokens": 30}}
AT_FULL_SPEED = {"WF_EMBEDDED__PACE_TPS": "0", "WF_TIER": "high"}


def events(text):
    return [json.loads(line) for line in text.splitlines()]


async def models_of(http, runtimes):
    """What is listed, once these runtimes have answered."""
    with trio.fail_after(WATCHDOG_S):
        while True:
            models = (await http.get("/models")).json()["models"]
            if runtimes <= {model["runtime"] for model in models}:
                return models
            await trio.sleep(STEP_S)


@pytest.fixture
def embedded(start):
    return start(env=AT_FULL_SPEED)


async def test_the_built_in_models_disagree_measurably(embedded):
    async with frames_of(embedded) as frames, embedded.async_client() as http:
        lines = events((await http.post("/generate", json=ASKED)).text)
        await frames.event("experience.session_end")
    types = [line["type"] for line in lines]
    assert (types[0], types[1]) == ("experience.session_start", "council.formed")
    assert types[-2:] == ["council.synthesis", "experience.session_end"]
    by_type = {line["type"]: line["payload"] for line in lines}
    assert by_type["experience.session_start"]["models"] == EMBEDDED
    assert by_type["experience.session_end"]["totals"]["tokens"] == 3 * 30
    assert [e for e in frames.events("energy.update") if e["payload"]["ensemble"]]
    readings = [line["payload"] for line in lines if line["type"] == "council.ensemble"]
    measured = [reading["di"] for reading in readings if reading["di_method"] == "jsd_topk"]
    assert measured
    assert all(0 <= di <= 1 for di in measured)
    assert any(di > 0.05 for di in measured), "three different models never agree on everything"


def test_a_council_is_a_model_to_a_program_written_for_openai(embedded):
    with openai.OpenAI(base_url=f"{embedded.http}/v1", api_key="none", max_retries=0) as client:
        listed = [model.id for model in client.models.list()]
        assert "council/default" in listed
        messages = [{"role": "user", "content": "entropy"}]
        name = "council:" + "+".join(EMBEDDED)
        whole = client.chat.completions.create(model=name, messages=messages, max_tokens=20)
        report = whole.model_extra["wf"]["council"]
        assert {member["model"] for member in report["members"]} == set(EMBEDDED)
        assert report["chosen"] in EMBEDDED
        streamed = client.chat.completions.create(
            model="council:embedded/lexicon+embedded/mixed", messages=messages, max_tokens=20, stream=True
        )
        text, last = "", None
        for chunk in streamed:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            last = chunk.model_extra.get("wf", last)
        assert text
        assert last["council"]["method"] == "consensus"


async def test_models_in_two_ollamas_sit_in_one_council(start):
    schedule = Schedule(tps=200, ttft_ms=5, tokens=20, seed=3)
    async with listening_mock(schedule) as (_, one), listening_mock(schedule) as (_, other):
        env = {
            "WF_OLLAMA__ENABLED": "true",
            "WF_OLLAMA__SPAWN": "false",
            "WF_OLLAMA__URL": one,
            "WF_OLLAMA__MORE": json.dumps([other]),
        }
        engine = start(env=env)
        async with engine.async_client() as http:
            models = await models_of(http, {"ollama", "ollama2"})
            first = next(model["name"] for model in models if model["runtime"] == "ollama")
            second = next(model["name"] for model in models if model["runtime"] == "ollama2")
            body = {**ASKED, "models": [first, second], "parameters": {}}
            lines = events((await http.post("/generate", json=body)).text)
        ends = [line["payload"] for line in lines if line["type"] == "council.model_end"]
        assert {(end["model"], end["reason"]) for end in ends} == {(first, "finished"), (second, "finished")}
        assert lines[-1]["payload"]["error"] is None
