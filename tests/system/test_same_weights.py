"""The same weight files in two engines: our numpy forward pass and tokenizer, and llama.cpp's.

With the weights in float32 and llama.cpp told to compute in float32 the two agree to what is left of rounding. As the
files are shipped, in float16, llama.cpp rounds activations, keys and values to float16 too, where we compute in
float32: then they agree to some thousandths.
"""

from __future__ import annotations

import shutil
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.domain.generation import GenerationRequest, Parameters
from tests.fakes.gguf import widened
from tests.fakes.llama_server import llama_server
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import Model
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import CONTEXT_MAX, Transformer
from transport.runtimes.embedded.prompt import PromptReader
from transport.runtimes.embedded.runtime import MODELS, WEIGHTS_DIR, EmbeddedRuntime
from transport.runtimes.embedded.sampler import log_softmax
from transport.runtimes.openai import OpenAIRuntime

TOLERANCE = 1e-4
TOLERANCE_HALF = 5e-3  # of what was generated, with llama.cpp's float16 arithmetic
TOLERANCE_HALF_OTHERS = 2e-2  # of the other candidates: the less probable, the more they move
TOP_K = 10
PROBABLE = 1e-6  # less probable tokens are not compared: nobody sees them, and they move most
QUESTIONS = ["what is a glacier?", "What's 1984 – a novel, a year or 2 things?", "¿x²y ½ 北京 🙂?", ""]
STEPS = 60

NASTY = [
    "x²y",
    "½ + ¼ = ¾",
    "🙂 👩🏽\u200d🚀 👨\u200d👩\u200d👧\u200d👦 👍🏿 🇳🇴🇩🇪 1️⃣",
    "北京大学 東京 서울 ไทย",
    "line\r\nline\r\r\n\nline\n",
    "\t\ttabs\t and\t\t tabs",
    "a  b   c    d     e      ",
    "   leading and trailing   ",
    " ",
    "   ",
    "\n",
    " \n \n  \n",
    "one\u2028two\u2029three\u0085four",
    "\u00a0no\u00a0break\u2003em\u3000wide\u200bzero\ufeffbom",
    "e\u0301 \u0301alone o\u0308\u0304 \u0301",
    "it's I'll we've they're he'd I'm don't",
    "IT'S I'LL WE'VE they'RE O'Neill's 's ''s '' 't' 'tis rock'n'roll",
    "it\u2019s we\u2019ll",
    "1 12 123 1234 1234567890 3.14159 1,000,000 1e10 0x1F Ⅷ ٣٤ ५६ ²³",
    "a1b2c3 1st 2nd v1.2.3-rc4",
    "שלום עולם \u200fمرحبا بالعالم\u200e abc",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31m\x1c\x1d\x1e\x1f\x7f",
    "\x80\x9f\xad",
    "def f(x): return {'a': [1, 2], \"b\": x**2}  # ok\n\tpass;;",
    "https://example.org/a_b-c?d=e&f=%20#g",
    "___ __init__ --- ... !!! ?!?! $$$ €100 £5 ¥ © ® ™",
    "<|end|> <|endoftext|> <s></s> [INST] <think>",
    "ﬀ ﬁ ǅ ß ẞ İ ı ſ K Å",
    "\U0001d518\U0001d52b𝟘𝟙 \U00020000 \U000e0041 \U0010fffd",
    "ÄÖÜäöüßéèêñçåæøœ ŁłŻż Čč",
    "the engine streams tokens; the screen shows every token as it comes.",
    "Q: what is a glacier?\nA:",
]
# Characters both sides have known for years (the Unicode version of either may be newer), and those that break words.
KNOWN = st.characters(codec="utf-8", min_codepoint=1, exclude_categories=["Cs", "Cn", "Co"])
TEXTS = st.text(KNOWN | st.sampled_from("the in of's'll 19 \t\r\n.,'<|>²½北🙂\u0301\u2028\u0085\u00a0"), max_size=40)


def clock() -> int:
    return time.monotonic_ns() // 1000


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def ours(name) -> Model:
    file, _ = gguf.read(WEIGHTS_DIR / f"{name}.gguf")
    return Model(Transformer.from_gguf(file), Tokenizer.from_gguf(file))


@pytest.fixture(scope="module")
def server(name, tmp_path_factory):
    path = widened(WEIGHTS_DIR / f"{name}.gguf", tmp_path_factory.mktemp("exact") / f"{name}.gguf")
    with llama_server(path, name, context=CONTEXT_MAX, exact=True) as server:
        yield server


