"""The command line's way to a running engine: its HTTP API on loopback, never through a proxy."""

from __future__ import annotations

import difflib
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import attrs
import httpx
import msgspec
from trio_websocket import ConnectionRejected, HandshakeError, WebSocketConnection, open_websocket_url

from engine.domain.errors import EngineError, ModelNotFound, RuntimeUnavailable, SessionNotFound, UpstreamProtocolError
from engine.settings import Settings
from engine.state import EngineAddress

TIMEOUT_S: Final = 10.0
NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: the engine speaks plain HTTP on loopback
FRAME_BYTES_MAX: Final = 32 * 1024 * 1024  # a snapshot holds up to 64 KiB of text of every stream
LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # one event of the engine; frames of text are far smaller


class RemoteError(EngineError):
    """The engine refused; its own words and status."""

    status: int  # type: ignore[misc]  # the far side's, so not the class's

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.define(eq=False)
class EngineClient:
    """Blocking: for commands that do one thing."""

    _http: httpx.Client

    @classmethod
    def connect(cls, address: EngineAddress, settings: Settings) -> EngineClient:
        headers = {"accept-encoding": "identity"}
        if settings.api_keys:
            headers["authorization"] = f"Bearer {settings.api_keys[0].reveal()}"
        return cls(
            httpx.Client(base_url=address.http, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=NO_TLS)
        )

    def get(self, path: str) -> Any:
        """A JSON answer. Raises RuntimeUnavailable, or RemoteError with what the engine said."""
        with self._explained():
            return _body(self._http.get(path))

    def post(self, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
        with self._explained():
            return _body(self._http.post(path, json=body, timeout=timeout_s))

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """NDJSON lines as they come. Closing the iterator closes the connection, which stops the session."""
        timeout = httpx.Timeout(TIMEOUT_S, read=None)
        with self._explained(), self._http.stream("POST", path, json=body, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                _body(response)
            rest = b""
            for data in response.iter_raw():
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
                if len(rest) > LINE_BYTES_MAX:
                    raise UpstreamProtocolError("the engine sent an endless line")

    def model(self, name: str) -> dict[str, Any]:
        """What `/models` says of one model; `:latest` may be left out. Raises ModelNotFound with the nearest name, or
        with what to do about a council."""
        listing = self.get("/models")
        models: list[dict[str, Any]] = listing["models"]
        if any(council["name"] == name for council in listing.get("virtual", ())):
            raise ModelNotFound(f"{name} is a council, no model of its own; `wf models` lists its members")
        for model in models:
            if name in (model["name"], f"{model['runtime']}/{model['name']}") or model["name"] == f"{name}:latest":
                return model
        near = difflib.get_close_matches(name, [model["name"] for model in models], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; `wf models` lists them"
        raise ModelNotFound(f"there is no model {name}{hint}")

    def stop(self, name: str) -> dict[str, Any]:
        """Stop one session by its id or the beginning of it, or `all`. Raises SessionNotFound for no or several
        matches."""
        running = [session["session_id"] for session in self.get("/stats")["sessions"]["running"]]
        chosen = running if name == "all" else [id_ for id_ in running if id_.startswith(name)]
        if name != "all" and len(chosen) != 1:
            problem = "no running session begins" if not chosen else f"{len(chosen)} running sessions begin"
            raise SessionNotFound(f"{problem} with that; `wf ps` lists them")
        return {"stopped": [{"session_id": id_} | self.post("/stop", {"session_id": id_}) for id_ in chosen]}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise RuntimeUnavailable(f"the engine does not answer ({type(error).__name__})") from error


@asynccontextmanager
async def open_frames(address: EngineAddress, settings: Settings) -> AsyncIterator[WebSocketConnection]:
    """The frames of a running engine. Raises RuntimeUnavailable for silence, RemoteError for a refusal."""
    key = settings.api_keys[0].reveal() if settings.api_keys else ""
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    try:
        async with open_websocket_url(address.ws, extra_headers=headers, max_message_size=FRAME_BYTES_MAX) as socket:
            yield socket
    except ConnectionRejected as error:
        raise RemoteError(error.status_code, f"the engine refused its frames with {error.status_code}") from None
    except (OSError, HandshakeError) as error:
        raise RuntimeUnavailable(f"the engine does not answer ({type(error).__name__})") from error


def _body(response: httpx.Response) -> Any:
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamProtocolError(f"the engine answered {response.status_code} without JSON") from None
    if response.status_code >= 400:
        error = body.get("error", {}) if isinstance(body, dict) else {}
        said = error.get("message", response.status_code) if isinstance(error, dict) else error  # Ollama's are a text
        code = error.get("code") if isinstance(error, dict) else None
        # The engine is there, what it streams from is not. An error in Ollama's shape has no code.
        if code == RuntimeUnavailable.code or (code is None and response.status_code == RuntimeUnavailable.status):
            raise RuntimeUnavailable(str(said))
        raise RemoteError(response.status_code, str(said))
    return body
