"""The table of signals and visuals in the drawing calls, part one: what is painted of a stream over time.

A strike is a token, its height E_base, its jag the entropy, its light the probability; the line is E, a hatch is a
silence past the stall line, a dotted mark the first token, a blank a frame that never came. Nothing else has ink.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Address
from tests.browser.recording import bare_page, drawn, on, points
from tests.browser.scripted import (
    FIRST_FRAME,
    FRAME_MS,
    PARAMS,
    council,
    energy,
    frame,
    reading,
    spoken,
    started,
    together,
    token,
)

pytestmark = pytest.mark.browser

Message = dict[str, Any]
FOOT_PX = (1, 3)  # the mark below a strike


@pytest.fixture(scope="module")
def modules(browser: Browser, engine: Address) -> Iterator[Page]:
    with bare_page(browser, engine) as page:
        yield page


def told(count: int, first: list[Any], *rest: list[Any]) -> list[Message]:
    """A session of `count` streams, frame by frame; each frame is a list of events."""
    frames = [[*started(count), *first], *rest]
    return [frame(FIRST_FRAME + n, *events) for n, events in enumerate(frames)]


def one_token(**values: Any) -> list[Message]:
    """Two streams; the first says one token in its first frame. `entropy_bits` goes into its reading."""
    bits = values.pop("entropy_bits", 1.5)
    readings = reading(0, tokens=1, energy=0.0, entropy_bits=bits), reading(1, energy=0.0)
    return told(2, [spoken(0, token(0, "x", **values)), energy(*readings, ensemble=together())])


def strikes(found: dict[str, Any], slot: int = 0) -> list[dict[str, Any]]:
    """The strokes that stand on the bottom of a lane and rise from it."""
    bottom = found["plot"]["lanes"][slot]["y1"]
    return [
        call
        for call in on(found, "history", "stroke", stroke=f"m{slot + 1}")
        if points(call)[0][1] == bottom and call["width"] == 1
    ]


def tall(found: dict[str, Any], slot: int = 0) -> float:
    lane = found["plot"]["lanes"][slot]
    return lane["y1"] - lane["y0"]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_strike_a_foot_and_a_bolt_for_each_token_and_for_nothing_else(modules: Page, count: int) -> None:
    messages = council(count, 2)
    found = drawn(modules, messages)
    arrived = [0] * count
    for message in messages:
        for event in message["events"]:
            if event["type"] == "experience.token":
                arrived[int(event["payload"]["stream_id"][-1])] += len(event["payload"]["tokens"])
    assert [len(strikes(found, slot)) for slot in range(count)] == arrived
    feet = [call for call in on(found, "history", "rect") if tuple(call["at"][2:]) == FOOT_PX]
    assert len(feet) == sum(arrived)
    assert found["strikes"] == arrived
    assert found["thrown"] == sum(arrived)


@pytest.mark.parametrize("base", [0.0, 0.25, 0.6, 1.0])
def test_the_height_of_a_strike_is_e_base(modules: Page, base: float) -> None:
    found = drawn(modules, one_token(energy_base=base))
    (struck,) = strikes(found)
    assert points(struck)[0][1] - points(struck)[-1][1] == pytest.approx(base * tall(found))


def test_a_token_whose_e_base_was_not_measured_has_only_its_foot(modules: Page) -> None:
    (struck,) = strikes(found := drawn(modules, one_token(energy_base=None, throttled=True)))
    assert points(struck)[0] == points(struck)[-1]
    assert len([call for call in on(found, "history", "rect") if tuple(call["at"][2:]) == FOOT_PX]) == 1


def middle_off(call: dict[str, Any]) -> float:
    """How far the middle corner of a jagged line is from the middle of its ends."""
    corners = points(call)
    middle = corners[len(corners) // 2]
    (ax, ay), (bx, by) = corners[0], corners[-1]
    return ((middle[0] - (ax + bx) / 2) ** 2 + (middle[1] - (ay + by) / 2) ** 2) ** 0.5


def bend(page: Page, position: int) -> float:
    """What the first bend of a token's line is multiplied with, −½ to ½: fixed by its position alone."""
    script = "async at => { const { bend } = await import('/static/shapes.js'); return bend(at, 1) - 0.5; }"
    return page.evaluate(script, position)


@pytest.mark.parametrize("bits", [0.0, 0.8, 2.5, 3.3])
def test_the_jag_is_the_entropy(modules: Page, bits: float) -> None:
    found = drawn(modules, one_token(entropy_bits=bits, energy_base=0.9))
    (struck,) = strikes(found)
    assert middle_off(struck) == pytest.approx(abs(bend(modules, 0)) * (1 + 2.1 * bits))


