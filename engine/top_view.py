"""What `wf top` draws, with rich. Numbers are the engine's own; an unknown one is a dash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.console import harmless
from engine.top_state import Session, Stream, TopState

GLYPHS: Final = "●▲■◆✚★"
COLOURS: Final = ("#74B6FF", "#CF9430", "#66EBB0", "#F6EC72", "#EE6FC0", "#DE6350")
CELLS: Final = "▁▂▃▄▅▆▇█"
GOLD, VIOLET, DANGER, MUTED = "#FFD479", "#B7A4FF", "#FF7A85", "grey62"
NONE: Final = "—"
KEYS: Final = "q quit · Esc stop this session · 1–6 one stream, 0 all · p pause"


def picture(state: TopState, *, solo: int = -1, paused: bool = False, note: str = "") -> RenderableType:
    """The whole screen; `solo` is the place of the only stream to show, −1 for all."""
    session = state.shown
    parts: list[RenderableType] = [_head(state)]
    if session is None:
        parts.append(Text("Nothing is running. Ask something with `wf run`, on the page or from any program.", MUTED))
    else:
        parts += [_about(session), _streams(session, solo)]
    if state.events:
        parts.append(Panel(Group(*_events(state)), title="events", title_align="left", border_style="grey35"))
    parts.append(Text(("PAUSED · " if paused else "") + (f"{harmless(note)} · " if note else "") + KEYS, MUTED))
    return Group(*parts)


def _head(state: TopState) -> Text:
    head = Text.assemble(("WF Engine ", "bold"), state.version, (f"  tier {state.tier or NONE}", MUTED))
    head.append(f"  {state.running} running  frame {max(state.frame, 0)}  missed {state.missed}", MUTED)
    if state.perf is not None and state.perf.degrade:
        head.append(f"  degraded, level {state.perf.degrade}", GOLD)
    return head


def _about(session: Session) -> Text:
    line = Text.assemble(f"session {session.id[:8]}", (f"  from {session.origin or NONE}", MUTED))
    if session.synthetic:
        line.append("  SYNTHETIC", f"bold {GOLD}")
    if session.ended is not None:
        line.append(f"  {session.ended}", MUTED)
    if (ensemble := session.ensemble) is not None:
        line.append(f"  E ensemble {ensemble.energy:.2f}")
        line.append(f"  DI {figure(ensemble.di, '.2f')}", VIOLET)
        line.append(f"  gain {figure(ensemble.gain, '+.3f')}  lag {figure(ensemble.sync_latency_ms, '.0f')} ms", MUTED)
    if session.cue:
        line.append(f"  {session.cue}", f"bold {GOLD if session.cue == 'RESONANCE' else VIOLET}")
    return line


def _streams(session: Session, solo: int) -> Table:
    table = Table(box=None, padding=(0, 1), header_style=MUTED, expand=False)
    table.add_column("model", no_wrap=True)
    for name in ("E", "", "tok/s", "TTFT ms", "Δt ms", "H bit", "tokens"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for place, (id_, stream) in enumerate(session.streams.items()):
        if solo < 0 or solo == place:
            table.add_row(*_row(session, place, id_, stream))
    return table


def _row(session: Session, place: int, id_: str, stream: Stream) -> Iterable[Text]:
    colour = COLOURS[place % len(COLOURS)]
    silent = f" {stream.silence_ms:.0f} ms" if stream.stall else ""
    yield Text(f"{GLYPHS[place % len(GLYPHS)]} {harmless(stream.model)}", colour)
    yield Text(figure(stream.energy, ".2f"))
    yield Text(trace(session.traces.get(id_, ())), colour)
    yield Text(figure(stream.tps if stream.tokens > 1 else None, ".1f"))
    yield Text(figure(session.ttft_ms.get(id_), ".0f"))
    yield Text(figure(stream.delta_ms, ".1f"))
    yield Text(figure(stream.entropy_bits, ".2f"))
    yield Text(str(stream.tokens))
    yield Text(stream.state.lower() + silent, DANGER if stream.stall else MUTED)


def _events(state: TopState) -> Iterable[Text]:
    for at_ms, words in state.events:
        yield Text(f"{at_ms / 1000:9.3f} s  {harmless(words)}", MUTED, no_wrap=True, overflow="ellipsis")


def trace(energies: Iterable[float | None]) -> str:
    """E over time, a cell each; a gap where it was not measured."""
    top = len(CELLS) - 1
    return "".join(" " if e is None else CELLS[round(min(1.0, max(0.0, e)) * top)] for e in energies)


def figure(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
