"""What a person sees in the terminal. Model text is shown without anything that could command the terminal."""

from __future__ import annotations

import sys
import threading
import unicodedata
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from engine import __version__

if TYPE_CHECKING:
    from engine.app import Serving

# C0, C1 and DEL could move the cursor or worse; format characters (bidi overrides among them) could reorder what is
# read.
HARMFUL: Final = frozenset({"Cc", "Cf", "Cs", "Co"})
KEPT: Final = frozenset("\n\t\u200d")  # U+200D joins emoji

DEMONSTRATION: Final = (
    "The built-in demonstration models (embedded/lexicon, embedded/hacker, embedded/mixed) are tiny: real language\n"
    "models with true probabilities that make up dictionary definitions. They show the engine, they cannot help you."
)


def harmless(text: str) -> str:
    """Text of a model, safe for a terminal: control and bidi characters become U+FFFD."""
    return "".join(
        ch if ch in KEPT or (ch.isascii() and ch.isprintable()) or unicodedata.category(ch) not in HARMFUL else "\ufffd"
        for ch in text
    )


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def announce(serving: Serving) -> None:
    """The lines of a ready engine."""
    address, tier = serving.address, serving.tier
    say(
        f"WF Engine {__version__} · tier {tier.tier} ({tier.reason}) · level {serving.level}",
        f"  dashboard  {address.http}/",
        f"  frames     {address.ws}",
        *(f"  service    {url}  {name}" for name, url in address.services.items()),
    )
    if "embedded" in serving.runtimes.by_name:
        say("", DEMONSTRATION)
    if "synthetic" in serving.runtimes.by_name:
        say("", "SYNTHETIC source is on: the models synthetic/… make up their tokens and their timing.")
    for note in serving.notes:
        say("", f"Note: {note}")
    say("", "Ctrl+C stops the engine.")


