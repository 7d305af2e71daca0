"""The command line: what can be said, and which exit code an error becomes. The work is in app, client and console."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from engine import __version__, mock
from engine.config import FLAGS, load_settings
from engine.domain.errors import AddressInUse, CallerError, ConfigError, EngineError, RuntimeUnavailable
from engine.settings import Settings
from engine.state import state_path

EXIT_FAILED: Final = 1
EXIT_IN_USE: Final = 3
EXIT_UNAVAILABLE: Final = 69
EXIT_INTERNAL: Final = 70
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Usage errors leave through argparse with 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "serve")
    args = parser.parse_args(_council_first(words))
    try:
        return int(args.do(args))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except BaseExceptionGroup as caught:  # what nurseries wrap
        if caught.subgroup(BrokenPipeError) is not None:
            return _reader_gone()
        interrupted = caught.subgroup(KeyboardInterrupt) is not None
        return EXIT_INTERRUPTED if interrupted else _told(caught, debug=getattr(args, "log_level", None) == "debug")
    except Exception as caught:
        return _told(caught, debug=getattr(args, "log_level", None) == "debug")


def _council_first(words: list[str]) -> list[str]:
    """`run --council a,b PROMPT` is `run council:a+b PROMPT`: argparse knows no option that stands for a positional."""
    if words[0] != "run":
        return words
    for at, word in enumerate(words):
        name, equals, members = word.partition("=")
        if name == "--council" and (equals or at + 1 < len(words)):
            rest = [*words[1:at], *words[at + (1 if equals else 2) :]]
            return ["run", "council:" + (members or words[at + 1]).replace(",", "+"), *rest]
        if word == "--":
            break
    return words


def _reader_gone() -> int:
    """The reader of our output has gone, as `head` does: nothing to say, and nowhere to say it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wf", description="See what a local language model is doing.")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(name: str, do: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
        made.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: ./wf.yaml, if any)")
        made.add_argument("--log-level", choices=LOG_LEVELS, help="default: info for serve, else warning")
        made.set_defaults(do=do)
        return made

    _serve_flags(verb("serve", _serve, "start the engine and its dashboard (also without a command)"))
    _run_flags(verb("run", _run, "ask a model once and stream its answer"))
    for name, do, help_ in (
        ("models", _models, "list the models that can be asked"),
        ("ps", _ps, "list models in memory and running sessions"),
    ):
        verb(name, do, help_).add_argument("--json", action="store_true", help="print JSON")
    show = verb("show", _show, "tell everything about one model")
    show.add_argument("model", metavar="MODEL")
    show.add_argument("--json", action="store_true", help="print JSON")
    why = verb("why", _why, "tell why a model is loaded, waited for, refused or gone")
    why.add_argument("model", metavar="MODEL")
    why.add_argument("--json", action="store_true", help="print JSON")
    pull = verb("pull", _pull, "download a model")
    pull.add_argument("model", metavar="MODEL", help="for example llama3.2:1b, or org/name:Q4_K_M on Hugging Face")
    pull.add_argument("--json", action="store_true", help="print the progress, one JSON object a line")
    load = verb("load", _load, "bring a model into memory")
    load.add_argument("model", metavar="MODEL")
    load.add_argument("--pin", action="store_true", help="keep it there until it is unloaded")
    load.add_argument("--json", action="store_true", help="print JSON")
    unload = verb("unload", _unload, "take a model out of memory")
    unload.add_argument("model", metavar="MODEL")
    unload.add_argument("--json", action="store_true", help="print JSON")
    stop = verb("stop", _stop, "stop a running session")
    stop.add_argument("session", metavar="SESSION", help="a session id, its first characters, or `all`")
    stop.add_argument("--json", action="store_true", help="print JSON")
    top = verb("top", _top, "watch running streams in the terminal")
    top.add_argument("--once", action="store_true", help="print one picture and end, as without a terminal")
    top.add_argument("--json", action="store_true", help="print one picture as JSON")
    check = verb("check", _check, "validate configuration, ports and runtimes, and say what is missing")
    check.add_argument("--json", action="store_true", help="print JSON")
    services = verb("services", _services, "start, show or stop an engine with the local services in the background")
    services.add_argument("action", choices=("up", "status", "down"))
    services.add_argument("--json", action="store_true", help="print JSON")
    mock.add_flags(verb("mock", mock.run_mock, "run a scripted fake Ollama with faults, for testing clients"))
    schema = verb("schema", _schema, "print JSON Schemas of events, messages, API bodies, config and policies")
    schema.add_argument("name", metavar="NAME", nargs="?", help="without it, all names are listed")
    schema.add_argument("--json", action="store_true", help="print JSON (a schema always is)")
    version = verb("version", _version, "print the version")
    version.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of API and dashboard (default 8145; 0: any free one)")
    parser.add_argument("--ws-port", type=int, help="port of the frames WebSocket (default 8146; 0: any free one)")
    _engine_flags(parser)
    parser.add_argument("--tier", choices=("auto", "low", "mid", "high", "hybrid"), help="how much machine to use")
    parser.add_argument("--level", type=int, choices=range(1, 6), metavar="1-5", help="what is unlocked (default 5)")
    parser.add_argument(
        "--services", action="store_true", default=None, help="offer the local services too (8050, 8051, 8052)"
    )
    parser.add_argument(
        "--core-lock",
        action="store_true",
        default=None,
        help="refuse this process every socket that leads out of the machine; no downloads",
    )
    parser.add_argument("--open", action="store_true", help="open the dashboard in the browser")
    parser.add_argument("--port-file", type=Path, metavar="FILE", help="write addresses there once ready (JSON)")
    parser.add_argument("--log-format", choices=("text", "json"), help="default: text")


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="for example embedded/lexicon")
    parser.add_argument("prompt", metavar="PROMPT", help="what to ask; - reads it from standard input")
    parser.add_argument("--council", metavar="A,B,…", help="ask these models together, instead of MODEL")
    _engine_flags(parser)
    parser.add_argument("--temperature", type=float, metavar="0-2")
    parser.add_argument("--top-p", type=float, metavar="0-1")
    parser.add_argument("--top-k", type=int, metavar="1-100")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same answer, where a runtime can"
    )
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; up to 10")
    parser.add_argument(
        "--broker", action="store_true", help="this one answer may come from outside this machine (see broker.mode)"
    )
    parser.add_argument("--json", action="store_true", help="print the session's events, one JSON object a line")


