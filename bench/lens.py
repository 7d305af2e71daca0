"""What the lens costs: the same answers from the model server directly, through a bare relay, and through the lens.

The relay (`lens_relay.py`) moves bytes and looks at none: what another process on the way costs at least. nginx is
measured beside it where it is installed. The clients ask for no log-probabilities. Passive, the lens reads along;
active, it asks the server for them (a record then has 1 KiB, not 120 bytes) and takes them out again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs

from bench.engine import cpu_of, serving
from bench.lens_child import Hop, caller, child, nginx
from bench.lens_client import Job
from bench.lens_leave import leak_rows, phase_rows
from bench.lens_lockstep import Cost, Turns, cost_of, turns
from bench.table import Row, at_least, at_most, median, percentile

STREAMS = 50
TPS = 50
SECONDS = 4
ROUNDS = 3  # of all hops in turn, so that what else runs on the machine meets each of them
FEW = 10
BUSY_TPS = 120  # 6,000 tok/s
FIRSTS = 100
GETTERS = 8
LENS = ("passive", "active")
CORES = {"passive": 0.6, "active": 1.0}


@contextmanager
def hops(tps: float) -> Iterator[dict[str, Hop]]:
    """All ways to a model server that sends by itself, by name."""
    with child("direct", "bench.lens_upstream", str(tps)) as direct, ways_to(direct) as found:
        yield found


@contextmanager
def ways_to(direct: Hop) -> Iterator[dict[str, Hop]]:
    with ExitStack() as stack:
        relay = stack.enter_context(child("relay", "bench.lens_relay", str(direct.port)))
        env = {
            "WF_OLLAMA__ENABLED": "true",
            "WF_OLLAMA__URL": f"http://127.0.0.1:{direct.port}",
            "WF_EMBEDDED__ENABLED": "false",
        }
        engine = stack.enter_context(serving(**env))
        found = [direct, relay, stack.enter_context(nginx(free_port(), direct.port))]
        found += [Hop(mode, engine.port(), engine.process.pid, (("x-wf-lens", mode),)) for mode in LENS]
        yield {hop.name: hop for hop in found if hop is not None}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@attrs.define
class Seen:
    """What the clients of one hop saw in all rounds, and what its process used meanwhile."""

    ages_ms: list[float] = attrs.field(factory=list)
    jitter_ms: list[float] = attrs.field(factory=list)
    first_ms: list[float] = attrs.field(factory=list)
    items: int = 0  # tokens, or answers
    seconds: float = 0.0
    cpu_s: float = 0.0

    def add(self, told: dict[str, Any], cpu_s: float) -> None:
        self.ages_ms += told.get("ages_ms", ())
        self.jitter_ms += told.get("jitter_ms", ())
        self.first_ms += told.get("first_ms", ())
        self.items += told.get("tokens", 0) + told.get("answers", 0)
        self.seconds += told.get("seconds", 0.0)
        self.cpu_s += cpu_s

    @property
    def per_s(self) -> float:
        return self.items / self.seconds

    @property
    def cores(self) -> float:
        return self.cpu_s / self.seconds

    @property
    def each_us(self) -> float:
        return self.cpu_s / self.items * 1e6


def seen_by(ways: dict[str, Hop], kind: str, rounds: int = ROUNDS, **job: Any) -> dict[str, Seen]:
    """The same job on every hop, in turn."""
    seen = {name: Seen() for name in ways}
    for _ in range(rounds):
        for name, hop in ways.items():
            with caller(Job(kind, hop.port, headers=hop.headers, **job)) as done:
                used = cpu_of(hop.pid) if hop.pid else 0.0
                told = done()
                seen[name].add(told, (cpu_of(hop.pid) if hop.pid else 0.0) - used)
    return seen


def measure() -> list[Row]:
    with hops(TPS) as ways:
        paced = seen_by(ways, "streams", clients=STREAMS, seconds=SECONDS)
        few = seen_by(ways, "streams", rounds=2, clients=FEW, seconds=SECONDS)
        first = seen_by(ways, "first", times=FIRSTS)
    with hops(BUSY_TPS) as ways:
        busy = seen_by(ways, "streams", clients=STREAMS, seconds=SECONDS)
    with hops(TPS) as ways:
        plain = {name: hop for name, hop in ways.items() if name != "passive"}  # there is no mode in these
        gets = {
            path: seen_by(plain, "get", rounds=2, clients=GETTERS, seconds=3, path=path)
            for path in ("/api/version", "/api/tags")
        }
    with turns() as server, ways_to(Hop("direct", server.port)) as ways:
        single = single_costs(ways, server)
    rows = [
        *pace_rows(paced, STREAMS),
        *paced_cpu_rows(paced),
        *pace_rows(few, FEW),
        *first_rows(first),
        *busy_rows(busy),
        *single_rows(single),
    ]
    for path, seen in gets.items():
        rows += get_rows(path, seen)
    return [*rows, *phase_rows(), *leak_rows()]


def limits(values: dict[str, float]) -> dict[str, Any]:
    """The relay beside it as the limit."""
    return {"limit": values["relay"], "limit_is": "a bare relay"}


def pace_rows(seen: dict[str, Seen], count: int) -> list[Row]:
    what = f"{count} × {TPS} tok/s"
    rows = []
    for title, field, percent, most in (
        ("latency per token", "ages_ms", 50, 1.0),
        ("latency per token", "ages_ms", 99, 5.0),
        ("inter-token jitter", "jitter_ms", 99, 2.0),
    ):
        found = {name: percentile(getattr(one, field), percent) for name, one in seen.items()}
        rows += added_rows(what, f"{title} p{percent}", found, most)
    return rows


def first_rows(seen: dict[str, Seen]) -> list[Row]:
    return added_rows("alone", "time to first token p50", {name: median(one.first_ms) for name, one in seen.items()}, 2)


def added_rows(what: str, title: str, found: dict[str, float], most: float) -> list[Row]:
    """How much more than a direct call each hop's figure is, in ms; the lens must add no more than `most`."""
    direct = {"limit": found["direct"], "limit_is": "all of a direct call"}
    rows = []
    for name, value in found.items():
        line, more = f"{what}, {name}: added {title}", value - found["direct"]
        if name in LENS:
            rows.append(at_most(line, more, "ms", most, **direct))
        elif name != "direct":
            rows.append(Row(line, more, "ms", **direct))
    return rows


