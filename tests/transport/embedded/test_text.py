"""Text comes out whole, unchanged, and without a stop string, however it was cut into tokens."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from transport.runtimes.embedded.text import StopFilter, TextStream

letters = st.text(st.sampled_from("abc"), max_size=6)
stop_lists = st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=4), max_size=10)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: the first prefix that ends in a stop string, less the longest stop string at its end."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(st.lists(letters, max_size=12), stop_lists)
@example(["ab", "cx"], ["abcd", "bc"])
def test_stop_strings_are_cut_however_the_text_is_split(pieces: list[str], stops: list[str]):
    stop_filter, shown, stopped = StopFilter(tuple(stops)), "", False
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        shown += text
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    assert (shown + stop_filter.flush(), stopped) == expected("".join(pieces), stops)


@given(st.lists(letters, max_size=12), stop_lists)
def test_no_more_is_held_back_than_could_become_a_stop_string(pieces: list[str], stops: list[str]):
    stop_filter, seen, shown = StopFilter(tuple(stops)), "", ""
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        if stopped:
            return
        seen, shown = seen + piece, shown + text
        held = seen[len(shown) :]
        assert seen == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_bytes_come_out_as_one_decoding_would_give_them(data: bytes, cuts: list[int]):
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = TextStream.with_stops(())
    pieces = [data[begin:end] for begin, end in pairwise(bounds)]
    shown = [stream.push(piece, last=n == len(pieces) - 1) for n, piece in enumerate(pieces)]
    assert "".join(text for text, _ in shown) == data.decode(errors="replace")


def test_a_character_waits_for_its_bytes():
    stream = TextStream.with_stops(())
    assert [stream.push(bytes([byte]), last=False)[0] for byte in "½🙂".encode()] == ["", "½", "", "", "", "🙂"]


def test_a_character_that_never_completes():
    stream = TextStream.with_stops(())
    assert stream.push(b"a\xf0\x9f", last=False) == ("a", False)
    assert stream.push(b"\x99", last=True) == ("\ufffd", False)


def test_a_stop_string_may_span_tokens_and_characters():
    stream = TextStream.with_stops(("½.", ""))
    assert stream.push(b"one \xc2", last=False) == ("one ", False)
    assert stream.push(b"\xbd", last=False) == ("", False)
    assert stream.push(b". Two", last=True) == ("", True)


def test_what_was_held_comes_with_the_last_token():
    stream = TextStream.with_stops(("end.",))
    assert stream.push(b"the en", last=False) == ("the ", False)
    assert stream.push(b"d", last=True) == ("end", False)
