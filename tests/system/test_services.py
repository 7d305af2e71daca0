"""The local services of a real engine over loopback: what is promised of them, one service at a time and together."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from tests.system.process import WATCHDOG_S, EngineProcess, wf

NAMES = ("llama31_8b", "tinyllama", "tlc_domain_classifier")
BESIDE = ("registry", "router")
ANY_PORT = {name: {"port": 0} for name in NAMES}
QUERY = "What is the role of glucose in diabetes?"
CHAT = {"messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 6, "stream": False}
GENERATE = {"prompt": "What is AI?", "stream": False, "options": {"num_predict": 6, "temperature": 0.7}}


def env_of(table: dict[str, Any], **more: str) -> dict[str, str]:
    any_port = {"WF_SERVICES__REGISTRY_PORT": "0", "WF_SERVICES__ROUTER_PORT": "0"}
    return any_port | {"WF_SERVICES__TABLE": json.dumps(table), "WF_EMBEDDED__PACE_TPS": "0"} | more


@attrs.define(eq=False)
class Services:
    """A running engine with services, and how to ask them."""

    engine: EngineProcess

    @property
    def urls(self) -> dict[str, str]:
        urls: dict[str, str] = json.loads((self.engine.folder / "ports.json").read_bytes())["services"]
        return urls

    def client(self, name: str) -> httpx.Client:
        return self.engine.client(base_url=self.urls[name])

    def get(self, name: str, path: str, **options: Any) -> httpx.Response:
        with self.client(name) as http:
            return http.get(path, **options)

    def post(self, name: str, path: str, body: Any, **options: Any) -> httpx.Response:
        with self.client(name) as http:
            return http.post(path, json=body, **options)

    def port(self, name: str) -> int:
        return httpx.URL(self.urls[name]).port or 0


# ── a small Ollama that knows some domains ──

DOMAINS = {"MEDICINE": 0.92, "BIOLOGY": 0.04, "CHEMISTRY": 0.02}
OTHER = {"OTHER": 0.6, "HISTORY": 0.3}


class SmallOllama(BaseHTTPRequestHandler):
    """Sorts by the words it is given: glucose is medicine. Answers in one token with its log-probabilities."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [
            {"name": name, "model": name, "size": 1, "digest": "0" * 64,
             "details": {"parameter_size": size, "quantization_level": "Q4_0"}}
            for name, size in (("llama3.1:8b", "8.0B"), ("tinyllama:1.1b", "1B"))
        ]  # fmt: skip
        said = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": models}, "/api/ps": {"models": []}}
        self._answer(json.dumps(said.get(self.path, {})).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        asked = json.dumps(body.get("messages", body.get("prompt", "")))
        chances = DOMAINS if "glucose" in asked else OTHER
        top = [{"token": word, "logprob": math.log(chance), "bytes": []} for word, chance in chances.items()]
        words = {"message": {"role": "assistant", "content": top[0]["token"]}}
        if self.path == "/api/generate":
            words = {"response": top[0]["token"]}
        head = {"model": body.get("model"), "created_at": "2026-01-01T00:00:00Z"}
        done = {"done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 1, "load_duration": 5}
        if body.get("stream") is False:  # a load
            self._answer(json.dumps(head | done | {"response": ""}).encode())
            return
        lines = [head | words | {"done": False, "logprobs": [top[0] | {"top_logprobs": top}]}, head | done]
        self._answer(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def ollama() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallOllama)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, ollama: str) -> Iterator[Services]:
    """One engine over the small Ollama, for all tests that only ask."""
    folder = tmp_path_factory.mktemp("services")
    mine = {"port": 0, "title": "My own", "model": "llama3.1:8b", "capabilities": ["joking"]}
    env = env_of(ANY_PORT | {"mine": mine}, WF_OLLAMA__ENABLED="true", WF_OLLAMA__URL=ollama)
    engine = EngineProcess.spawn(folder, "--services", env=env)
    try:
        with engine.wait_ready().client() as http:
            engine.wait_for(lambda: any(one["url"] == ollama and one["up"] for one in _runtimes(http)))
        yield Services(engine)
        assert engine.process.poll() is None, engine.stderr()
    finally:
        engine.kill()


def _runtimes(http: httpx.Client) -> list[dict[str, Any]]:
    runtimes: list[dict[str, Any]] = http.get("/health").json()["runtimes"]
    return runtimes


# ── what is promised ──


def test_all_start_and_are_well(services, ollama):
    assert list(services.urls) == [*NAMES, "mine", *BESIDE]
    for name, said in zip(NAMES, ("llama31_8b_wrapper", "tinyllama_wrapper", NAMES[2]), strict=True):
        answer = services.get(name, "/health")
        body = answer.json()
        assert answer.status_code == 200
        assert (body["status"], body["service"], body["port"]) == ("healthy", said, services.port(name))
        assert (body["ollama_backend"], body["fallback_reason"]) == (ollama, None)
        services.engine.wait_for(lambda url=services.urls[name]: url in services.engine.stdout())


def test_the_openai_shape(services):
    body = services.post("llama31_8b", "/chat/completions", CHAT | {"model": "llama3.1:8b"}).json()
    assert (body["object"], body["model"]) == ("chat.completion", "llama3.1:8b")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "OTHER"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    stream = services.post("llama31_8b", "/chat/completions", CHAT | {"stream": True}).text
    assert stream.endswith("data: [DONE]\n\n")


def test_the_ollama_shape(services):
    body = services.post("tinyllama", "/generate", GENERATE).json()
    assert {"model", "created_at", "response", "done", "total_duration", "load_duration", "prompt_eval_count",
            "eval_count"} <= set(body)  # fmt: skip
    assert (body["model"], body["response"], body["done"]) == ("tinyllama:1.1b", "OTHER", True)
    lines = services.post("tinyllama", "/generate", GENERATE | {"stream": True}).text.splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False, True]