def busy_rows(seen: dict[str, Seen]) -> list[Row]:
    """At the pace that is promised, and a bit: what comes through, and at which share of a core."""
    what = f"{STREAMS} × {BUSY_TPS} tok/s"
    each = {name: one.each_us for name, one in seen.items()}
    rows = []
    for mode in LENS:
        rows += [
            at_least(f"{what}, {mode}: tokens per second", seen[mode].per_s, "tok/s", 5000,
                     limit=seen["direct"].per_s, limit_is="a direct call"),
            at_most(f"{what}, {mode}: CPU", seen[mode].cores, "cores", CORES[mode],
                    limit=seen["relay"].cores, limit_is="a bare relay"),
            Row(f"{what}, {mode}: CPU per token", each[mode], "µs", **limits(each)),
        ]  # fmt: skip
    if "nginx" in seen:
        rows.append(Row(f"{what}, nginx: CPU per token", each["nginx"], "µs", **limits(each)))
    return rows


def paced_cpu_rows(seen: dict[str, Seen]) -> list[Row]:
    each = {name: one.each_us for name, one in seen.items()}
    names = [name for name in seen if name not in ("direct", "relay")]
    return [Row(f"{STREAMS} × {TPS} tok/s, {name}: CPU per token", each[name], "µs", **limits(each)) for name in names]


def single_costs(ways: dict[str, Hop], server: Turns) -> dict[str, Cost]:
    """The cheapest round of each hop: where a round is interrupted, frames are composed meanwhile."""
    found: dict[str, Cost] = {}
    for _ in range(ROUNDS):
        for name, hop in ways.items():
            if hop.pid is not None:
                cost = cost_of(hop, server)
                found[name] = min(cost, found.get(name, cost), key=lambda one: one.cpu_us)
    return found


def single_rows(costs: dict[str, Cost]) -> list[Row]:
    each = {name: cost.cpu_us for name, cost in costs.items()}
    names = [name for name in each if name != "relay"]
    return [Row(f"one token at a time, {name}: CPU per token", each[name], "µs", **limits(each)) for name in names]


def get_rows(path: str, seen: dict[str, Seen]) -> list[Row]:
    lens, direct = seen["active"], seen["direct"]
    rows = [
        at_least(f"GET {path}: requests per second", lens.per_s, "/s", 1500,
                 limit=direct.per_s, limit_is="a direct call"),
        Row(f"GET {path}: CPU per request", lens.each_us, "µs", seen["relay"].each_us, "a bare relay"),
    ]  # fmt: skip
    if "nginx" in seen:
        rows.append(
            Row(f"GET {path}, nginx: requests per second", seen["nginx"].per_s, "/s", direct.per_s, "a direct call")
        )
    return rows
