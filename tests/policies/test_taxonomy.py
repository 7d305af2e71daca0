"""The vocabularies of the classifier, names held against them, and the prompts made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError
from policies.schema import Misfit
from policies.source import parse
from policies.taxonomy import Vocabulary, fitted, load_taxonomy, messages

DOMAINS = """FACTOIDWIKI ARTIFICIAL_INTELLIGENCE MEDICINE BIOLOGY PHYSICS CHEMISTRY MATHEMATICS COMPUTER_SCIENCE
    ENGINEERING HISTORY LITERATURE PHILOSOPHY LAW ECONOMICS BUSINESS PSYCHOLOGY SOCIOLOGY GEOGRAPHY SPORTS
    ENTERTAINMENT OTHER""".split()
TAXONOMY = load_taxonomy()


def test_the_domains_are_the_21_of_version_1_0():
    assert list(TAXONOMY.domains.labels) == DOMAINS
    assert len(DOMAINS) == 21
    assert (TAXONOMY.domains.version, TAXONOMY.domains.fallback) == ("1.0", "OTHER")


def test_tasks_and_methods_have_what_the_document_gives_and_versions_of_their_own():
    assert (TAXONOMY.tasks.labels[0], TAXONOMY.tasks.fallback, TAXONOMY.tasks.version) == ("ANSWER", "ANSWER", "1.0")
    assert (TAXONOMY.methods.labels[0], TAXONOMY.methods.fallback, TAXONOMY.methods.version) == ("DENSE",) * 2 + (
        "1.0",
    )
    assert list(TAXONOMY.vocabularies()) == ["task", "method", "domain"]


def test_no_label_is_the_beginning_of_another():
    for vocabulary in TAXONOMY.vocabularies().values():
        for label in vocabulary.labels:
            assert [other for other in vocabulary.labels if other.startswith(label)] == [label]


def test_the_longest_label_has_room_in_an_answer():
    longest = max(len(label) for vocabulary in TAXONOMY.vocabularies().values() for label in vocabulary.labels)
    assert longest <= TAXONOMY.prompt.answer_tokens_max  # a token is at least a character


@pytest.mark.parametrize(
    ("name", "label"),
    [("MEDICINE", "MEDICINE"), ("medicine", "MEDICINE"), (" Computer Science ", "COMPUTER_SCIENCE"),
     ("computer-science", "COMPUTER_SCIENCE"), ("medcine", None), ("MEDICINES", None), ("", None), ("_", None)],
)  # fmt: skip
def test_a_name_is_a_label_or_not(name, label):
    assert TAXONOMY.domains.canonical(name) == label


@pytest.mark.parametrize(
    ("name", "nearest"), [("medcine", "MEDICINE"), ("Physic", "PHYSICS"), ("qqqq", None), ("", None)]
)
def test_the_nearest_label(name, nearest):
    assert TAXONOMY.domains.nearest(name) == nearest


@given(st.text(max_size=200))
def test_any_name_at_all_is_answered(name):
    label, nearest = TAXONOMY.domains.canonical(name), TAXONOMY.domains.nearest(name)
    assert label is None or (label in DOMAINS and nearest == label)
    assert nearest is None or nearest in DOMAINS


def test_other_labels_need_another_version():
    more = "domains: {labels: [OTHER, ASTROLOGY]}"
    with pytest.raises(ConfigError) as caught:
        load_taxonomy(parse(more, "wf.yaml"))
    assert caught.value.message == "wf.yaml:1: domains.version must be another one than 1.0: these are not its labels"
    mine = load_taxonomy(parse(more.replace("{labels", '{version: "1.1", labels'), "wf.yaml"))
    assert mine.domains.labels == ("OTHER", "ASTROLOGY")
    assert mine.tasks == TAXONOMY.tasks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("domains: {fallback: NONE}", "domains.fallback must be one of labels, not 'NONE'"),
        ("prompt: {answer_tokens_max: 0}", "prompt.answer_tokens_max must be 4–256, not 0"),
        ("domian: {}", "domian is unknown; did you mean domains?"),
    ],
)
def test_a_change_that_cannot_be_is_told_with_its_place(text, told):
    with pytest.raises(ConfigError) as caught:
        load_taxonomy(parse(text, "wf.yaml"))
    assert caught.value.message == f"wf.yaml:1: {told}"


def test_a_vocabulary_guards_itself():
    with pytest.raises(Misfit):
        Vocabulary("1.0", "C", "Which?", ("A", "B"))
    with pytest.raises(Misfit):
        Vocabulary("1.0", "A", "Which?", ("A", "A"))
    with pytest.raises(Misfit):
        Vocabulary("1.0", "a", "Which?", ("a",))


def test_a_prompt_has_the_labels_the_documents_and_the_query_in_that_order():
    system, user = messages(TAXONOMY.domains, TAXONOMY.prompt, "What is glucose?", ["Sugar.", "Insulin."])
    assert system.role == "system"
    assert all(label in system.content for label in DOMAINS)
    places = [user.content.index(text) for text in ("Sugar.", "Insulin.", "What is glucose?", "Which domain")]
    assert places == sorted(places)


def test_without_documents_there_is_no_word_of_them():
    _, user = messages(TAXONOMY.domains, TAXONOMY.prompt, "What is glucose?")
    assert "Document" not in user.content


@given(st.lists(st.text(max_size=600), max_size=12), st.integers(200, 3000))
def test_documents_are_cut_to_the_room_there_is(documents, chars_max):
    context = fitted(documents, chars_max)
    stripped = [text.strip() for text in documents if text.strip()]
    assert sum(map(len, context.texts)) <= chars_max
    assert sum(map(len, context.texts)) + context.chars_dropped == sum(map(len, stripped))
    for text, whole in zip(context.texts, stripped, strict=False):
        assert whole.startswith(text)
    if sum(map(len, stripped)) <= chars_max and len(stripped) <= chars_max // 200:
        assert context.texts == tuple(stripped)


def test_a_short_document_leaves_its_room_to_a_long_one():
    context = fitted(["x" * 10, "y" * 10_000], 1000)
    assert [len(text) for text in context.texts] == [10, 990]
    assert context.chars_dropped == 9010
