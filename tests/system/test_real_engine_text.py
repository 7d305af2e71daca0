"""Text, ends and stops of a real engine that says what it is told to: llama.cpp's server with a scripted model."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import attrs
import numpy as np
import pytest

from tests.fakes import gguf
from tests.fakes.llama_server import engine_over, llama_server
from tests.system.frames import frames_of

PROBABILITY: Final = 0.95
CONTEXT: Final = 4096
ROOM: Final = 65_536  # an endless answer takes a minute to fill it, and is stopped long before
TEXTS: Final = {  # by the character of the prompt that asks for it
    "A": "héllo wörld: 🙂 👩🏽\u200d🚀 👍🏿 北京 x²y ½ naïve — שלום e\u0301 \u2028fin.",
    "B": "<think>a deep thought: ½ of 84</think>the answer is forty-two",
    "C": "<think>marks that come in pieces</think>go on with this: 42",
    "D": 'no tools were asked for <tool_call>{"name":"get_time"}</tool_call> so this is text',
    "E": 'tabs\tand\r\nline ends,\n\n   runs   of  blanks \\ "quotes" \x07 and a bell',
    "F": "one two three halt four five six seven eight nine ten",
    "G": "round and round it goes, ",
}
BROKEN: Final = {  # no UTF-8: the pieces, and what can be told of them
    "H": ((b"bad ", b"\xff\xfe!", b" bytes"), "bad \ufffd\ufffd! bytes"),
    "I": ((b"half ", b"of a", b" letter: ", b"\xf0\x9f"), "half of a letter: "),
}
WHOLE: Final = ["<think>", "</think>"]  # in B one token each; in C cut like any text


def scripts() -> dict[str, gguf.Script]:
    whole = gguf.pieces_of(TEXTS["B"], whole=WHOLE)
    others = gguf.pieces_of(*(text for key, text in TEXTS.items() if key != "B"), taken=whole[0])
    cut = dict(zip([key for key in TEXTS if key != "B"], others, strict=True)) | {"B": whole[0]}
    cut |= {key: pieces for key, (pieces, _) in BROKEN.items()}
    return {key: gguf.Script(pieces, PROBABILITY, endless=key == "G") for key, pieces in cut.items()}


SCRIPTS: Final = scripts()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "scripted.gguf"
    gguf.scripted(SCRIPTS).save(path, context=ROOM, feed_forward=4096)
    with llama_server(path, "scripted", context=ROOM) as server:
        yield server


@pytest.fixture(scope="module")
def engine(server, tmp_path_factory):
    with engine_over(server, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """An engine over a server whose context is soon full."""
    folder = tmp_path_factory.mktemp("narrow")
    path = gguf.scripted(SCRIPTS).save(folder / "scripted.gguf", context=CONTEXT, feed_forward=4096)
    with llama_server(path, "scripted", context=CONTEXT) as server, engine_over(server, folder / "engine") as engine:
        yield engine


def asked(prompt: str, **parameters: Any) -> dict[str, Any]:
    """Greedy: then the script is said whatever its probability."""
    return {"model": "openai/scripted", "prompt": prompt, "parameters": {"temperature": 0} | parameters}


@attrs.frozen
class Said:
    tokens: list[dict[str, Any]]
    end: dict[str, Any]

    def text(self, kind: str = "answer") -> str:
        return "".join(token["text"] for token in self.tokens if token["kind"] == kind)


async def said(engine, prompt: str, **parameters: Any) -> Said:
    """The whole answer as `/generate` streams it; what holds for every stream is checked here."""
    async with engine.async_client() as http:
        body = asked(prompt, **parameters) | {"stream": True}
        lines = [json.loads(line) for line in (await http.post("/generate", json=body)).content.split(b"\n") if line]
    tokens = [t for line in lines if line["type"] == "experience.token" for t in line["payload"]["tokens"]]
    assert [token["position"] for token in tokens] == list(range(len(tokens)))
    for kind in ("answer", "thinking", "tool"):
        size_bytes = 0
        for token in (token for token in tokens if token["kind"] == kind):
            assert token["offset"] == size_bytes
            size_bytes += len(token["text"].encode())
    assert lines[-1]["type"] == "experience.session_end"
    assert lines[-1]["payload"]["totals"]["tokens"] == len(tokens)
    return Said(tokens, lines[-1]["payload"])


def said_directly(server, prompt: str) -> dict[str, Any]:
    """The message as the server tells it in one piece."""
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0}
    return server.ask("/v1/chat/completions", body)["choices"][0]["message"]


@pytest.mark.parametrize("key", ["A", "D", "E", "F"])
async def test_text_is_the_servers_byte_for_byte_however_it_is_cut(engine, server, key):
    answer = await said(engine, key)
    assert answer.text() == TEXTS[key] == said_directly(server, key)["content"]
    assert answer.text("thinking") == ""
    assert (answer.end["reason"], answer.end["error"]) == ("finished", None)


@pytest.mark.parametrize("key", BROKEN)
async def test_bytes_that_are_no_text_become_what_the_server_makes_of_them(engine, server, key):
    answer = await said(engine, key)
    assert answer.text() == BROKEN[key][1] == said_directly(server, key)["content"]
    assert (answer.end["reason"], answer.end["error"]) == ("finished", None)
    assert answer.end["totals"]["eval_count"] == len(SCRIPTS[key].pieces) + 1


async def test_the_frames_say_the_same_text(engine):
    async with frames_of(engine) as frames, engine.async_client() as http:
        session_id = (await http.post("/generate", json=asked("A"))).json()["session_id"]
        await frames.event("experience.session_end")
        assert frames.text(session_id) == TEXTS["A"]


async def test_every_piece_has_the_probability_of_the_script(engine):
    answer = await said(engine, "F")
    assert [token["text"].encode() for token in answer.tokens] == list(SCRIPTS["F"].pieces)
    expected = [math.log(PROBABILITY)] * len(answer.tokens)
    assert [token["logprob"] for token in answer.tokens] == pytest.approx(expected, abs=1e-4)
    assert answer.end["totals"]["eval_count"] == len(answer.tokens) + 1  # the end is a token too


async def test_a_character_in_pieces_is_told_once_whole_and_the_unseen_pieces_are_counted(engine):
    answer = await said(engine, "A")
    assert "\ufffd" not in answer.text()
    split = [piece for piece in SCRIPTS["A"].pieces if piece.decode(errors="replace").encode() != piece]
    assert len(split) > 10
    assert len(answer.tokens) < len(SCRIPTS["A"].pieces)
    assert answer.end["totals"]["eval_count"] == len(SCRIPTS["A"].pieces) + 1


@pytest.mark.parametrize("key", ["B", "C"])
async def test_thinking_is_told_apart(engine, server, key):
    answer, direct = await said(engine, key), said_directly(server, key)
    thought, spoken = TEXTS[key].removeprefix("<think>").split("</think>")
    assert answer.text("thinking") == thought == direct["reasoning_content"]
    assert answer.text("answer") == spoken == direct["content"]
    kinds = [token["kind"] for token in answer.tokens if token["text"]]
    assert kinds == sorted(kinds, reverse=True)  # all thinking first


@pytest.mark.parametrize(("stop", "left"), [("halt", "one two three "), ("ree ha", "one two th"), ("absent", None)])
async def test_nothing_of_a_stop_string_is_told(engine, stop, left):
    answer = await said(engine, "F", stop=["never", stop])
    assert answer.text() == (TEXTS["F"] if left is None else left)
    assert answer.end["reason"] == "finished"  # this API has one word for both ends


@pytest.mark.parametrize("count", [1, 5])
async def test_max_tokens_ends_with_length(engine, count):
    answer = await said(engine, "F", max_tokens=count)
    assert answer.text().encode() == b"".join(SCRIPTS["F"].pieces[:count])
    assert (answer.end["reason"], answer.end["totals"]["tokens"]) == ("length", count)


async def test_an_answer_that_fills_the_context_ends_with_length(narrow):
    answer = await said(narrow, "x" * (CONTEXT - 100) + "G")
    assert (answer.end["reason"], answer.end["error"]) == ("length", None)
    assert 90 < answer.end["totals"]["tokens"] <= 100
    assert answer.text().startswith(3 * TEXTS["G"])


async def test_a_prompt_longer_than_the_context_is_refused_and_says_why(narrow):
    answer = await said(narrow, "long " * CONTEXT + "F")
    assert (answer.end["reason"], answer.tokens) == ("error", [])
    error = answer.end["error"]
    assert (error["code"], error["retryable"]) == ("VALIDATION_ERROR", False)
    assert f"context size ({CONTEXT} tokens)" in error["message"]
    assert "long long" not in json.dumps(answer.end)


async def test_stop_reaches_the_server(engine, server):
    async with frames_of(engine) as frames, engine.async_client() as http:
        session_id = (await http.post("/generate", json=asked("G"))).json()["session_id"]
        await frames.event("experience.token")
        assert server.busy_slots() == 1
        report = (await http.post("/stop", json={"session_id": session_id})).json()
        server.wait_idle()
        end = await frames.event("experience.session_end")
    assert (report["reason"], end["payload"]["reason"]) == ("aborted", "aborted")
    assert 0 < report["tokens_generated"] < ROOM / 2


def test_leaving_reaches_the_server(engine, server):
    with engine.client() as http:
        with http.stream("POST", "/generate", json=asked("G") | {"stream": True}) as response:
            lines = response.iter_lines()  # kept: to let go of it closes the connection
            next(line for line in lines if json.loads(line)["type"] == "experience.token")
            assert server.busy_slots() == 1
        server.wait_idle()


def test_the_server_is_well_and_its_model_is_listed(engine, server):
    with engine.client() as http:
        (runtime,) = [r for r in http.get("/health").json()["runtimes"] if r["name"] == "openai"]
        (model,) = [m for m in http.get("/models").json()["models"] if m["runtime"] == "openai"]
    assert (runtime["up"], runtime["reason"], runtime["url"]) == (True, None, server.url)
    assert (model["name"], model["size_bytes"]) == ("scripted", None)


@pytest.fixture
def mortal(tmp_path):
    """A server of the test's own."""
    path = gguf.scripted(SCRIPTS).save(tmp_path / "scripted.gguf", context=ROOM, feed_forward=4096)
    with llama_server(path, "scripted", context=ROOM) as server:
        yield server