def test_of_unknown_entropy_a_strike_is_straight(modules: Page) -> None:
    (struck,) = strikes(drawn(modules, one_token(entropy_bits=None)))
    assert len(points(struck)) == 2
    assert points(struck)[0][0] == points(struck)[1][0]


@pytest.mark.parametrize(("logprob", "p"), [(0.0, 1.0), (-0.6931471805599453, 0.5), (-4.605170185988091, 0.01)])
def test_the_light_of_a_strike_is_its_probability(modules: Page, logprob: float, p: float) -> None:
    (struck,) = strikes(drawn(modules, one_token(logprob=logprob)))
    assert struck["alpha"] == pytest.approx(0.12 + 0.46 * p)
    assert struck["dash"] == []


def test_of_unknown_probability_a_strike_is_of_one_constant_light_and_broken_and_it_is_said(modules: Page) -> None:
    lit = []
    for base in (0.3, 0.9):
        (struck,) = strikes(drawn(modules, one_token(logprob=None, entropy_bits=None, energy_base=base)))
        lit.append((struck["alpha"], struck["dash"], len(points(struck))))
    assert lit == [(0.35, [3, 3], 2)] * 2
    alone = told(1, [spoken(0, token(0, "x", logprob=None)), energy(reading(0, tokens=1))])
    assert on(drawn(modules, alone), "scene", "text", text="p unknown")
    known = told(1, [spoken(0, token(0, "x", logprob=-0.1)), energy(reading(0, tokens=1))])
    assert not on(drawn(modules, known), "scene", "text", text="p unknown")


# ── energy over time ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_line_is_e_of_each_frame_and_nothing_is_smoothed(modules: Page) -> None:
    levels = [0.1, 0.9, 0.2, 0.2, 1.0, 0.0, 0.55]
    frames = [[energy(reading(0, energy=level), reading(1), ensemble=together())] for level in levels]
    found = drawn(modules, told(2, *frames))
    bottom = found["plot"]["lanes"][0]["y1"]
    lines = [points(call) for call in on(found, "history", "stroke", stroke="m1", width=1.8)]
    heights = [(bottom - line[1][1]) / tall(found) for line in lines]
    assert heights == pytest.approx(levels)
    assert [line[0][1] for line in lines[1:]] == pytest.approx([line[1][1] for line in lines[:-1]])  # without a break
    x = [line[1][0] for line in lines]
    assert [later - earlier for earlier, later in pairwise(x)] == [1] * (len(levels) - 1)
    needle = [call["path"][0] for call in on(found, "scene", "fill", fill="m1") if call["path"][0][0] == "A"]
    assert (bottom - needle[0][2]) / tall(found) == pytest.approx(levels[-1])  # the dot at "now"


@pytest.mark.parametrize("column_px", [1, 2, 4])
def test_a_silence_past_the_stall_line_is_hatched_for_as_long_as_it_lasts(modules: Page, column_px: int) -> None:
    """No frame before the line, every frame behind it: the width is the time beyond it."""
    silences = [n * FRAME_MS for n in range(60)]
    frames = [
        [energy(reading(0, tokens=1, silence_ms=ms, stall=ms > PARAMS["stall_ms"]), reading(1), ensemble=together())]
        for ms in silences
    ]
    found = drawn(modules, told(2, *frames), columnPx=column_px)
    hatched = {call["at"][0] for call in on(found, "history", "rect", fill="danger")}
    beyond_ms = silences[-1] - PARAMS["stall_ms"]
    assert len(hatched) * FRAME_MS == pytest.approx(beyond_ms, abs=FRAME_MS)
    assert found["hatched"] == [len(hatched), 0]
    assert {call["at"][2] for call in on(found, "history", "rect", fill="danger")} == {column_px}
    assert max(hatched) - min(hatched) == (len(hatched) - 1) * column_px  # side by side
    label = [call["text"] for call in on(found, "scene", "text", fill="danger")]
    assert label == [f"stall {round(silences[-1])} ms"]  # the whole silence, as the engine measured it


