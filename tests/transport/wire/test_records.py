"""The way of a record to chunks, as all dialects share it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.generation import EndReason, GenerationEnd, TokenKind, TokenLogprob
from transport.wire.records import chunks

END = GenerationEnd(EndReason.FINISHED)
texts = st.text("ab", max_size=4)


@given(
    st.lists(st.tuples(st.sampled_from(TokenKind), texts), min_size=1, max_size=4),
    st.lists(texts, max_size=6),
    st.none() | st.just(END),
)
@example([(TokenKind.THINKING, "ab"), (TokenKind.ANSWER, "b")], ["a", "b", "b"], END)
@example([(TokenKind.THINKING, "ab"), (TokenKind.ANSWER, "b")], ["aba", "b"], None)
def test_every_entry_is_dealt_once_and_in_order(
    parts: list[tuple[TokenKind, str]], tokens: list[str], end: GenerationEnd | None
):
    entries = tuple(TokenLogprob(token, -1.0 - at) for at, token in enumerate(tokens))
    made = chunks(parts, entries, 5, b"raw", end)
    assert [(chunk.kind, chunk.text, chunk.t_us) for chunk in made] == [(kind, text, 5) for kind, text in parts]
    assert tuple(entry for chunk in made for entry in chunk.logprobs) == entries
    for chunk in made[:-1]:
        assert "".join(entry.token for entry in chunk.logprobs) in ("", chunk.text)
    assert [chunk.raw for chunk in made] == [b"raw"] + [b""] * (len(parts) - 1)
    assert [chunk.end for chunk in made] == [None] * (len(parts) - 1) + [end]


def test_a_part_takes_the_entries_that_spell_it():
    entries = tuple(TokenLogprob(token, -1.0) for token in ("a", "b", "c", "d"))
    made = chunks([(TokenKind.THINKING, "ab"), (TokenKind.ANSWER, "c"), (TokenKind.TOOL, "x")], entries, 0, b"")
    assert [chunk.logprobs for chunk in made] == [entries[:2], entries[2:3], entries[3:]]