def test_info_is_of_the_model_that_is_there(services):
    services.post("tinyllama", "/generate", GENERATE)
    body = services.get("tinyllama", "/info").json()
    assert (body["model"]["name"], body["model"]["parameters"]) == ("tinyllama:1.1b", "1B")
    assert body["model"]["quantization"] == "Q4_0"
    assert body["performance"]["avg_latency_ms"] > 0


def test_the_classifier_has_the_probabilities_of_the_runtime(services):
    body = services.post("tlc_domain_classifier", "/classify_domain", {"query": QUERY, "top_k": 3}).json()
    assert (body["query"], body["primary_domain"], body["validated"]) == (QUERY, "MEDICINE", True)
    assert [(entry["domain"], entry["confidence"]) for entry in body["domains"]] == list(DOMAINS.items())
    assert body["confidence_source"] == "label_logprobs"


def test_the_classifier_gives_whole_triplets_and_reads_documents(services):
    def tmd(**more: Any) -> dict[str, Any]:
        body = services.post("tlc_domain_classifier", "/extract_tmd", {"query": "What is its role?"} | more).json()
        assert set(body["tmd"]) == set(body["confidence"]) == {"task", "method", "domain"}
        return body

    assert tmd()["tmd"] == {"task": "ANSWER", "method": "DENSE", "domain": "OTHER"}
    body = tmd(context_docs=["This is about glucose."])
    assert (body["tmd"]["domain"], body["confidence"]["domain"]) == ("MEDICINE", 0.92)
    assert body["validated"] == {"task": False, "method": False, "domain": True}


def test_a_domain_is_held_against_the_taxonomy(services):
    said = services.post("tlc_domain_classifier", "/validate_domain", {"domain": "MEDCINE"}).json()
    assert (said["valid"], said["domain"], said["nearest"]) == (False, "MEDCINE", "MEDICINE")
    assert said["domain_taxonomy_version"] == "1.0"


def test_a_service_of_ones_own_answers_like_the_others(services):
    assert services.get("mine", "/info").json()["service_name"] == "My own"
    assert services.post("mine", "/chat/completions", CHAT).status_code == 200


