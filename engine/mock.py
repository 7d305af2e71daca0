"""`wf mock`: a scripted fake Ollama that misbehaves on request, for testing clients of Ollama.

    wf mock                          # on 127.0.0.1:11434; prints the models and what each does; Ctrl+C ends it
    wf mock --port 0 --tps 200       # any free port, a faster pace
    wf mock --list                   # only the list; --json for scripts

A client picks the behaviour by the model's name: `mock:steady` answers, `mock:stall` falls silent half-way, `mock:cut`
loses the connection, `mock:busy` is 503 twice, and so on. The same seed and question give the same answer to the byte,
apart from times. It listens on loopback only.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine import console
from engine.domain.errors import AddressInUse
from transport.mock_ollama.script import Schedule

if TYPE_CHECKING:
    from transport.mock_ollama.server import MockCounters

HOST: Final = "127.0.0.1"
OLLAMA_PORT: Final = 11434
DEFAULT: Final = Schedule()


def add_flags(parser: argparse.ArgumentParser) -> None:
    port, tokens = _within(int, 0, 65_535), _within(int, 1, 100_000)
    tps, ttft = _within(float, 0, 100_000), _within(float, 0, 600_000)
    parser.epilog = "A client picks what happens by the model's name; `wf mock --list` tells what each does."
    parser.add_argument("--port", type=port, default=OLLAMA_PORT, help="default 11434, Ollama's own; 0: any free one")
    parser.add_argument("--tps", type=tps, default=DEFAULT.tps, help="tokens per second (default 30; 0: full speed)")
    parser.add_argument(
        "--ttft-ms", type=ttft, default=DEFAULT.ttft_ms, metavar="MS", help="wait before a first token (default 200)"
    )
    parser.add_argument(
        "--tokens", type=tokens, default=DEFAULT.tokens, metavar="N", help="length of an answer (default 120)"
    )
    parser.add_argument("--seed", type=int, default=DEFAULT.seed, metavar="N", help="of the text (default 42)")
    parser.add_argument("--list", action="store_true", help="print the models and what each does, and end")
    parser.add_argument("--json", action="store_true", help="print the list as JSON, and end")


def run_mock(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, or only print the list. Raises AddressInUse."""
    import trio

    from transport.mock_ollama.listing import models

    if args.list or args.json:
        console.show({"models": models()}, args.json, lambda body: _table(body["models"]))
        return 0
    trio.run(_serve, Schedule(args.tps, args.ttft_ms, args.tokens, args.seed), args.port)
    return 0


async def _serve(schedule: Schedule, port: int) -> None:
    import trio

    from transport.listen import bound_port, open_listener
    from transport.mock_ollama.server import MockOllama

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            listener = await open_listener(HOST, port)
        except AddressInUse as error:
            hint = "stop it, or choose another port with --port (0: any free one)"
            raise AddressInUse(f"{error.message}; {hint}") from None
        mock = MockOllama(listener, schedule)
        async with trio.open_nursery() as nursery:
            await nursery.start(mock.run)
            _announce(bound_port(listener))
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()
    console.say("", _summary(mock.counters))


def _announce(port: int) -> None:
    from transport.mock_ollama.listing import VERSION, models

    console.say(
        f"Mock Ollama {VERSION} (scripted: no model, made-up words) at http://{HOST}:{port}",
        "",
        *_table(models()),
        "",
        f"""Try: curl -N http://{HOST}:{port}/api/generate -d '{{"model":"mock:steady","prompt":"hi"}}'""",
        "Ctrl+C ends it.",
    )


def _table(listed: list[dict[str, str]]) -> list[str]:
    return console.table(("MODEL", "WHAT IT DOES"), [(one["name"], one["about"]) for one in listed])


def _summary(counters: MockCounters) -> str:
    return (
        f"{counters.requests} requests, {counters.streams_opened} answers begun, "
        f"{counters.streams_left} left by the client before the end"
    )


def _within(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number in a range."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be between {low:g} and {high:g}")
        return value

    parse.__name__ = "number"  # argparse names it when the text is none
    return parse
