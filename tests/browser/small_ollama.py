"""An Ollama on a real port that has no model until one is pulled, and whose downloads go only as far as a test says."""

from __future__ import annotations

import json
import queue
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

STEP_S = 0.01
WATCHDOG_S = 30.0
END = {
    "done": True,
    "done_reason": "stop",
    "eval_count": 3,
    "load_duration": 260_000_000,
}  # as if it had been loaded again


@attrs.define(eq=False)
class Pull:
    """One download: what the test says comes out, until it is over or the client has left."""

    model: str
    steps: queue.SimpleQueue[dict[str, Any]] = attrs.field(factory=queue.SimpleQueue)
    left: threading.Event = attrs.field(factory=threading.Event)

    def at(self, completed: int, total: int, status: str = "pulling 0a1b2c3d4e5f") -> None:
        self.steps.put({"status": status, "digest": "sha256:0a1b", "completed": completed, "total": total})

    def say(self, status: str) -> None:
        self.steps.put({"status": status})

    def fail(self, error: str) -> None:
        self.steps.put({"error": error})

    def finish(self) -> None:
        self.say("success")


@attrs.define(eq=False)
class SmallOllama:
    url: str = ""
    models: set[str] = attrs.field(factory=set)
    loaded: set[str] = attrs.field(factory=set)
    _pulls: queue.SimpleQueue[Pull] = attrs.field(factory=queue.SimpleQueue)

    def clear(self) -> None:
        self.models.clear()
        self.loaded.clear()

    def next_pull(self) -> Pull:
        """The next download somebody asks for, as soon as it is asked for."""
        return self._pulls.get(timeout=WATCHDOG_S)

    def answer(self, handler: _Handler, path: str, body: dict[str, Any]) -> None:
        match path:
            case "/api/version":
                handler.whole({"version": "0.12.11"})
            case "/api/tags":
                handler.whole({"models": [{"name": name, "capabilities": ["completion"]} for name in self.models]})
            case "/api/ps":
                handler.whole({"models": [{"name": name, "size": 1_000_000} for name in self.loaded]})
            case "/api/pull":
                self._pull(handler, Pull(body["model"]))
            case "/api/generate" if not body.get("prompt"):
                self.loaded.add(body["model"])
                handler.whole({"response": "", "done": True, "done_reason": "load"})
            case "/api/generate" | "/api/chat":
                handler.begin()
                for word in ("Yes", ", it", " is."):
                    handler.line({"response": word, "message": {"role": "assistant", "content": word}})
                handler.line(END)
                handler.end()
            case _:
                handler.whole({"error": "not found"}, status=404)

    def _pull(self, handler: _Handler, pull: Pull) -> None:
        handler.begin()
        self._pulls.put(pull)
        while True:
            try:
                step = pull.steps.get(timeout=STEP_S)
            except queue.Empty:
                if handler.deserted():
                    pull.left.set()
                    return
                continue
            if step.get("status") == "success":
                self.models.add(pull.model)
            handler.line(step)
            if "error" in step or step["status"] == "success":
                handler.end()
                return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ollama: SmallOllama

    def do_GET(self) -> None:
        self.ollama.answer(self, self.path, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.ollama.answer(self, self.path, json.loads(body))

    def whole(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def line(self, record: dict[str, Any]) -> None:
        data = json.dumps(record).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def deserted(self) -> bool:
        """A client that waits for an answer sends nothing: what there is to read is its leaving."""
        if select.select([self.connection], [], [], 0)[0]:
            self.close_connection = True
            return True
        return False

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def small_ollama(kind: type[SmallOllama] = SmallOllama) -> Iterator[SmallOllama]:
    ollama = kind()
    handler = type("Handler", (_Handler,), {"ollama": ollama})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    ollama.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(STEP_S,))
    thread.start()
    try:
        yield ollama
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WATCHDOG_S)