def _engine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtime", metavar="NAME", help="use only this runtime")
    parser.add_argument(
        "--gguf", metavar="FILE", help="offer this GGUF file (or org/name on Hugging Face), by llama.cpp"
    )
    parser.add_argument(
        "--synthetic", type=int, metavar="SEED", help="add a made-up source, marked SYNTHETIC everywhere"
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings for one command. Raises ConfigError."""
    flags = {name: value for name in FLAGS if (value := getattr(args, name, None)) is not None}
    return load_settings(argv_config=args.config, flags=flags, environ=os.environ, cwd=Path.cwd())


# ── one function per verb; imports inside, so that `wf version` loads nothing it does not need ──


def _serve(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    import trio

    from engine import app, console, logs

    logs.configure(settings.log.level, settings.log.format)

    def announce(serving: app.Serving) -> None:
        console.announce(serving)
        if args.open:
            console.open_browser(serving.address.http)

    async def run() -> None:
        await app.serve(settings, state=state_path(os.environ), port_file=args.port_file, announce=announce)

    trio.run(run)
    return 0


def _run(args: argparse.Namespace) -> int:
    from engine import console, logs
    from engine.oneshot import OneShot, ask_engine, ask_in_process

    settings = settings_of(args)
    logs.configure(args.log_level or "warning", settings.log.format)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    names = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop")
    parameters = {name: value for name in names if (value := getattr(args, name)) is not None}
    shot = OneShot(args.model, prompt, parameters, args.broker)
    engine = None if args.synthetic is not None else _engine_or_none()
    show = console.print_line if args.json else console.Answer().show
    end = ask_in_process(shot, settings, show) if engine is None else ask_engine(shot, engine, settings, show)
    return 0 if end in ("finished", "length", "stop") else EXIT_FAILED


def _models(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    body = EngineClient.connect(_engine(), settings_of(args)).get("/models")
    console.show(body, args.json, console.models_table)
    return 0


def _ps(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    client = EngineClient.connect(_engine(), settings_of(args))
    loaded = [m for m in client.get("/models")["models"] if m["resident_bytes"] or m["state"] != "absent"]
    body = {"models": loaded, "sessions": client.get("/stats")["sessions"]["running"]}
    console.show(body, args.json, console.ps_table)
    return 0


def _show(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    body = EngineClient.connect(_engine(), settings_of(args)).model(args.model)
    console.show(body, args.json, console.model_lines)
    return 0


def _why(args: argparse.Namespace) -> int:
    from urllib.parse import quote

    from engine import console
    from engine.client import EngineClient

    body = EngineClient.connect(_engine(), settings_of(args)).get(f"/models/{quote(args.model)}/why")
    console.show(body, args.json, console.why_lines)
    return 0


def _pull(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient
    from engine.progress import Progress, follow

    lines = EngineClient.connect(_engine(), settings_of(args)).stream("/api/pull", {"model": args.model})
    follow(lines, console.print_line if args.json else Progress(args.model).show)
    return 0


def _load(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    settings = settings_of(args)
    client = EngineClient.connect(_engine(), settings)
    patience_s = settings.timeouts.load_s + settings.timeouts.first_token_s
    print(f"loading {console.harmless(args.model)}", file=sys.stderr)
    body = client.post("/models/load", {"name": args.model, "pin": args.pin}, patience_s)
    console.show(body, args.json, console.loaded_lines)
    return 0


def _unload(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    settings = settings_of(args)
    client = EngineClient.connect(_engine(), settings)
    body = client.post("/models/unload", {"name": args.model}, settings.timeouts.load_s)
    console.show(body, args.json, console.unloaded_lines)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from engine import console
    from engine.client import EngineClient

    client = EngineClient.connect(_engine(), settings_of(args))
    console.show(client.stop(args.session), args.json, console.stopped_lines)
    return 0


def _top(args: argparse.Namespace) -> int:
    import trio

    from engine.top import run_top

    settings = settings_of(args)
    return trio.run(lambda: run_top(_engine, settings, json=args.json, once=args.once))


def _check(args: argparse.Namespace) -> int:
    from engine import console
    from engine.check import run_checks

    report = run_checks(lambda: settings_of(args), os.environ)
    console.show(report, args.json, console.check_lines)
    return 0 if report["ok"] else EXIT_FAILED


def _services(args: argparse.Namespace) -> int:
    from engine import console, service_verbs

    state = state_path(os.environ)
    if args.action == "down":
        console.show(service_verbs.down(state), args.json, service_verbs.down_lines)
        return 0
    settings = settings_of(args)
    if args.action == "up":
        body = service_verbs.up(settings, state, args.config)
    else:
        body = service_verbs.status(settings, state)
    console.show(body, args.json, service_verbs.lines)
    return 0 if any(row["status"] == "healthy" for row in body["services"]) else EXIT_FAILED


def _schema(args: argparse.Namespace) -> int:
    from engine import console
    from engine.schemas import read_schemas
    from transport.wire.json_schema import find, listing, listing_lines

    documents = read_schemas()
    if args.name is None:
        console.show(listing(documents), args.json, listing_lines)
    else:
        console.show(find(documents, args.name), True, listing_lines)
    return 0


def _version(args: argparse.Namespace) -> int:
    from engine import console

    console.show({"version": __version__}, args.json, lambda body: [f"wf-engine {body['version']}"])
    return 0


# ── errors ──


def _engine_or_none() -> Any:
    from engine.state import read_engine

    return read_engine(state_path(os.environ))


def _engine() -> Any:
    """The running engine. Raises RuntimeUnavailable that says how to start one."""
    address = _engine_or_none()
    if address is None:
        raise RuntimeUnavailable("no engine is running here; start one with `wf serve`")
    return address


def _told(error: BaseException, *, debug: bool) -> int:
    """One readable line on stderr, and the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    from engine.console import harmless

    ours = next(_engine_errors(error), None)
    if ours is None:
        print(f"wf: internal error: {type(error).__name__} (--log-level debug shows where)", file=sys.stderr)
        return EXIT_INTERNAL
    print(f"wf: {harmless(ours.message)}", file=sys.stderr)
    match ours:
        case ConfigError():
            return EXIT_CONFIG
        case AddressInUse():
            return EXIT_IN_USE
        case RuntimeUnavailable():
            return EXIT_UNAVAILABLE
        case CallerError():
            return EXIT_FAILED
        case _:
            return EXIT_INTERNAL if ours.status == 500 else EXIT_FAILED


def _engine_errors(error: BaseException) -> Iterator[EngineError]:
    """Ours, wherever nurseries have wrapped them."""
    if isinstance(error, EngineError):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _engine_errors(part)