async def test_a_server_that_dies_in_the_middle_is_no_end_of_an_answer(mortal, tmp_path):
    with engine_over(mortal, tmp_path / "engine") as engine:
        end, after = await killed(engine, mortal)
    assert (end["reason"], end["error"]["code"]) == ("truncated", "UPSTREAM_TRUNCATED")
    assert end["totals"]["tokens"] > 0
    assert (after.end["reason"], after.end["error"]["code"]) == ("error", "RUNTIME_UNAVAILABLE")


async def killed(engine, server) -> tuple[dict[str, Any], Said]:
    """The end of an answer whose server is killed, and the answer after it."""
    async with frames_of(engine) as frames, engine.async_client() as http:
        await http.post("/generate", json=asked("G"))
        await frames.event("experience.token")
        server.process.kill()
        end = await frames.event("experience.session_end")
    return end["payload"], await said(engine, "F")


@pytest.fixture
def overflowing(tmp_path):
    """A server whose model's arithmetic overflows: it goes on with one token and reports null for every probability."""
    model = gguf.scripted(SCRIPTS)
    broken = attrs.evolve(model, logprobs=np.full_like(model.logprobs, np.nan))
    with llama_server(broken.save(tmp_path / "broken.gguf"), "scripted") as server:
        yield server


async def test_a_model_without_numbers_still_says_its_text(overflowing, tmp_path):
    with engine_over(overflowing, tmp_path / "engine") as engine:
        answer = await said(engine, "F", max_tokens=8)
    assert (answer.end["reason"], answer.end["totals"]["tokens"], len(answer.text())) == ("length", 8, 8)
    assert {token["logprob"] for token in answer.tokens} == {None}
    assert all(token["energy"] is not None for token in answer.tokens)
