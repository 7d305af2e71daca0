"""What is said of a body that does not fit: the field first, then what would fit, and nothing that was sent."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from engine.domain.errors import InvalidRequest
from transport.wire.request_json import decode

SECRET = "s3cret"


class Inner(msgspec.Struct, tag="inner"):
    y: int


class Other(msgspec.Struct, tag="other"):
    pass


class Body(msgspec.Struct, forbid_unknown_fields=True):
    a: Annotated[int, msgspec.Meta(ge=1)]
    inner: list[Inner | Other] = []
    named: dict[str, float | None] = {}
    word: Literal["x", "y"] = "x"
    text: Annotated[str, msgspec.Meta(max_length=3)] | None = None


decoder = msgspec.json.Decoder(Body)


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ("{}", "a", "is missing"),
        ("[]", "body", "must be an object, not a list"),
        ('{"a":0}', "a", "must be a whole number >= 1"),
        ('{"a":"s3cret"}', "a", "must be a whole number, not a text"),
        ('{"a":1,"zz":"s3cret"}', "zz", "there is no such field"),
        ('{"a":1,"inner":[{"type":"inner","y":true}]}', "inner[0].y", "must be a whole number, not true or false"),
        ('{"a":1,"inner":[{"type":"inner"}]}', "inner[0].y", "is missing"),
        ('{"a":1,"inner":[{"type":"s3cret"}]}', "inner[0].type", "is none of the values it may have"),
        ('{"a":1,"named":{"s3cret":[]}}', "named[...]", "must be a number or null, not a list"),
        ('{"a":1,"word":"s3cret"}', "word", "is none of the values it may have"),
        ('{"a":1,"text":"s3cret"}', "text", "must be a text of length <= 3"),
    ],
)
def test_the_field_is_named_and_what_would_fit(body: str, field: str, said: str):
    with pytest.raises(InvalidRequest) as refusal:
        decode(body.encode(), decoder)
    assert refusal.value.message == f"{field}: {said}"
    assert refusal.value.details == {"field": field}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":1}{}', "not valid JSON"),
        (b'{"a":1,"text":"\xff"}', "not UTF-8 at byte 15"),
    ],
)
def test_what_is_no_json_at_all(body: bytes, said: str):
    with pytest.raises(InvalidRequest, match=said):
        decode(body, decoder)
