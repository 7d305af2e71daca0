"""What the models are asked. They know one form only: `Q: {question}` and `A:`, after the begin-of-text token.

Of a chat the last user message is the question: the models have no memory, and a conversation would only confuse them.
Nor do they follow instructions, so `system` is not read, beside a prompt as little as in a chat. A last message of the
assistant's is the beginning of the answer. Of that the models read its last line, the definition under way: the ones
before it are over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

import attrs

from engine.domain.generation import GenerationRequest
from transport.runtimes.embedded.bpe import Tokenizer

WORDS_PER_STEP: Final = 4096  # some milliseconds of work, so that reading a huge prompt can be cancelled
_HEAD: Final = "Q:"


def question_of(request: GenerationRequest) -> str:
    """The prompt, or the last user message; empty when there is none."""
    if request.prompt is not None:
        return request.prompt
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")


def beginning_of(request: GenerationRequest) -> str:
    """The definition under way, where the last message is the beginning of an answer; empty when there is none. It
    begins with a space, as all definitions do."""
    if not request.messages or request.messages[-1].role != "assistant":
        return ""
    line = request.messages[-1].content.rpartition("\n")[2]
    return line if not line or line[0].isspace() else f" {line}"


@attrs.frozen
class Prompt:
    """Token ids from begin-of-text to `A:`, and those of the definition under way; `dropped` tokens of the beginning of
    either had no room."""

    ids: tuple[int, ...]
    dropped: int
    begun: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """All that the model reads before it writes."""
        return len(self.ids) + len(self.begun)


@attrs.define(eq=False)
class PromptReader:
    """Encodes a text step by step and keeps the tail that fits: at most `limit` tokens, frame included."""

    tokenizer: Tokenizer
    _words: Iterator[str]
    _head: list[int]
    _tail: deque[int]
    _seen: int = 0

    @classmethod
    def for_question(cls, tokenizer: Tokenizer, question: str, limit: int) -> PromptReader:
        # The split rule never joins "Q:" with what follows, so the frame and the question may be encoded apart.
        head = [tokenizer.end_id, *tokenizer.encode(_HEAD)]
        words = tokenizer.words(f" {question}\nA:")
        return cls(tokenizer, words, head, deque(maxlen=limit - len(head)))

    @classmethod
    def for_beginning(cls, tokenizer: Tokenizer, beginning: str, limit: int) -> PromptReader:
        return cls(tokenizer, tokenizer.words(beginning), [], deque(maxlen=limit))

    def step(self) -> bool:
        """Encode up to WORDS_PER_STEP words; True while there may be more. Blocks: call it from a worker thread."""
        words = list(islice(self._words, WORDS_PER_STEP))
        ids = self.tokenizer.encode_words(words)
        self._seen += len(ids)
        self._tail.extend(ids)
        return len(words) == WORDS_PER_STEP

    def prompt(self) -> Prompt:
        return Prompt((*self._head, *self._tail), self._seen - len(self._tail))