def test_the_mark_of_the_first_token_stands_where_it_came(modules: Page) -> None:
    quiet = [energy(reading(0, state="CHARGING"))]
    spoke = [spoken(0, token(0, "x", t_us=840_000)), energy(reading(0, tokens=1))]
    after = [energy(reading(0, tokens=1))]
    found = drawn(modules, told(1, quiet, *[quiet] * 6, spoke, *[after] * 9))
    x = found["plot"]["x1"] - 9  # nine columns came after it
    marks = [call["at"] for call in on(found, "scene", "rect", fill="m1") if call["at"][2:] == [1.5, 3]]
    assert marks
    assert {at[0] for at in marks} == {x - 1}
    assert on(found, "scene", "text", text="first token 0.84 s")
    silent = drawn(modules, told(1, quiet, quiet))
    assert [call for call in on(silent, "scene", "rect") if call["at"][2:] == [1.5, 3]] == []


def test_a_frame_that_never_came_leaves_no_ink(modules: Page) -> None:
    both = [energy(reading(0, tokens=1), reading(1, tokens=1), ensemble=together())]
    messages = told(2, *[both] * 40)
    found = drawn(modules, messages[:10] + messages[25:])
    assert found["painted"] == 40  # time is not closed up
    x1 = found["plot"]["x1"] - found["plot"]["x0"]
    blank = {x1 - (39 - column) for column in range(10, 25)}
    inked = {points(call)[1][0] for call in on(found, "history", "stroke", width=1.8)}
    assert inked == {x1 - (39 - column) for column in range(40)} - blank
    touched = {call["at"][0] + 1 for call in on(found, "history", "rect")} | {
        call["at"][0] + 1 for call in on(found, "history", "image") if len(call["at"]) == 4
    }
    assert touched & blank == set()
    first_after = next(
        call for call in on(found, "history", "stroke", width=1.8) if points(call)[1][0] == max(blank) + 1
    )
    assert points(first_after)[0][1] == points(first_after)[1][1]  # the line does not lead across


@pytest.mark.parametrize("scale", [1, 1.25, 1.5, 1.75, 2])
@pytest.mark.parametrize("column_px", [1, 2])
def test_time_is_true_on_every_screen(modules: Page, scale: float, column_px: int) -> None:
    """However a CSS pixel is divided: what was painted moves with the axis, by whole pixels of the screen."""
    said = [spoken(0, token(0, "x")), energy(reading(0, tokens=1), reading(1), ensemble=together())]
    after = [energy(reading(0, tokens=1), reading(1), ensemble=together())]
    found = drawn(modules, told(2, said, *[after] * 50), scale=scale, columnPx=column_px, stepwise=True)
    moves = [-call["at"][0] for call in on(found, "history", "image") if len(call["at"]) == 2]
    assert len(moves) == 51
    assert all(move == int(move) >= 1 for move in moves)
    (struck,) = strikes(found)
    stands_at = points(struck)[0][0] * scale - sum(moves[1:])  # since it was painted
    assert stands_at / scale + found["plot"]["x0"] == pytest.approx(found["first"][0], abs=1)
    axis = sorted(call["at"][0] for call in on(found, "scene", "text") if call["text"] in ("−2 s", "−4 s"))
    assert (axis[1] - axis[0]) * scale == pytest.approx(120 * moves[0])


# ── nothing without a signal ────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_session_there_are_axes_and_a_dash(modules: Page) -> None:
    found = drawn(modules, [])
    assert [call for call in found["calls"] if call["on"] == "history"] == []
    strokes = {call["stroke"] for call in on(found, "scene", "stroke")}
    assert strokes == {"raised"}  # the empty ring
    words = {call["text"] for call in on(found, "scene", "text")}
    assert {word for word in words if not word.endswith(" s")} == {"0", ".5", "1", "now", "—", "E(t)"}


def test_the_same_session_is_drawn_the_same_way_twice(modules: Page) -> None:
    messages = council(3, 1)
    assert drawn(modules, messages)["calls"] == drawn(modules, messages)["calls"]


def test_with_reduced_motion_there_are_lines_and_hatches_but_no_strikes_and_no_bolts(modules: Page) -> None:
    messages = council(3, 2)
    found, moving = drawn(modules, messages, still=True), drawn(modules, messages)
    assert sum(len(strikes(found, slot)) for slot in range(3)) == 0
    assert [call for call in found["calls"] if call["on"].startswith("made") and call["kind"] == "stroke"] == []
    assert on(found, "scene", "image") == [call for call in on(found, "scene", "image") if call["image"] == "history"]
    lines = [points(call) for call in on(found, "history", "stroke", width=1.8)]
    assert lines == [points(call) for call in on(moving, "history", "stroke", width=1.8)]
