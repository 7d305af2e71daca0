"""A peer on the page's WebSocket that says exactly what a test wants, and a council whose every number is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final

from playwright.sync_api import Page, WebSocketRoute

# An engine that has nothing to tell says so every second; a line that is silent for 5 s is given up by the page.
ALIVE: Final = """(() => {
  const Routed = window.WebSocket;
  window.WebSocket = class extends Routed {
    constructor(...words) {
      super(...words);
      const data = '{"v":"1.0","frame":null,"events":[]}';
      const beat = () => this.readyState === Routed.OPEN && this.dispatchEvent(new MessageEvent("message", { data }));
      this.addEventListener("message", () => setInterval(beat, 1_000), { once: true });
    }
  };
})()"""
PARAMS: Final = {
    "tier": "mid",
    "window_ms": 1000.0,
    "tps_max": 20.0,
    "stall_ms": 400.0,
    "ceil_ms": 1500.0,
    "alpha": 0.35,
    "weight_velocity": 0.5,
    "weight_certainty": 0.3,
    "weight_flow": 0.2,
    "weight_velocity_no_logprobs": 0.7,
    "weight_flow_no_logprobs": 0.3,
    "half_life_ms": 700.0,
}
SESSION: Final = "c0ffee00c0ffee00c0ffee00c0ffee00"
FIRST_FRAME: Final = 100
FRAME_MS: Final = 1000 / 60
NAMES: Final = ("llama3.1:8b", "mistral:7b", "qwen2.5:7b", "gemma2:2b", "phi3.5:3.8b", "smollm2:1.7b")
WORDS: Final = (
    "A lighthouse is a tower with a lamp at its top , built where a coast or a shoal is dangerous ; "
    "its light tells sailors where they are and where they must not go ."
).split()

Event = dict[str, Any]
Message = dict[str, Any]


def hello() -> Message:
    system = [
        {"type": "system.hello", "session_id": None, "payload": {"boot": "b", "version": "0.1.0"}},
        {"type": "system.state_snapshot", "session_id": None, "payload": {"sessions": []}},
    ]
    return {"v": "1.0", "frame": None, "ts_ms": 0, "mono_ms": 0, "perf": None, "events": system}


def event(type_: str, session: str = SESSION, **payload: Any) -> Event:
    return {"type": type_, "session_id": session, "payload": payload}


def frame(number: int, *events: Event) -> Message:
    perf = {"lateness_ms": 0.4, "frame_ms": 0.1, "queue_depth": 0, "degrade": 0, "merged": 0, "dropped_visual": 0}
    mono_ms = (number - FIRST_FRAME) * FRAME_MS
    return {"v": "1.0", "frame": number, "ts_ms": 1_795_000_000_000 + mono_ms, "mono_ms": mono_ms, "perf": perf} | {
        "events": list(events)
    }


def peer(page: Page, messages: Iterable[Message] = ()) -> list[WebSocketRoute]:
    """The page's engine says hello and then `messages`, all at once, and is alive from then on. Returns the links that
    the page opens, for more."""
    links: list[WebSocketRoute] = []
    said = [hello(), *messages]

    def speak(link: WebSocketRoute) -> None:
        links.append(link)
        if len(links) == 1:
            for message in said:
                link.send(json.dumps(message))

    page.route_web_socket("**/ws*", speak)
    page.add_init_script(ALIVE)
    return links


def stream_id(slot: int) -> str:
    return f"{SESSION}:{slot}"


def reading(slot: int, **values: Any) -> dict[str, Any]:
    """A stream in `energy.update`."""
    usual = {"stream_id": stream_id(slot), "model": NAMES[slot], "state": "FLOWING", "energy": 0.5, "energy_base": 0.5}
    signals = {"tps": 30.0, "delta_ms": 33.0, "silence_ms": 5.0, "certainty": 0.6, "entropy_bits": 1.2}
    rest = {"tail_mass": 0.05, "stall": False, "burst": False, "throttled": False, "tokens": 0, "queue_depth": 0}
    return usual | signals | rest | values


def energy(*streams: dict[str, Any], ensemble: dict[str, Any] | None = None) -> Event:
    tokens = sum(stream["tokens"] for stream in streams)
    totals = {"tokens": tokens, "eu_frame": 0.1, "eu_total": 10.0, "eu_rate": 2.0}
    return event("energy.update", **totals, streams=list(streams), ensemble=ensemble)


def together(value: float = 0.6, **values: Any) -> dict[str, Any]:
    """`energy.update.ensemble`."""
    usual = {"energy": value, "modulated": value + 0.05, "gain": 0.05, "di": 0.3, "di_method": "jsd_topk"}
    rest = {"di_stale": False, "mixture_uncertainty": 0.4, "sync_latency_ms": 12.0, "weights": {}, "reason": None}
    return usual | rest | values


def token(position: int, text: str, **values: Any) -> dict[str, Any]:
    usual = {"text": text, "kind": "answer", "position": position, "offset": 0, "t_us": 1000 * position}
    signals = {"delta_ms": 33.0 if position else None, "logprob": -0.5, "energy": 0.5, "energy_base": 0.5}
    return usual | signals | {"coalesced": False, "throttled": False} | values


def spoken(slot: int, *tokens: dict[str, Any]) -> Event:
    return event("experience.token", stream_id=stream_id(slot), model=NAMES[slot], tokens=list(tokens))


def started(count: int, **values: Any) -> list[Event]:
    """What opens a council of `count`."""
    streams = [{"stream_id": stream_id(slot), "model": NAMES[slot], "session_id": SESSION} for slot in range(count)]
    models = list(NAMES[:count])
    members = [{"stream_id": stream["stream_id"], "model": stream["model"]} for stream in streams]
    names = {"models": models, "members": members, "dropped_models": [], "plan": "together", "waves": []}
    formed = event("council.formed", council_id=SESSION, weights={}, method="consensus", reason=None, **names)
    about = {"mode": "council", "models": models, "dropped_models": [], "parameters": {}, "energy_params": PARAMS}
    rest = {"origin": "dashboard", "synthetic": False, "start_us": 0, "streams": streams}
    return [formed, event("experience.session_start", **about | rest | values)]


def council(count: int, seconds: float, words: tuple[str, ...] = tuple(WORDS)) -> list[Message]:
    """A council of `count` that speaks for `seconds`: pace, certainty, a stall, agreement, a resonance, by formula."""
    frames: list[Message] = []
    positions = [0] * count
    energies = [0.0] * count
    last = [0.0] * count
    due = [250.0 + 60 * slot for slot in range(count)]
    resonant = False
    for n in range(int(seconds * 60)):
        now = n * FRAME_MS
        events: list[Event] = started(count) if n == 0 else []
        readings = []
        agreement = 0.5 + 0.42 * math.sin(now / 1900 - 1.1)
        for slot in range(count):
            arrived = []
            bits = max(0.05, 2.4 - 2.2 * agreement + 0.7 * math.sin(now / 310 + slot))
            while due[slot] <= now:
                delta = due[slot] - last[slot] if positions[slot] else None
                base = min(1.0, max(0.05, 0.75 - 0.16 * bits + 0.15 * math.sin(now / 700 + slot)))
                energies[slot] = 0.35 * base + 0.65 * energies[slot]
                word = words[(positions[slot] + 3 * slot) % len(words)]
                top = [{"token": f" {word}", "logprob": -0.45 * bits}, {"token": " other", "logprob": -1.2 - bits}]
                values = {"t_us": int(due[slot] * 1000), "delta_ms": delta, "logprob": -0.45 * bits, "top": top}
                text = word if word in ".,;" or not positions[slot] else f" {word}"
                arrived.append(token(positions[slot], text, energy=energies[slot], energy_base=base, **values))
                positions[slot] += 1
                last[slot] = due[slot]
                silent = 900 if slot == 1 and positions[slot] == 60 else 0
                due[slot] += 22 + 5 * slot + 9 * math.sin(now / 180 + slot) + silent
            if arrived:
                events.append(spoken(slot, *arrived))
            silence = now - last[slot]
            stall = silence > PARAMS["stall_ms"] and positions[slot] > 0
            shown = energies[slot] * (0.5 ** (max(0.0, silence - 400) / 700) if stall else 1)
            state = "STALLING" if stall else "FLOWING" if positions[slot] else "CHARGING"
            known = {"certainty": 1 - bits / 3, "entropy_bits": bits} if positions[slot] else {"certainty": None}
            pace = {"tps": 1000 / (22 + 5 * slot), "silence_ms": silence, "stall": stall, "tokens": positions[slot]}
            readings.append(reading(slot, energy=shown, state=state, **pace, **known))
        weights = {stream_id(slot): 1.0 + 0.2 * ((slot % 3) - 1) for slot in range(count)}
        weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        mean = sum(weights[stream_id(slot)] * readings[slot]["energy"] for slot in range(count))
        measured = {"di": 1 - agreement, "sync_latency_ms": 60 * (1 - agreement), "weights": weights}
        if agreement > 0.84 and not resonant and n > 30:
            resonant = True
            events.append(
                event("council.resonance", phase="start", strength=0.9, coherence=agreement, duration_ms=None)
            )
        if agreement < 0.7 and resonant:
            resonant = False
            events.append(event("council.resonance", phase="end", strength=0.9, coherence=0.7, duration_ms=2400))
        if n % 60 == 30:
            pattern = "constructive" if agreement > 0.7 else "destructive" if agreement < 0.3 else "neutral"
            cue = {"intensity": 0.5, "coherence": agreement, "correlation": None}
            events.append(event("council.interference", pattern=pattern, **cue))
            pairs = [
                {"a": stream_id(a), "b": stream_id(b), "agreement": max(0.0, agreement - 0.03 * abs(a - b))}
                for a in range(count)
                for b in range(a)
            ]
            events.append(event("council.ensemble", energy=mean, di=1 - agreement, agreement=pairs))
        gain = 0.25 * mean * (2 * agreement - 1)
        ensemble = together(mean, gain=gain, modulated=mean + gain, **measured)
        events.append(energy(*readings, ensemble=ensemble if any(positions) else None))
        frames.append(frame(FIRST_FRAME + n, *events))
    return frames
