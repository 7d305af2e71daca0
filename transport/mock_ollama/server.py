"""The server: routes, what is "in memory", and what clients did."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from policies.egress import stays_here
from transport.listen import Acceptor, DeadlineStream, ListenCounters, ListenLimits
from transport.mock_ollama.catalogue import BEHAVIOURS, pull_script, script_for
from transport.mock_ollama.connection import LINGER_S, PLAIN, Connection, Request, Responder
from transport.mock_ollama.embedding import EmbedBody, embed_body, embeddings_body, parse_embed
from transport.mock_ollama.listing import VERSION, ps_body, show_body, tags_body
from transport.mock_ollama.player import JSON, Ending, Player
from transport.mock_ollama.records import fail_record
from transport.mock_ollama.requests import FOREVER_S, Ask, Kind, NameBody, decode, parse_ask
from transport.mock_ollama.script import Fail, Schedule, Script

KEEP_ALIVE_S: Final = 300.0
WRITE_TIMEOUT_S: Final = 300.0  # Ollama has none; a client that reads slowly is a test of its own
ABORTS_KEPT: Final = 1_000
_NAMES: Final = ("version", "tags", "ps", "status", "show", "generate", "chat", "pull", "embed", "embeddings")
PATHS: Final = frozenset(["/", *(f"/api/{name}" for name in _NAMES)])
LIMITS: Final = ListenLimits(connections_max=256, reserve=16, write_timeout_s=WRITE_TIMEOUT_S, drain_s=1.0)


@attrs.frozen
class Abort:
    """A client that left before the end of its answer, and how many tokens had been written to it."""

    model: str
    tokens: int


@attrs.define(eq=False)
class MockCounters:
    """What clients did. `malformed`: bytes that are no HTTP. `asked` counts generate and chat calls by model.
    `streams_opened` counts those and pulls, streamed or not, also when refused by a script; `streams_left` those whose
    client went before the end, the last ABORTS_KEPT of them in `aborts`. `streams_open` is now."""

    requests: int = 0
    malformed: int = 0
    asked: Counter[str] = attrs.field(factory=Counter)
    streams_opened: int = 0
    streams_open: int = 0
    streams_left: int = 0
    aborts: deque[Abort] = attrs.field(factory=lambda: deque(maxlen=ABORTS_KEPT))
    listen: ListenCounters = attrs.field(factory=ListenCounters)


@attrs.define(eq=False)
class _Loaded:
    keep_alive_s: float
    expires_at: float  # on trio's clock


@attrs.define(eq=False)
class MockOllama:
    """A fake Ollama on one listener, of sockets or in memory. `now_ns`: Unix time, for `created_at` and the like."""

    listener: trio.abc.Listener[trio.SocketStream] | trio.abc.Listener[trio.abc.HalfCloseableStream]
    schedule: Schedule = attrs.field(factory=Schedule)
    now_ns: Callable[[], int] = time.time_ns
    counters: MockCounters = attrs.field(factory=MockCounters)
    _acceptor: Acceptor = attrs.field(init=False)
    _began_ns: int = attrs.field(init=False)
    _loaded: dict[str, _Loaded] = attrs.field(factory=dict)
    _pulled: set[str] = attrs.field(factory=set)
    _left: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def __attrs_post_init__(self) -> None:
        self._acceptor = Acceptor(self.listener, self._serve, LIMITS, self.counters.listen)
        self._began_ns = self.now_ns()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `stop_accepting`; cancelled, it resets all connections."""
        await self._acceptor.run(task_status=task_status)

    def stop_accepting(self) -> None:
        self._acceptor.stop_accepting()

    async def wait_left(self, count: int = 1) -> Abort:
        """Until `count` streams in all were left by their clients; the last of them. For tests: no sleeping."""
        while self.counters.streams_left < count:
            await self._left.park()
        return self.counters.aborts[-1]

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models in memory now, longest remaining life first."""
        now = trio.current_time()
        self._loaded = {name: one for name, one in self._loaded.items() if one.expires_at > now}
        return tuple(sorted(self._loaded, key=lambda name: -self._loaded[name].expires_at))

    async def _serve(self, stream: DeadlineStream, overflow: bool) -> None:
        async def answer(request: Request, responder: Responder) -> bool:
            self.counters.requests += 1
            if overflow:
                return await _plain(responder, 503, "too many connections")
            return await self._answer(request, responder, stream)

        await Connection(stream, answer, self._count_malformed).serve()

    def _count_malformed(self) -> None:
        self.counters.malformed += 1

    async def _answer(self, request: Request, responder: Responder, stream: DeadlineStream) -> bool:
        if not _is_local(request):
            await responder.whole(403, b"", PLAIN)
            return True
        match request.method, request.path:
            case (("GET" | "HEAD"), "/"):
                return await _plain(responder, 200, "Ollama is running")
            case (("GET" | "HEAD"), "/api/version"):
                return await _json(responder, {"version": VERSION})
            case (("GET" | "HEAD"), "/api/tags"):
                return await _json(responder, tags_body(self._began_ns))
            case "GET", "/api/ps":
                return await _json(responder, self._ps())
            case "GET", "/api/status":
                return await _json(responder, {"cloud": {"disabled": True, "source": "none"}})
            case "POST", "/api/show":
                return await self._show(request, responder)
            case "POST", "/api/generate":
                return await self._ask(Kind.GENERATE, request, responder, stream)
            case "POST", "/api/chat":
                return await self._ask(Kind.CHAT, request, responder, stream)
            case "POST", "/api/pull":
                return await self._pull(request, responder, stream)
            case "POST", "/api/embed":
                return await self._embed(request, responder, embed_body)
            case "POST", "/api/embeddings":
                return await self._embed(request, responder, embeddings_body)
            case _, path if path in PATHS:
                return await _plain(responder, 405, "405 method not allowed")
            case _:
                return await _plain(responder, 404, "404 page not found")

    def _ps(self) -> dict[str, Any]:
        now = trio.current_time()
        left_s = {name: self._loaded[name].expires_at - now for name in self.loaded}
        return ps_body({name: self.now_ns() + round(left * 1e9) for name, left in left_s.items()})

    async def _show(self, request: Request, responder: Responder) -> bool:
        body = decode(request.body, NameBody)
        if isinstance(body, NameBody) and body.named not in BEHAVIOURS:
            body = Fail(f"model '{body.named}' not found", 404)
        if isinstance(body, Fail):
            return await _fail(responder, body)
        return await _json(responder, show_body(body.named, self._began_ns))

    async def _embed(self, request: Request, responder: Responder, answer: Callable[[EmbedBody], Any]) -> bool:
        """Every model that can be asked for text can be asked for vectors; they are made up as well."""
        parsed = parse_embed(request.body)
        if isinstance(parsed, Fail):
            return await _fail(responder, parsed)
        asked, keep_alive_s = parsed
        ask = Ask(model=asked.model or "", prompt="x", keep_alive_s=keep_alive_s)
        first = next(script_for(ask, self.schedule, pulled=ask.model in self._pulled).steps())
        if isinstance(first, Fail) and first.status == 404:
            return await _fail(responder, first)
        self._hold(ask)
        self._let_go(ask)
        return await _json(responder, answer(asked))

    async def _ask(self, kind: Kind, request: Request, responder: Responder, stream: DeadlineStream) -> bool:
        ask = parse_ask(kind, request.body)
        if isinstance(ask, Fail):
            return await _fail(responder, ask)
        nth = self.counters.asked[ask.model] if ask.model in BEHAVIOURS else 0
        if ask.model in BEHAVIOURS:  # made-up names would fill the counter
            self.counters.asked[ask.model] += 1
        script = script_for(
            ask,
            self.schedule,
            nth=nth,
            loaded=ask.model in self.loaded,
            pulled=ask.model in self._pulled,
        )
        streaming = ask.stream and not ask.load_only
        ending = await self._play(ask, script, streaming, responder)
        return await _concluded(ending, stream)

    async def _pull(self, request: Request, responder: Responder, stream: DeadlineStream) -> bool:
        body = decode(request.body, NameBody)
        if isinstance(body, Fail):
            return await _fail(responder, body)
        name, streaming = body.named, body.stream is not False
        ending = await self._play(Ask(model=name), pull_script(name, streaming), streaming, responder)
        if ending is Ending.ENDED and name in BEHAVIOURS:
            self._pulled.add(name)
        return await _concluded(ending, stream)

    async def _play(self, ask: Ask, script: Script, streaming: bool, responder: Responder) -> Ending | None:
        """How the response ended; None when the client left first."""
        counters = self.counters
        player = Player(ask, responder, streaming, self.now_ns, partial(self._hold, ask), partial(self._let_go, ask))
        ending: Ending | None = None

        async def play() -> None:
            nonlocal ending
            try:
                ending = await player.play(script)
            except trio.BrokenResourceError:
                pass  # it left; counted below

        counters.streams_opened += 1
        counters.streams_open += 1
        try:
            await responder.unless_left(play)
        finally:
            counters.streams_open -= 1
            self._let_go(ask)
        if ending is None:
            counters.streams_left += 1
            counters.aborts.append(Abort(ask.model, player.tokens))
            self._left.unpark_all()
        return ending

    def _hold(self, ask: Ask) -> None:
        """The model is in memory, and stays there while it answers."""
        before = self._loaded.get(ask.model)
        keep_alive_s = ask.keep_alive_s
        if keep_alive_s is None:
            keep_alive_s = KEEP_ALIVE_S if before is None else before.keep_alive_s
        self._loaded[ask.model] = _Loaded(keep_alive_s, trio.current_time() + FOREVER_S)

    def _let_go(self, ask: Ask) -> None:
        """From now on the time runs that this request stated, or an earlier one."""
        if (loaded := self._loaded.get(ask.model)) is not None:
            if ask.keep_alive_s is not None:
                loaded.keep_alive_s = ask.keep_alive_s
            loaded.expires_at = trio.current_time() + loaded.keep_alive_s


def _is_local(request: Request) -> bool:
    """No page of another site, and no name that somebody pointed at this machine, gets through."""
    origin = request.headers.get("origin")
    return _is_loopback(f"//{request.headers.get('host', 'localhost')}") and (origin is None or _is_loopback(origin))


def _is_loopback(url: str) -> bool:
    try:
        return stays_here(urlsplit(url).hostname or "")
    except ValueError:
        return False


async def _concluded(ending: Ending | None, stream: DeadlineStream) -> bool:
    """Carry out a broken ending; whether the connection goes on."""
    if ending is Ending.CUT:
        await stream.finish(LINGER_S)
    elif ending is Ending.RESET:
        await stream.reset()
    return ending is Ending.ENDED


async def _json(responder: Responder, body: Any) -> bool:
    await responder.whole(200, msgspec.json.encode(body), JSON)
    return True


async def _fail(responder: Responder, fail: Fail) -> bool:
    await responder.whole(fail.status, fail_record(fail), JSON)
    return True


async def _plain(responder: Responder, status: int, text: str) -> bool:
    await responder.whole(status, text.encode(), PLAIN)
    return True
