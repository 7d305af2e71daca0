"""Records of a runtime that speaks the OpenAI dialect itself, less what only our own asking caused. Without IO.

Records stay as they are, fields nobody knows included: each is taken apart no deeper than where something can have to
go. What can have to go: log-probabilities and alternatives that the client did not ask for, records that hold nothing
else, and the record with the counts.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Final

import attrs
import msgspec

from engine.domain.errors import UpstreamProtocolError
from transport.wire.dialects import openai_shapes as shapes
from transport.wire.dialects.openai_asks import DEFAULT_TOP, INCLUDE_USAGE
from transport.wire.dialects.reply import Asked, ReplyFacts

Fields = dict[str, msgspec.Raw]

NULL: Final = msgspec.Raw(b"null")
NOTHING: Final = frozenset({b"null", b'""', b"[]", b"{}"})

fields_decoder: Final = msgspec.json.Decoder(Fields)
logprobs_decoder: Final = msgspec.json.Decoder(dict[str, Any])
_list_decoder: Final = msgspec.json.Decoder(list[Fields])
_FINGERPRINT_OF_OLLAMA: Final = b'"fp_ollama"'


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(shapes.encode(value))


def has(fields: Fields, name: str) -> bool:
    """Whether there is more than an empty value under `name`."""
    return bytes(fields.get(name, NULL)) not in NOTHING


def is_lean(record: Fields) -> bool:
    """Ollama leaves out what is null or empty."""
    return bytes(record.get("system_fingerprint", NULL)) == _FINGERPRINT_OF_OLLAMA


@attrs.define(eq=False)
class Stripper:
    """Records of one stream to what the client would have got of the runtime itself, one in, at most one out."""

    asked: Asked
    facts: ReplyFacts
    finished: bool = attrs.field(default=False, init=False)  # the runtime said how it ended
    counted: bool = attrs.field(default=False, init=False)  # a record with counts came
    _model: msgspec.Raw = attrs.field(init=False)
    _ours: bool = attrs.field(init=False)  # the log-probabilities are for us alone
    _role: msgspec.Raw | None = attrs.field(default=None, init=False)  # of a record that was left out

    def __attrs_post_init__(self) -> None:
        self._model = raw(self.facts.model)
        self._ours = not self.asked.logprobs

    def take(self, data: bytes) -> tuple[Fields, list[Fields]] | None:
        """The record and its choices; None for one that nobody asked for. Raises UpstreamProtocolError: `data` was
        decoded before, but not all the way down."""
        try:
            return self._taken(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamProtocolError("the runtime sent a record with parts that cannot be read") from None

    def _taken(self, data: bytes) -> tuple[Fields, list[Fields]] | None:
        record = fields_decoder.decode(data)
        if "model" in record:
            record["model"] = self._model
        choices = _list_decoder.decode(record["choices"]) if has(record, "choices") else []
        lean = is_lean(record)
        kept = [choice for choice in choices if self._strip(choice, lean)]
        if choices and not kept:
            return None
        if has(record, "usage"):
            self.counted = True
        elif not self._wants_usage:
            record.pop("usage", None)
        return record, kept

    @property
    def _wants_usage(self) -> bool:
        return INCLUDE_USAGE in self.asked.options

    def _strip(self, choice: Fields, lean: bool) -> bool:
        """False when nothing is left of it."""
        scored = has(choice, "logprobs")
        if self._ours and "logprobs" in choice:
            if "text" in choice and not lean:
                choice["logprobs"] = NULL  # where text completions have it, asked for or not
            else:
                del choice["logprobs"]
        elif scored and DEFAULT_TOP not in self.asked.options:
            choice["logprobs"] = _trimmed(choice["logprobs"], self.asked.top_logprobs, lean)
        self.finished = self.finished or has(choice, "finish_reason")
        delta = fields_decoder.decode(choice["delta"]) if has(choice, "delta") else {}
        if self._ours and scored and "delta" in choice and not has(choice, "finish_reason"):
            begins = "role" in delta and bytes(delta.get("content", NULL)) == b"null"  # llama.cpp's first record
            if not begins and not any(has(delta, name) for name in delta if name != "role"):
                self._role = delta.get("role", self._role)
                return False
        if self._role is not None:
            choice["delta"] = raw({"role": self._role} | delta)
            self._role = None
        return True


def _trimmed(scored: msgspec.Raw, top: int, lean: bool) -> msgspec.Raw:
    """Log-probabilities with at most `top` alternatives to each token: entries of chats, or lists of completions."""
    shown = logprobs_decoder.decode(scored)
    for name, entries in shown.items():
        if name == "top_logprobs" and isinstance(entries, list):
            tokens = shown.get("tokens") or []
            shown[name] = [_fewer(one, top, token) for one, token in zip_longest(entries, tokens)][: len(entries)]
        elif isinstance(entries, list):
            for entry in entries:
                if not isinstance(entry, dict) or not isinstance(entry.get("top_logprobs"), list):
                    continue
                entry["top_logprobs"] = entry["top_logprobs"][:top]
                if lean and not top:
                    del entry["top_logprobs"]
    return raw(shown)


def _fewer(alternatives: Any, top: int, token: Any) -> Any:
    """The `top` best, and the token itself where it was among them."""
    if not isinstance(alternatives, dict):
        return alternatives
    ranked = sorted(alternatives.items(), key=lambda item: -item[1])
    keep = {text for text, _ in ranked[:top]} | {token}
    return {text: value for text, value in alternatives.items() if text in keep}
