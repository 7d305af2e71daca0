"""The picture of `wf top` as lines of text, for rich."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from engine.console import harmless, size
from engine.top_view import NONE, CouncilPicture, Picture, SessionPicture, Stream, bar, figure

if TYPE_CHECKING:
    from rich.text import Text

KEY_LINE: Final = "q quit · ↑↓ select · s stop the selected session"
GOLD, VIOLET, DANGER, MUTED, BOLD = "#FFD479", "#B7A4FF", "#FF7A85", "grey62", "bold"
MODEL_LINES: Final = 4


def drawn(
    picture: Picture, width: int, height: int | None, *, selected: str | None = None, notes: tuple[str, ...] = ()
) -> list[Text]:
    """Lines for a terminal of `width` cells, at most `height` of them; then the selected session is among them.

    `notes` stand above the keys, which are told only where there is a `height`. Needs rich.
    """
    head = [_engine(picture), *_models(picture, None if height is None else MODEL_LINES)]
    foot = _error(picture) + [_line((note, GOLD)) for note in notes]
    foot += [] if height is None else [_line((KEY_LINE, MUTED))]
    groups = [_session(session, width, session.session_id == selected) for session in picture.sessions]
    room = None if height is None else max(0, height - len(head) - len(foot) - 2)
    place = next((i for i, session in enumerate(picture.sessions) if session.session_id == selected), 0)
    body = _fitting(groups, room, place) or [_line(("Nothing is running.", MUTED))]
    lines = [*head, _line(("", "")), _columns(width), *body, *foot]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines if height is None else lines[: height - len(foot)] + foot if len(lines) > height else lines


def _fitting(groups: list[list[Text]], room: int | None, place: int) -> list[Text]:
    """As many whole sessions as there is room for, from the first one that leaves the selected one in sight."""
    if room is None or sum(map(len, groups)) <= room:
        return [line for group in groups for line in group]
    first = 0
    while first < place and sum(map(len, groups[first : place + 1])) > room - 1:
        first += 1
    taken: list[Text] = []
    for number, group in enumerate(groups[first:], first):
        if taken and len(taken) + len(group) > room - 1:
            break
        taken, last = [*taken, *group], number
    hidden = len(groups) - (last - first + 1)
    return [*taken[: room - 1], _line((f"… {hidden} more" if hidden else "…", MUTED))]


def _engine(picture: Picture) -> Text:
    engine = picture.engine
    parts = [
        (f"WF Engine {engine.version or NONE}", BOLD),
        (f"  tier {engine.tier or NONE}  {figure(engine.fps, '.1f')} fps", ""),
        (f"  late {figure(engine.lateness_ms, '.1f')} ms", ""),
        (f"  missed {figure(engine.missed, 'd')}", ""),
        (f"  degrade {figure(engine.degrade, 'd')}", GOLD if engine.degrade else ""),
        (f"  out {NONE if engine.bytes_out is None else size(engine.bytes_out)}", GOLD if engine.bytes_out else ""),
    ]
    lost = {"sessions forgotten": picture.forgotten, "bad messages": picture.bad}
    return _line(*parts, *((f"  {count} {what}", DANGER) for what, count in lost.items() if count))


def _models(picture: Picture, most: int | None) -> list[Text]:
    if not picture.models:
        return [_line((f"models in memory  {NONE if picture.models is None else 'none'}", MUTED))]
    shown = picture.models if most is None or len(picture.models) <= most else picture.models[: most - 1]
    lines = []
    for model in shown:
        done = "" if model.progress is None else f" {model.progress:.0%}"
        held = size(model.resident_bytes) if model.resident_bytes else NONE
        lines.append(_line(("model ", MUTED), (f"{model.name}  {model.state}{done}  {held}  {model.reason or ''}", "")))
    hidden = len(picture.models) - len(shown)
    return lines + [_line((f"… {hidden} more models", MUTED))] * bool(hidden)


def _error(picture: Picture) -> list[Text]:
    if (error := picture.last_error) is None:
        return []
    whose = f"{error.session_id[:8]}  " if error.session_id else ""
    return [_line((f"last error at {error.at_ms / 1000:.1f} s  {whose}{error.code}: {error.message}", DANGER))]


def _session(session: SessionPicture, width: int, selected: bool) -> list[Text]:
    head = _line(
        (f"{'▸' if selected else ' '} {session.session_id[:8]}", BOLD),
        ("  SYNTHETIC" if session.synthetic else "", f"bold {GOLD}"),
        (f"  {session.ended or 'running'}  from {session.origin or NONE}", ""),
        (f"  {figure(session.tokens, 'd')} tokens  TTFT {figure(session.ttft_ms, '.0f')} ms", ""),
    )
    council = [_council(session.council)] if session.council else []
    return [head, *council, *(_stream(stream, width) for stream in session.streams)]


def _council(council: CouncilPicture) -> Text:
    reason = f" ({council.di_reason})" if council.di_reason else ""
    return _line(
        (f"  council  E {figure(council.energy, '.2f')}", ""),
        (f"  DI {figure(council.di, '.2f')}{reason}", VIOLET),
        (f"  gain {figure(council.gain, '+.3f')}  lag {figure(council.sync_latency_ms, '.0f')} ms", MUTED),
        (f"  {council.cue}" if council.cue else "", f"bold {GOLD if council.cue == 'RESONANCE' else VIOLET}"),
    )


def _widths(width: int) -> tuple[int, int]:
    """Cells for the model's name and for the bar of E; the figures take 54."""
    rest = max(16, width - 54)
    bar = min(24, rest // 3)
    return rest - bar, bar


def _row(width: int, model: str, state: str, bar: str, figures: tuple[str, ...]) -> str:
    from rich.cells import set_cell_size

    name, cells = _widths(width)
    row = f"  {set_cell_size(model, name)} {set_cell_size(state, 11)} {set_cell_size(bar, cells)}"
    return row + "".join(figure.rjust(columns) for figure, columns in zip(figures, (5, 7, 7, 6, 7, 7), strict=True))


def _columns(width: int) -> Text:
    return _line((_row(width, "model", "state", "energy", ("E", "tok/s", "Δt ms", "cert", "tokens", "TTFT")), MUTED))


def _stream(stream: Stream, width: int) -> Text:
    state = stream.state or NONE
    if stream.stall and stream.silence_ms is not None:
        state = f"stall {stream.silence_ms / 1000:.1f} s"
    figures = (
        figure(stream.energy, ".2f"), figure(stream.tps, ".1f"), figure(stream.delta_ms, ".0f"),
        figure(stream.certainty, ".2f"), figure(stream.tokens, "d"), figure(stream.ttft_ms, ".0f"),
    )  # fmt: skip
    row = _row(width, _plain(stream.model), _plain(state), bar(stream.energy, _widths(width)[1]), figures)
    return _line((row, DANGER if stream.stall else ""))


def _plain(text: str) -> str:
    """In one line, and no command for the terminal."""
    return harmless(text).replace("\n", " ").replace("\t", " ")


def _line(*parts: tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*((_plain(words), style) for words, style in parts), no_wrap=True)


def painted(lines: list[Text], width: int, *, colours: bool) -> str:
    """The bytes of a terminal for these lines, as text; without `colours` it is plain text."""
    from rich.console import Console

    file = io.StringIO()
    out = Console(file=file, width=width, force_terminal=colours, color_system="auto" if colours else None)
    for line in lines:
        out.print(line, no_wrap=True, crop=True, highlight=False)
    return file.getvalue()
