"""What the models are asked, and what is left of a question that is too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.generation import GenerationRequest, Message
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.prompt import WORDS_PER_STEP, Prompt, PromptReader, beginning_of, question_of
from transport.runtimes.embedded.runtime import WEIGHTS_DIR

LEXICON = Tokenizer.from_gguf(gguf.read(WEIGHTS_DIR / "lexicon.gguf")[0])


def read(question: str, limit: int = 256) -> Prompt:
    reader = PromptReader.for_question(LEXICON, question, limit)
    while reader.step():
        pass
    return reader.prompt()


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_the_form_the_models_were_trained_on(question: str):
    assert read(question) == Prompt((LEXICON.end_id, *LEXICON.encode(f"Q: {question}\nA:")), dropped=0)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200), st.integers(8, 40))
def test_a_long_question_keeps_its_frame_and_its_tail(question: str, limit: int):
    whole, prompt = read(question, 10_000), read(question, limit)
    assert len(prompt.ids) == min(limit, len(whole.ids))
    assert prompt.dropped == len(whole.ids) - len(prompt.ids)
    assert prompt.ids[:3] == whole.ids[:3]
    assert prompt.ids[3:] == whole.ids[len(whole.ids) - len(prompt.ids) + 3 :]


def test_a_huge_question_is_read_in_steps():
    question = "why " * (3 * WORDS_PER_STEP)
    reader = PromptReader.for_question(LEXICON, question, 64)
    steps = 1
    while reader.step():
        steps += 1
    assert steps == 4
    prompt = reader.prompt()
    assert len(prompt.ids) + prompt.dropped == 1 + len(LEXICON.encode(f"Q: {question}\nA:"))


def test_the_last_user_message_is_the_question():
    messages = (
        Message("system", "Be brief."),
        Message("user", "define courage"),
        Message("assistant", "A state."),
        Message("user", "kludge"),
        Message("assistant", "A "),
    )
    assert question_of(GenerationRequest("m", messages=messages)) == "kludge"
    assert question_of(GenerationRequest("m", messages=messages[:1])) == ""
    assert question_of(GenerationRequest("m", prompt="define glacier")) == "define glacier"


@pytest.mark.parametrize(
    ("content", "beginning"),
    [
        (" A state of", " A state of"),
        ("A state of", " A state of"),  # as whoever begins an answer by hand writes it
        (" One.\n Two", " Two"),  # the definition before it is over
        (" One.\n", ""),
        ("", ""),
        ("\tA", "\tA"),
    ],
)
def test_a_last_message_of_the_assistant_is_the_beginning_of_the_answer(content: str, beginning: str):
    turns = (Message("user", "courage"), Message("assistant", content))
    assert beginning_of(GenerationRequest("m", messages=turns)) == beginning
    assert beginning_of(GenerationRequest("m", messages=(*turns, Message("user", "kludge")))) == ""
    assert beginning_of(GenerationRequest("m", prompt="courage")) == ""


@given(st.text(st.characters(codec="utf-8"), max_size=200), st.integers(1, 40))
def test_a_long_beginning_keeps_its_tail(text: str, limit: int):
    reader = PromptReader.for_beginning(LEXICON, text, limit)
    while reader.step():
        pass
    whole, prompt = LEXICON.encode(text), reader.prompt()
    assert (list(prompt.ids), prompt.dropped) == (whole[-limit:], max(0, len(whole) - limit))
