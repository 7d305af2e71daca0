"""The same ids as the tokenizer that trained the models, and never a byte lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import Model
from transport.runtimes.embedded.bpe import RUN_MAX_CHARS, Tokenizer
from transport.runtimes.embedded.runtime import WEIGHTS_DIR

LEXICON = Tokenizer.from_gguf(gguf.read(WEIGHTS_DIR / "lexicon.gguf")[0])
# Characters that make merges, splits and multi-byte sequences likely, among all others.
texts = st.text(st.one_of(st.sampled_from("the in of a's 'll 19 \t\n.,<|>²½北🙂\u0301"), st.characters(codec="utf-8")))


def test_golden_ids(models: dict[str, Model], golden: tuple[str, dict[str, Any]]):
    name, case = golden
    assert models[name].tokenizer.encode(case["prompt"]) == case["ids"]


@given(texts)
def test_round_trip(text: str):
    assert LEXICON.decode(LEXICON.encode(text)).decode() == text


@given(texts)
def test_words_are_the_text(text: str):
    assert "".join(LEXICON.words(text)) == text


def merged_naively(tokenizer: Tokenizer, word: str) -> list[int]:
    """The definition: again and again the pair with the lowest rank, leftmost first."""
    ids = [tokenizer._byte_ids[byte] for byte in word.encode()]
    while True:
        ranks = [(tokenizer._merges[pair][0], n) for n, pair in enumerate(pairwise(ids)) if pair in tokenizer._merges]
        if not ranks:
            return ids
        _, at = min(ranks)
        ids[at : at + 2] = [tokenizer._merges[ids[at], ids[at + 1]][1]]


@given(st.text(st.sampled_from("aeinorst dlhc"), max_size=60))
def test_merging_by_heap_equals_the_definition(word: str):
    assert list(LEXICON._merged([LEXICON._byte_ids[byte] for byte in word.encode()])) == merged_naively(LEXICON, word)


@given(st.lists(st.sampled_from(["<|end|>", "<|", "|>", "end", "<", ">", " "])).map("".join))
def test_text_never_becomes_a_control_token(text: str):
    assert LEXICON.end_id not in LEXICON.encode(text)


def test_the_control_token_writes_nothing_and_has_a_name():
    assert LEXICON.decode([LEXICON.end_id]) == b""
    assert LEXICON.display[LEXICON.end_id] == "<|end|>"


def test_part_of_a_character_is_displayed_as_unknown():
    part = LEXICON.encode("🙂")[0]
    assert LEXICON.display[part] == "\ufffd"
    assert LEXICON.token_bytes[part] == b"\xf0"


def test_a_lone_surrogate_counts_as_a_question_mark():
    assert LEXICON.encode("a\ud800") == LEXICON.encode("a?")


@pytest.mark.parametrize("character", ["a", "7", "=", " ", "\n", "北"])
def test_an_endless_run_is_cut_into_bounded_words(character: str):
    text = character * (3 * RUN_MAX_CHARS + 5)
    assert max(map(len, LEXICON.words(text))) <= RUN_MAX_CHARS + 1
    assert LEXICON.decode(LEXICON.encode(text)).decode() == text


def test_a_small_vocabulary_of_another_file():
    tokenizer = Tokenizer.from_gguf(gguf.parse(gguf_writer.tiny_model(), "x"))
    assert [tokenizer.token_bytes[n] for n in tokenizer.encode("the tha")] == [b"the", b" ", b"th", b"a"]
