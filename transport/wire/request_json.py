"""The JSON bodies of requests, whatever their dialect: decoded typed, and refused in one way. Without IO."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from engine.domain.errors import InvalidRequest
from transport.wire.commands import misfit
from transport.wire.nesting import refuse_deep

T = TypeVar("T")

_PLACE: Final = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_NAMED: Final = re.compile(r"(missing required|contains unknown) field `([^`]+)`")
_TYPES: Final = re.compile(r"`([a-z |]+)`")
_IN_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The body of a request. Raises InvalidRequest that names the field and repeats nothing."""
    refuse_deep(body)
    try:
        str(body, "utf-8")  # the decoder does not look into the strings it skips, and they are carried on
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise unfit(error) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("the body is not valid JSON (nor is NaN)") from None


def unfit(error: msgspec.ValidationError) -> InvalidRequest:
    """A decoder's verdict as a refusal: `field: what is wrong with it`, the field also in the details."""
    said = misfit(error)
    found = _PLACE.search(said)
    field, said = found[1] if found else "", _PLACE.sub("", said)
    if named := _NAMED.search(said):
        field = f"{field}.{named[2]}" if field else named[2]
        said = "is missing" if named[1].startswith("missing") else "there is no such field"
    elif said.startswith("Invalid "):
        said = "is none of the values it may have"
    said = _TYPES.sub(_in_words, said).replace("Expected ", "must be ").replace(", got ", ", not ")
    return InvalidRequest(f"{field or 'body'}: {said}", field=field or "body")


def _in_words(types: re.Match[str]) -> str:
    return " or ".join(_IN_WORDS.get(name, name) for name in types[1].split(" | "))