def open_browser(url: str) -> None:
    """In a thread of its own: finding a browser can take a while."""
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def print_line(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


class _Line(msgspec.Struct):
    type: str
    payload: dict[str, Any]


@attrs.define(eq=False)
class Answer:
    """The text of a session on stdout as it comes, of a council the chosen answer; one line of figures on stderr at the
    end."""

    _certainty: float | None = None
    _energy: float | None = None
    _texts: dict[str, list[str]] | None = None  # of a council's members, by stream, until one is chosen

    def show(self, line: bytes) -> None:
        event = msgspec.json.decode(line, type=_Line)
        payload = event.payload
        match event.type:
            case "experience.token":
                self._take(payload.get("stream_id", ""), "".join(token["text"] for token in payload["tokens"]))
            case "energy.update":
                self._measure(payload)
            case "experience.session_start" if payload["synthetic"]:
                print("SYNTHETIC: made-up tokens and timing", file=sys.stderr)
            case "council.formed":
                self._texts = {}
                left_out = f", without {', '.join(payload['dropped_models'])}" if payload["dropped_models"] else ""
                print(f"council of {', '.join(payload['models'])}{left_out}", file=sys.stderr)
            case "council.model_error":
                print(f"{payload['model']} left: {payload['error']['message']}", file=sys.stderr)
            case "council.synthesis":
                self._choose(payload)
            case "experience.model" if payload["state"] in ("queued", "loading"):
                reason = f": {payload['reason']}" if payload["reason"] else ""
                print(f"{payload['model']} {payload['state']}{reason}", file=sys.stderr)
            case "experience.session_end":
                self._end(payload)

    def _take(self, stream_id: str, text: str) -> None:
        if self._texts is None:
            sys.stdout.write(harmless(text))
            sys.stdout.flush()
        else:
            self._texts.setdefault(stream_id, []).append(text)

    def _measure(self, payload: dict[str, Any]) -> None:
        """What the last line tells: the figures of the last moment at which somebody spoke."""
        stream, ensemble = payload["streams"][0], payload.get("ensemble")
        if ensemble is not None:
            self._energy = ensemble["energy"]
        elif self._texts is None and stream["state"] != "DRAINED":
            self._energy, self._certainty = stream["energy"], stream["certainty"]

    def _choose(self, payload: dict[str, Any]) -> None:
        sys.stdout.write(harmless("".join((self._texts or {}).get(payload["stream_id"] or "", ()))))
        agreement = _figure("agreement {:.2f}", payload["report"]["agreement"]["mean"])
        words = [f"{payload['model'] or 'nobody'}: {payload['reason']}", payload["method"], agreement]
        print("\n" + " · ".join(word for word in words if word), file=sys.stderr)
        self._texts = {}

    def _end(self, payload: dict[str, Any]) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
        summary = payload["summary"]
        figures = [
            f"{payload['totals']['tokens']} tokens",
            _figure("{:.1f} tok/s", summary["tps_average"]),
            _figure("TTFT {:.0f} ms", payload["ttft_ms"]),
            _figure("E {:.2f}", self._energy),
            _figure("certainty {:.2f}", self._certainty),
            _figure("{:.3f} EU", payload["totals"]["eu"]),
            payload["reason"],
        ]
        print(" · ".join(f for f in figures if f), file=sys.stderr)


def show(body: Any, as_json: bool, lines: Callable[[Any], Iterable[str]]) -> None:
    if as_json:
        print_line(msgspec.json.format(msgspec.json.encode(body), indent=2))
    else:
        say(*(harmless(line) for line in lines(body)))


def models_table(body: dict[str, Any]) -> list[str]:
    rows = [
        (m["name"], m["runtime"], size(m["size_bytes"]), m["state"], m["details"].get("about", ""))
        for m in body["models"]
    ]
    rows += [(c["name"], "council", "", "", f"of {', '.join(c['members'])}") for c in body.get("virtual", ())]
    return table(("NAME", "RUNTIME", "SIZE", "STATE", "ABOUT"), rows)


def ps_table(body: dict[str, Any]) -> list[str]:
    models = [(m["name"], m["state"], size(m["resident_bytes"])) for m in body["models"]]
    sessions = [
        (s["session_id"], s["model"], s["state"], str(s["tokens"]), f"{s['duration_ms'] / 1000:.1f} s")
        for s in body["sessions"]
    ]
    lines = table(("MODEL", "STATE", "MEMORY"), models) if models else ["no model is in memory"]
    if not sessions:
        return [*lines, "", "no session is running"]
    return [*lines, "", *table(("SESSION", "MODEL", "STATE", "TOKENS", "FOR"), sessions)]


def model_lines(model: dict[str, Any]) -> list[str]:
    """Everything `/models` says of one; what is not known stays away."""
    facts = {
        "runtime": model["runtime"],
        "state": model["state"],
        "on disk": None if model["size_bytes"] is None else size(model["size_bytes"]),
        "in memory": size(model["resident_bytes"]) if model["state"] == "ready" else None,
        "modified": model["modified_at"],
        "digest": model["digest"],
        "can do": ", ".join(model["capabilities"]),
        "pace": _aimed("{:.1f} tok/s", model["against_tier"]["tps"]),
        "first token": _aimed("{:.0f} ms", model["against_tier"]["ttft_warm_ms"]),
        "first token, cold": _aimed("{:.0f} ms", model["against_tier"]["ttft_cold_ms"]),
        "last used": model["last_used"],
        **{name.replace("_", " "): _plain(value) for name, value in model["details"].items()},
    }
    width = max(len(name) for name in facts)
    return [model["name"], *(f"  {name.ljust(width)}  {value}" for name, value in facts.items() if value)]


def _aimed(form: str, held: dict[str, Any]) -> str | None:
    """A figure as measured, with the tier's aim where it misses that."""
    aim = f", slower than the tier's {form.format(held['aim'])}" if held["missed"] else ""
    return None if held["measured"] is None else form.format(held["measured"]) + aim


def why_lines(body: dict[str, Any]) -> list[str]:
    """The outlook of a model, and what was decided about it, the newest last."""
    memory, now = body["memory"], body["now"]
    outlook = {"ready": "is in memory", "load": "would be loaded", "wait": "would wait", "refuse": "would be refused"}
    evict = f", and {', '.join(now['evict'])} evicted for it" if now["evict"] else ""
    reason = f": {now['reason']}" if now["reason"] else ""
    kept = ["pinned"] * body["pinned"] + [f"used by {body['leases']}"] * bool(body["leases"])
    if body["cools_for_ms"]:
        kept.append(f"not evicted for another within {body['cools_for_ms'] / 1000:.0f} s")
    return [
        f"{body['model']}: {body['state']}" + (f" ({', '.join(kept)})" if kept else ""),
        f"  asked for now, it {outlook[now['outcome']]}{evict}{reason}",
        f"  takes {size(body['expected_bytes'])}; models have {_used(memory)}",
        *_missed_lines(body["against_tier"]),
        *(f"  {place['position']}. in the queue: {place['reason']}" for place in body["waiting"]),
        "",
        *(_decision_line(decision) for decision in body["decisions"]),
        *([] if body["decisions"] else ["nothing was decided about it yet"]),
    ]


def _used(memory: dict[str, Any]) -> str:
    """Of each memory there is a budget of."""
    ram = f"{size(memory['used_ram_bytes'])} of {size(memory['ram_budget_bytes'])}"
    if not memory["vram_budget_bytes"]:
        return ram
    return f"{ram} main memory and {size(memory['used_vram_bytes'])} of {size(memory['vram_budget_bytes'])} GPU memory"


def _missed_lines(against_tier: dict[str, Any]) -> list[str]:
    """One of each figure that misses what the tier aims at."""
    figures = (
        ("pace", "{:.1f} tok/s", against_tier["tps"]),
        ("first token", "{:.0f} ms", against_tier["ttft_warm_ms"]),
        ("first token with its load", "{:.0f} ms", against_tier["ttft_cold_ms"]),
    )
    return [f"  {name}: {_aimed(form, held)}" for name, form, held in figures if held["missed"]]


def _decision_line(decision: dict[str, Any]) -> str:
    figures = (_numbered(name, value) for name, value in decision["numbers"].items() if value is not None)
    words = [decision["decision"].replace("_", " "), decision["reason"], *figures]
    times = f" ({decision['times']} times)" if decision["times"] > 1 else ""
    return f"{decision['at']}  {' · '.join(word for word in words if word)}{times}"


def _numbered(name: str, value: float) -> str:
    """`load_ms`, 2000.0 as `load 2000 ms`; bytes as sizes; counts as they are."""
    what, _, unit = name.rpartition("_")
    if unit == "bytes":
        return f"{what.replace('_', ' ')} {size(round(value))}"
    return f"{what.replace('_', ' ')} {value:.0f} ms" if unit == "ms" else f"{name.replace('_', ' ')} {value:.0f}"


def loaded_lines(body: dict[str, Any]) -> list[str]:
    load_ms = body["load_time_ms"]
    if load_ms is None:
        took = "can be asked; its runtime does not say what is in memory"
    else:
        took = f"loaded in {load_ms:.0f} ms" if load_ms else "was in memory already"
    return [f"{body['model']} {took}: {size(body['resident_bytes'])}", *(f"evicted {name}" for name in body["evicted"])]


def unloaded_lines(body: dict[str, Any]) -> list[str]:
    return [f"freed {size(body['freed_bytes'])}" if body["freed_bytes"] else "it was not in memory"]


def stopped_lines(body: dict[str, Any]) -> list[str]:
    if not body["stopped"]:
        return ["no session is running"]
    return [
        f"stopped {s['session_id']}: {s['tokens_generated']} tokens"
        + ("" if s["stop_latency_ms"] is None else f", upstream closed in {s['stop_latency_ms']:.1f} ms")
        for s in body["stopped"]
    ]


def check_lines(report: dict[str, Any]) -> list[str]:
    marks = {True: "ok     ", False: "PROBLEM", None: "note   "}
    return [f"{marks[item['ok']]} {item['what']}: {item['found']}" for item in report["checks"]]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def size(count_bytes: int | None) -> str:
    if count_bytes is None:
        return "unknown"
    value, units = float(count_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _plain(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _figure(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