def test_what_a_service_did_is_in_the_figures_of_the_engine(services):
    services.post("llama31_8b", "/generate", GENERATE)
    with services.engine.client() as http:
        stats = http.get("/stats").json()
    assert stats["models"]["llama3.1:8b"]["sessions"] >= 1
    assert stats["system"]["edges"]["llama31_8b"]["requests"] >= 1


# ── who may call ──


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "OWN", "content-type": "text/plain"}, 415),
        ({"origin": "OWN"}, 200),
        ({"content-type": "text/plain"}, 200),
    ],
    ids=str,
)
def test_every_service_stands_behind_the_guards_of_the_api(services, headers, status):
    own = {"content-type": "application/json"} | headers
    own = {name: services.engine.http if value == "OWN" else value for name, value in own.items()}
    for name in NAMES:
        with services.client(name) as http:
            assert http.post("/generate", content=json.dumps(GENERATE), headers=own).status_code == status


def test_a_body_has_a_limit(services):
    answer = services.post("tinyllama", "/generate", {"prompt": "x" * 1_100_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_bad_input_has_our_shape(services):
    error = services.post("llama31_8b", "/chat/completions", CHAT | {"temperature": 3}).json()["error"]
    assert (error["code"], error["details"]["field"]) == ("VALIDATION_ERROR", "temperature")


# ── starting and stopping ──


def test_they_are_off_by_default(start):
    engine = start()
    assert json.loads((engine.folder / "ports.json").read_bytes())["services"] == {}


def test_without_the_named_models_others_answer_and_say_so(start):
    engine = Services(start("--services", env=env_of(ANY_PORT)))
    health = engine.get("llama31_8b", "/health").json()
    assert (health["status"], health["requested_model"], health["ollama_backend"]) == ("healthy", "llama3.1:8b", None)
    assert health["model"].startswith("embedded/")
    assert "llama3.1:8b is not here" in health["fallback_reason"]
    answer = engine.post("llama31_8b", "/chat/completions", CHAT | {"model": "llama3.1:8b"})
    assert (answer.status_code, answer.json()["model"]) == (200, health["model"])
    tmd = engine.post("tlc_domain_classifier", "/extract_tmd", {"query": QUERY}).json()["tmd"]
    assert set(tmd) == {"task", "method", "domain"}


def test_a_taxonomy_of_ones_own_is_served_with_its_version(start):
    own = json.dumps({"domains": {"version": "1.1", "labels": ["OTHER", "ASTROLOGY"]}})
    engine = Services(start("--services", env=env_of(ANY_PORT, WF_SERVICES__TAXONOMY=own)))
    said = engine.post("tlc_domain_classifier", "/validate_domain", {"domain": "astrology"}).json()
    assert (said["valid"], said["domain_taxonomy_version"]) == (True, "1.1")
    assert engine.post("tlc_domain_classifier", "/validate_domain", {"domain": "MEDICINE"}).json()["valid"] is False


def test_a_taken_port_is_a_warning_and_the_others_are_served(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        env = env_of(ANY_PORT | {"tinyllama": {"port": port}})
        engine = start("--services", env=env)
        assert list(Services(engine).urls) == ["llama31_8b", "tlc_domain_classifier", *BESIDE]
        said = f"service tinyllama is not offered: 127.0.0.1:{port} is in use"
        engine.wait_for(lambda: said in engine.stdout())  # said after the port file is there
        assert said in engine.stderr()
        assert "services.table.tinyllama.port" in engine.stdout()
        shown = wf(tmp_path, "services", "status", "--json", env=env)
    rows = {row["name"]: row for row in json.loads(shown.stdout)["services"]}
    assert (rows["llama31_8b"]["status"], rows["tinyllama"]["status"]) == ("healthy", "port_taken")
    assert f"{port} is in use" in rows["tinyllama"]["problem"]


def test_stopping_the_engine_ends_their_streams_with_a_terminal_frame(start):
    services = Services(
        start("--services", env=env_of(ANY_PORT | {"llama31_8b": {"port": 0, "model": "synthetic/steady"}}))
    )
    body = CHAT | {"stream": True, "max_tokens": 10_000}
    with services.client("llama31_8b") as http, http.stream("POST", "/chat/completions", json=body) as answer:
        pieces = answer.iter_bytes()
        data = next(pieces)
        services.engine.signal(signal.SIGTERM)
        data += b"".join(pieces)
    assert b'"error"' in data.strip().split(b"\n\n")[-1]
    assert services.engine.wait_exit() == 0


# ── the verb ──


@pytest.fixture
def background(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder and an environment for `wf services up`; what it started is gone after the test."""
    env = env_of(ANY_PORT, WF_HTTP__PORT="0", WF_WS__PORT="0")
    yield tmp_path, env
    wf(tmp_path, "services", "down", env=env)


def test_up_status_and_down(background):
    folder, env = background
    before = wf(folder, "services", "status", env=env)
    assert before.returncode == 1
    assert "no engine is running here" in before.stdout
    up = wf(folder, "services", "up", "--json", env=env)
    assert up.returncode == 0, up.stderr
    body = json.loads(up.stdout)
    assert [(row["name"], row["status"]) for row in body["services"]] == [
        (name, "healthy") for name in (*NAMES, *BESIDE)
    ]
    for row in body["services"]:
        answer = httpx.get(f"{row['url']}/health", trust_env=False, verify=False, timeout=WATCHDOG_S)
        assert answer.json()["status"] == "healthy"
    assert str(body["engine"]["pid"]) in wf(folder, "services", "status", env=env).stdout
    assert "dashboard" in Path(body["log"]).read_text()
    again = json.loads(wf(folder, "services", "up", "--json", env=env).stdout)
    assert again["engine"] == body["engine"]
    down = wf(folder, "services", "down", "--json", env=env)
    assert json.loads(down.stdout) == {"stopped": True, "pid": body["engine"]["pid"]}
    assert wf(folder, "services", "down", env=env).returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{body['services'][0]['url']}/health", trust_env=False, verify=False, timeout=WATCHDOG_S)


def test_an_engine_started_by_hand_is_left_alone(start, tmp_path):
    engine = start()
    up, down = (wf(tmp_path, "services", verb, env=env_of(ANY_PORT)) for verb in ("up", "down"))
    assert (up.returncode, down.returncode) == (3, 3)
    assert f"process {engine.process.pid}" in up.stderr
    assert "wf serve --services" in up.stderr
    assert "was not started by `wf services up`" in down.stderr
    assert engine.process.poll() is None


def test_up_without_a_free_port_starts_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        only = {name: {"enabled": False} for name in NAMES}
        mine = {"port": holder.getsockname()[1], "title": "x", "model": "a", "capabilities": ["b"]}
        off = {"WF_SERVICES__REGISTRY": "off", "WF_SERVICES__ROUTER": "off"}
        up = wf(tmp_path, "services", "up", env=env_of(only | {"mine": mine}, **off))
    assert up.returncode == 3
    assert "services.table.mine.port" in up.stderr
    assert not (tmp_path / "state" / "engine.json").exists()


def test_up_tells_why_an_engine_did_not_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        env = env_of(ANY_PORT, WF_HTTP__PORT=str(holder.getsockname()[1]), WF_WS__PORT="0")
        up = wf(tmp_path, "services", "up", env=env)
    assert up.returncode == 69
    assert "is in use" in up.stderr


def test_a_bad_table_is_told_with_its_place(tmp_path):
    (tmp_path / "wf.yaml").write_text("services:\n  table:\n    tinyllama: {prot: 1}\n")
    shown = wf(tmp_path, "services", "status")
    assert shown.returncode == 78
    assert (
        "wf.yaml:3: services.table.tinyllama.prot is unknown; did you mean services.table.tinyllama.port?"
        in shown.stderr
    )