@pytest.fixture(scope="module")
def server_as_shipped(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("shipped") / f"{name}.gguf"
    shutil.copy(WEIGHTS_DIR / path.name, path)
    with llama_server(path, name, context=CONTEXT_MAX) as server:
        yield server


# ── token ids ──


@pytest.mark.parametrize("text", NASTY)
def test_token_ids_are_llama_cpps(ours, server, text):
    assert ours.tokenizer.encode(text) == server.tokenize(text)


def test_token_ids_of_everything_at_once(ours, server):
    for separator in ("", " ", "\n", "'", "7"):
        text = separator.join(NASTY)
        assert ours.tokenizer.encode(text) == server.tokenize(text)


def test_every_character_is_of_the_same_class(ours, server):
    """Letter, digit, blank or sign: between quotes each class is split in its own way."""
    characters = [chr(n) for n in range(1, 0x3100) if unicodedata.category(chr(n)) not in ("Cs", "Cn", "Co")]
    assert len(characters) > 8000
    for begin in range(0, len(characters), 1000):
        for form in ("'{}'s", "7{}7 ", " {}  "):
            text = "".join(map(form.format, characters[begin : begin + 1000]))
            assert ours.tokenizer.encode(text) == server.tokenize(text)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_token_ids_of_any_text_are_llama_cpps(ours, server, texts):
    text = " ".join(texts)
    ids = server.tokenize(text)
    assert ours.tokenizer.encode(text) == ids
    assert ours.tokenizer.decode(ids).decode() == text


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_template_in_the_file_is_the_frame_we_ask_in(ours, server, question):
    framed = server.ask("/apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"]
    ids = server.ask("/tokenize", {"content": framed, "add_special": True, "parse_special": True})["tokens"]
    assert prompt_ids(ours, question) == ids


def prompt_ids(model: Model, question: str) -> list[int]:
    reader = PromptReader.for_question(model.tokenizer, question, CONTEXT_MAX // 2)
    while reader.step():
        pass
    return list(reader.prompt().ids)


# ── log-probabilities ──


def test_whole_distributions_agree_at_every_length(ours, server):
    """All tokens of the vocabulary, after prompts of one token up to nearly the context."""
    text = ours.tokenizer.encode(" ".join(NASTY[-6:]) * 6)
    for size in (1, 128, 129, CONTEXT_MAX - 2):
        ids = [ours.tokenizer.end_id, *text][:size]
        assert len(ids) == size
        mine = log_softmax(ours.transformer.feed(ids, ours.transformer.new_cache()))
        theirs = distribution_after(ids, ours, server)
        assert np.isfinite(theirs).all()
        assert np.abs(theirs - mine)[np.exp(mine) > PROBABLE].max() < TOLERANCE


def distribution_after(ids: list[int], model: Model, server) -> np.ndarray:
    """Of every token of the vocabulary. What is drawn is decided beforehand (a word: an answer of half a character or
    none would come without probabilities); that changes none of the probabilities told."""
    count = model.transformer.shape.vocabulary
    (word,) = model.tokenizer.encode(" the")
    (step,) = steps(server, ids, 1, count, logit_bias=[[word, 1000]])
    assert step["id"] == word
    found = np.full(count, np.nan)
    for entry in step["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_greedy_path_agrees_token_by_token(ours, server, question):
    assert_path_agrees(ours, server, question, TOLERANCE, TOLERANCE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_greedy_path_agrees_to_half_precision_as_shipped(ours, server_as_shipped, question):
    assert_path_agrees(ours, server_as_shipped, question, TOLERANCE_HALF, TOLERANCE_HALF_OTHERS)


def assert_path_agrees(model: Model, server, question: str, tolerance: float, of_others: float) -> None:
    """The path is llama.cpp's; our probabilities are computed along it, one token at a time as in an answer."""
    ids = prompt_ids(model, question)
    cache = model.transformer.new_cache()
    scores = model.transformer.feed(ids, cache)
    path = steps(server, ids, STEPS, TOP_K)
    assert path
    for step in path:
        mine = log_softmax(scores)
        assert mine[step["id"]] == pytest.approx(step["logprob"], abs=tolerance)
        for entry in step["top_logprobs"]:
            assert mine[entry["id"]] == pytest.approx(entry["logprob"], abs=of_others)
        assert mine.max() - mine[step["id"]] < tolerance
        scores = model.transformer.feed([step["id"]], cache)


def steps(server, ids: list[int], count: int, top: int, **more) -> list[dict]:
    """Generated tokens with the `top` most probable ones at each: id, token, logprob."""
    body = {"prompt": ids, "n_predict": count, "n_probs": top, "temperature": 0, "cache_prompt": False}
    return server.ask("/completion", body | more)["completion_probabilities"]


@pytest.mark.parametrize("question", QUESTIONS[:3])
async def test_both_runtimes_report_the_same_answer(name, ours, server, question):
    """What the rest of the engine sees: tokens, probabilities and counts of `Runtime.generate`, up to the first end of
    text (where ours asks again)."""
    request = GenerationRequest(name, prompt=question, parameters=Parameters(temperature=0, max_tokens=STEPS))
    mine = await chunks_of(EmbeddedRuntime(clock, pace_tps=0), request)
    theirs = await chunks_of(OpenAIRuntime(clock, server.url), request)
    assert mine[-1].end.prompt_tokens == theirs[-1].end.prompt_tokens == len(prompt_ids(ours, question))
    expected = [entry for chunk in mine for entry in chunk.logprobs]
    reported = [entry for chunk in theirs for entry in chunk.logprobs]
    assert len(reported) > 3
    for my, their in zip(expected, reported, strict=False):
        assert my.token == their.token
        assert my.logprob == pytest.approx(their.logprob, abs=TOLERANCE)
        assert [e.logprob for e in my.top] == pytest.approx([e.logprob for e in their.top], abs=TOLERANCE)
    if len(reported) < STEPS:
        assert expected[len(reported)].token == "<|end|>"
    text = "".join(chunk.text for chunk in theirs)
    assert "".join(chunk.text for chunk in mine).lstrip().startswith(text.lstrip())


async def chunks_of(runtime, request):
    async with runtime.generate(request) as chunks:
        return [chunk async for chunk in chunks]
