"""The vocabularies of the classifier as policies/taxonomy.yaml gives them, the prompts made of them, and names that are
checked against them. Pure."""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import attrs

from engine.domain.generation import Message
from policies.schema import Misfit, quoted, rejected, row, section, strict_converter, structure
from policies.source import Document, dotted, shipped

NEAREST_CUTOFF: Final = 0.5  # of difflib's ratio: what is less alike is no suggestion
DOC_CHARS_MIN: Final = 200  # less of a document tells nothing
_NO_CHANGES: Final = Document("no changes")
_LABEL: Final = r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*"
_GAPS: Final = re.compile(r"[\s_-]+")


def _distinct(_instance: object, field: attrs.Attribute[Any], labels: tuple[str, ...]) -> None:
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise Misfit("a label that is not in the list yet", quoted(label), (field.name, index))


@attrs.frozen
class Vocabulary:
    """Labels in capitals, of which `fallback` is one."""

    version: str = row(doc="of the labels", pattern=r"[0-9]{1,4}\.[0-9]{1,4}", expectation="a version like 1.0")
    fallback: str = row(doc="what stands for an answer that is no label")
    question: str = row(doc="what the model is asked", pattern=r"[^\x00-\x1f]{1,1000}", expectation="one line of text")
    labels: tuple[str, ...] = row(
        doc="all of them", pattern=_LABEL, expectation="a label such as COMPUTER_SCIENCE", validator=_distinct
    )

    def __attrs_post_init__(self) -> None:
        if self.fallback not in self.labels:
            raise Misfit("one of labels", quoted(self.fallback), ("fallback",))

    def canonical(self, name: str) -> str | None:
        """The label that `name` is, whatever its case and whether its words are parted by blanks, `-` or `_`."""
        wanted = _GAPS.sub("_", name.strip()).upper()
        return wanted if wanted in self.labels else None

    def nearest(self, name: str) -> str | None:
        """The label most like `name`; None when none is alike."""
        wanted = _GAPS.sub("_", name.strip()).upper()
        found = difflib.get_close_matches(wanted, self.labels, n=1, cutoff=NEAREST_CUTOFF)
        return found[0] if found else None


@attrs.frozen
class PromptRules:
    instruction: str = row(doc="what the model is told first")
    answer_tokens_max: int = row(doc="longest answer", unit="tokens", minimum=4, maximum=256)
    context_chars_max: int = row(doc="of all context documents", unit="characters", minimum=200, maximum=1_000_000)


@attrs.frozen
class Taxonomy:
    """policies/taxonomy.yaml."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    domains: Vocabulary = section(doc="what a query is about")
    tasks: Vocabulary = section(doc="what it wants")
    methods: Vocabulary = section(doc="how to find what it needs")
    prompt: PromptRules = section(doc="how the model is asked")

    def vocabularies(self) -> dict[str, Vocabulary]:
        """By the words of a TMD triplet, in its order."""
        return {"task": self.tasks, "method": self.methods, "domain": self.domains}


def load_taxonomy(changes: Document = _NO_CHANGES) -> Taxonomy:
    """The shipped one with the user's changes over it, key by key. Labels that are not the shipped ones need a version
    of their own: whoever reads `1.0` must be able to rely on it.

    Raises ConfigError with one line per misfit, each named by the place it came from. Reads a package file."""
    merged = shipped("taxonomy").overlay(changes)
    found = structure(merged, Taxonomy, _converter())
    known = structure(shipped("taxonomy"), Taxonomy, _converter())
    problems = [
        f"{merged.place((part, 'labels'))}: {dotted((*merged.root, part, 'version'))} must be another one than "
        f"{ours.version}: these are not its labels"
        for part, ours, theirs in (
            ("domains", known.domains, found.domains),
            ("tasks", known.tasks, found.tasks),
            ("methods", known.methods, found.methods),
        )
        if set(theirs.labels) != set(ours.labels) and theirs.version == ours.version
    ]
    if problems:
        raise rejected(problems)
    return found


_converter = functools.cache(strict_converter)


def messages(
    vocabulary: Vocabulary, rules: PromptRules, query: str, context: Sequence[str] = ()
) -> tuple[Message, ...]:
    """A chat whose answer is one label of `vocabulary`: the labels first, then the context, the query last, where small
    models still remember it."""
    told = f"{rules.instruction}\nLabels: {', '.join(vocabulary.labels)}"
    documents = "".join(f"Document {number}:\n{text}\n\n" for number, text in enumerate(context, 1))
    asked = f"{documents}Query: {query}\n\n{vocabulary.question}\nLabel:"
    return Message("system", told), Message("user", asked)


@attrs.frozen
class Context:
    """What of the documents goes into a prompt. `chars_dropped` is what had no room."""

    texts: tuple[str, ...]
    chars_dropped: int


def fitted(documents: Sequence[str], chars_max: int) -> Context:
    """The documents cut to `chars_max` characters in all: each keeps its beginning, and short ones leave their room to
    the others. Blank ones are left out. Where there are too many for 200 characters each, the last are dropped."""
    given = [text for document in documents if (text := document.strip())]
    kept = given[: max(1, chars_max // DOC_CHARS_MIN)]
    shares = [0] * len(kept)
    room, order = chars_max, sorted(range(len(kept)), key=lambda index: len(kept[index]))
    for place, index in enumerate(order):
        shares[index] = min(len(kept[index]), room // (len(order) - place))
        room -= shares[index]
    texts = tuple(text[:share] for text, share in zip(kept, shares, strict=True))
    return Context(texts, sum(map(len, given)) - sum(map(len, texts)))
