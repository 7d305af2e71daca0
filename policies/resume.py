"""May an answer that broke off be gone on with, and what is asked then. Pure.

The model is shown its own text so far as the beginning of its answer. Nobody can know whether it would have gone on so:
every seam is marked, and nothing of this happens unless the configuration or the request allows it.
"""

from __future__ import annotations

from typing import Final

import attrs

from engine.domain.errors import (
    EngineError,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.generation import GenerationRequest, Message, ResumeRules, TokenKind

TEXT_BYTES_MAX: Final = 1_048_576  # of an answer, to be sent again
TOKENS_MAX: Final = 65_536  # of an answer, which a reply in another dialect has to be told again
CONTINUING: Final = frozenset({"ollama", "openai", "llama_cpp", "embedded"})  # runtimes that can go on with a text
BROKEN: Final = (UpstreamTruncated, UpstreamProtocolError, UpstreamTimeout, RuntimeUnavailable)
HEADER_PATTERN: Final = ("allow", "off")


@attrs.frozen
class Given:
    """What a broken answer has given: its text, its tokens of all kinds. `text` is null once it was too long to
    keep."""

    text: str | None
    tokens: int
    kinds: frozenset[TokenKind]


@attrs.frozen
class Refused:
    """It stays broken; `why` is for people."""

    why: str


def rules_for(enabled: bool, rules: ResumeRules, asked: str | None) -> ResumeRules | None:
    """What holds for a request: the configuration, unless the request itself says `allow` or `off`. Raises ValueError
    for another word."""
    if asked is None:
        return rules if enabled else None
    if asked not in HEADER_PATTERN:
        raise ValueError(" or ".join(HEADER_PATTERN))
    return rules if asked == "allow" else None


def continuation(
    error: EngineError, request: GenerationRequest, given: Given, rules: ResumeRules, attempts: int
) -> GenerationRequest | Refused:
    """The request that goes on with the answer to `request` after `error`; `attempts` were made so far. Its model is
    still that of `request`."""
    why = _refusal(error, request, given, rules, attempts)
    if why is not None:
        return Refused(why)
    text, limit = given.text or "", request.parameters.max_tokens
    left = attrs.evolve(request.parameters, max_tokens=None if limit is None else limit - given.tokens)
    asked = attrs.evolve(request, parameters=left, resume=None, think=False if request.think else request.think)
    if request.raw or request.suffix is not None:
        return attrs.evolve(asked, prompt=(request.prompt or "") + text)
    messages = _with_answer(request, text)
    return attrs.evolve(asked, prompt=None, system=None, images=(), messages=messages, continues=True)


def next_model(rules: ResumeRules, broken: str, attempts: int) -> str | Refused:
    """Who is asked with the attempt after `attempts`, by its public name; `broken` is who broke off first."""
    if rules.who == "same":
        return broken
    others = [name for name in rules.models if name != broken]
    if attempts >= len(others):
        return Refused("no other model is configured to go on with it")
    return others[attempts]


def _refusal(
    error: EngineError, request: GenerationRequest, given: Given, rules: ResumeRules, attempts: int
) -> str | None:
    limit = request.parameters.max_tokens
    refusals = (
        (not isinstance(error, BROKEN), "it did not break off"),
        (rules.refused is not None, rules.refused or ""),
        (attempts >= rules.attempts_max, f"attempts made: {attempts}, the most allowed"),
        (given.tokens == 0, "it had not begun"),
        (TokenKind.THINKING in given.kinds, "thinking was given, and no model can be handed half of it"),
        (TokenKind.TOOL in given.kinds, "a call of a tool was given, which may have been carried out"),
        (request.tool_choice not in ("auto", "none"), "it must be a call of a tool"),
        (request.format is not None, "it has a format, which would begin anew"),
        (given.text is None, f"more than {TEXT_BYTES_MAX} bytes of it were given"),
        (given.tokens > TOKENS_MAX, f"more than {TOKENS_MAX} tokens of it were given"),
        (not given.text, "no text of it was given"),
        (limit is not None and given.tokens >= limit, "it had all its tokens"),
    )
    return next((why for refused, why in refusals if refused), None)


def _with_answer(request: GenerationRequest, text: str) -> tuple[Message, ...]:
    """The chat, with the text so far as the model's last turn; a turn that the caller had begun for it goes on."""
    asked = request.messages or (Message("user", request.prompt or "", request.images),)
    system = (Message("system", request.system),) if request.system else ()
    *before, last = asked
    if last.role == "assistant" and not last.tool_calls:
        return (*system, *before, attrs.evolve(last, content=last.content + text))
    return (*system, *asked, Message("assistant", text))
