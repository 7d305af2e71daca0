from __future__ import annotations

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.alignment import TokenLedger
from engine.domain.generation import Chunk, Token, TokenKind, TokenLogprob, TopEntry

pieces = st.text(max_size=6)
entries = st.builds(TokenLogprob, pieces, st.floats(max_value=0), st.just((TopEntry("x", -1.0),)))


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """As runtimes send them: log-probabilities that fit the text, that do not, none; text without, neither."""
    logprobs = tuple(draw(st.lists(entries, max_size=4)))
    fitting = "".join(entry.token for entry in logprobs)
    text = draw(st.just(fitting) | pieces | st.just(""))
    return Chunk(text, draw(st.integers(0, 10_000)), draw(st.sampled_from(TokenKind)), logprobs)


streams = st.lists(chunks(), max_size=8)


def taken(stream: list[Chunk], throttled: bool = False) -> list[list[Token]]:
    ledger = TokenLedger()
    return [list(ledger.take(chunk, throttled)) for chunk in stream]


def encoded(text: str) -> bytes:
    return text.encode()


@given(streams)
def test_the_text_of_a_kind_is_that_of_its_chunks(stream):
    tokens = [token for batch in taken(stream) for token in batch]
    for kind in TokenKind:
        said = "".join(chunk.text for chunk in stream if chunk.kind is kind)
        assert "".join(token.text for token in tokens if token.kind is kind) == said


@given(streams)
def test_positions_are_dense_and_offsets_are_bytes_of_the_kind(stream):
    tokens = [token for batch in taken(stream) for token in batch]
    assert [token.position for token in tokens] == list(range(len(tokens)))
    written = dict.fromkeys(TokenKind, b"")
    for token in tokens:
        assert token.offset == len(written[token.kind])
        written[token.kind] += encoded(token.text)


@given(streams)
def test_a_chunk_is_as_many_tokens_as_were_reported(stream):
    for chunk, tokens in zip(stream, taken(stream), strict=True):
        assert len(tokens) == (len(chunk.logprobs) or bool(chunk.text))
        assert all((token.t_us, token.kind) == (chunk.t_us, chunk.kind) for token in tokens)
        assert [(t.logprob, t.top) for t in tokens] == [
            (entry.logprob, entry.top) for entry in chunk.logprobs
        ] or not chunk.logprobs


@given(streams)
def test_the_first_of_a_chunk_has_the_gap_and_the_others_none(stream):
    last_us = None
    for chunk, tokens in zip(stream, taken(stream), strict=True):
        if not tokens:
            continue
        gap = None if last_us is None else max(0, chunk.t_us - last_us)
        assert [token.delta_us for token in tokens] == [gap] + [0] * (len(tokens) - 1)
        assert {token.coalesced for token in tokens} == {len(tokens) > 1}
        last_us = chunk.t_us


@given(streams)
def test_gaps_add_up_to_the_time_between_first_and_last(stream):
    ordered = [msgspec.structs.replace(chunk, t_us=1000 * n) for n, chunk in enumerate(stream)]
    tokens = [token for batch in taken(ordered) for token in batch]
    if tokens:
        assert sum(token.delta_us or 0 for token in tokens) == tokens[-1].t_us - tokens[0].t_us


@given(streams, st.booleans())
def test_every_token_says_whether_the_reader_was_held(stream, throttled):
    assert {token.throttled for batch in taken(stream, throttled) for token in batch} <= {throttled}


@given(streams, st.lists(st.integers(0, 12), max_size=3))
def test_how_the_stream_is_cut_into_reads_changes_nothing(stream, cuts):
    ledger, tokens = TokenLedger(), []
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for begin, end in itertools.pairwise(bounds):
        for chunk in stream[begin:end]:
            tokens += ledger.take(chunk, throttled=False)
    assert tokens == [token for batch in taken(stream) for token in batch]


def test_token_texts_are_kept_when_they_add_up():
    fits = Chunk("Grüße", 5, logprobs=(TokenLogprob("Grü", -0.1), TokenLogprob("ße", -0.2)))
    assert [(t.text, t.offset, t.logprob) for t in TokenLedger().take(fits, False)] == [
        ("Grü", 0, -0.1),
        ("ße", 4, -0.2),
    ]


def test_the_first_token_carries_all_when_texts_do_not_add_up():
    """Parsers detach text from its tokens; none of it may be lost or doubled."""
    strange = Chunk("answer", 5, logprobs=(TokenLogprob("<think>", -0.1), TokenLogprob("ans", -0.2)))
    first, second = TokenLedger().take(strange, False)
    assert (first.text, first.offset, first.logprob) == ("answer", 0, -0.1)
    assert (second.text, second.offset, second.logprob) == ("", 6, -0.2)


def test_one_entry_never_overrules_the_text():
    """Half a character, say: the runtime reports the bytes it waits for as a replacement character."""
    (token,) = TokenLedger().take(Chunk("é", 5, logprobs=(TokenLogprob("\ufffd", -0.1),)), False)
    assert token.text == "é"


def test_reported_tokens_without_text_count():
    tokens = TokenLedger().take(Chunk("", 5, logprobs=(TokenLogprob("a", -0.1), TokenLogprob("b", -0.2))), False)
    assert [token.text for token in tokens] == ["", ""]


def test_a_chunk_with_nothing_in_it_is_no_token_and_no_gap():
    ledger = TokenLedger()
    ledger.take(Chunk("a", 1_000), False)
    assert ledger.take(Chunk("", 5_000), False) == ()
    (after,) = ledger.take(Chunk("b", 9_000), False)
    assert (after.position, after.delta_us) == (1, 8_000)


def test_a_clock_that_goes_back_gives_no_negative_gap():
    ledger = TokenLedger()
    ledger.take(Chunk("a", 5_000), False)
    (after,) = ledger.take(Chunk("b", 4_000), False)
    assert after.delta_us == 0
