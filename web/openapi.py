"""The OpenAPI 3.1 document of every call, made from the published schemas and the tables of calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from engine.domain.errors import (
    EngineError,
    Forbidden,
    ForbiddenOrigin,
    InternalError,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
)
from transport.wire.frames import SCHEMA_VERSION
from transport.wire.json_schema import Documents, Json
from web.api_calls import JSON, NATIVE, NDJSON, SSE, TAGS, TEXT, Answer, Body, Call, Schema
from web.http_faults import HeadTooLarge
from web.lens_calls import LENS, REFUSALS, lens_call

OPENAPI_VERSION: Final = "3.1.1"
ANY_REQUEST: Final = (InvalidRequest, Unauthorized, Forbidden, ForbiddenOrigin, InternalError, Overloaded)
ANY_BODY: Final = (RequestTimeout, PayloadTooLarge, UnsupportedMediaType)

_ABOUT: Final = (
    "What the engine answers on its HTTP port. Live measurements and every event come over the WebSocket that "
    "`ws_url` in the answer of `POST /generate` names; what is said there is in `GET /schemas`.\n\n"
    "Only programs on this machine may call, under the names 127.0.0.1, localhost and [::1]. A path with GET answers "
    "HEAD too; any other method is answered with 405 and `allow`."
)
_HEADERS: Final[Mapping[str, Json]] = {
    "x-request-id": {
        "description": "the caller's own, if it sent a valid one; it is in the log too",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "x-schema-version": {
        "description": "of all that is said; a reader of one minor version can read the later ones",
        "required": True,
        "schema": {"const": SCHEMA_VERSION},
    },
}
_DATA: Final = ("examples", "enum", "const", "default")  # keywords that hold no schema
_RETRY_AFTER: Final = {"description": "seconds to wait, where that is known", "schema": {"type": "string"}}


def all_calls() -> tuple[Call, ...]:
    return NATIVE + tuple(lens_call(row) for row in LENS)


def openapi_document(
    documents: Documents, calls: Iterable[Call] | None = None, title: str = "WF Engine", about: str = _ABOUT
) -> Json:
    """The OpenAPI document of `calls` (all of the engine's own port). `documents` are the published schemas; those that
    the calls name are copied into it with everything they refer to. Raises KeyError for one that is not there."""
    parts, paths = _Components(documents), dict[str, Json]()
    described = all_calls() if calls is None else tuple(calls)
    for call in described:
        item = paths.setdefault(call.path, {"parameters": [{"$ref": "#/components/parameters/request-id"}]})
        item[call.method.lower()] = _operation(call, parts)
    used = {call.tag for call in described}
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": title,
            "version": SCHEMA_VERSION,
            "description": about,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this engine"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [{"name": tag, "description": doc} for tag, doc in TAGS.items() if tag in used],
        "paths": paths,
        "components": parts.as_dict(),
    }


@attrs.define(eq=False)
class _Components:
    """What operations refer to; filled as they are described."""

    _documents: Documents
    _schemas: Json = attrs.field(factory=dict)
    _responses: Json = attrs.field(factory=dict)

    def schema(self, schema: Schema) -> Json:
        """A reference to a published schema of this name; any other schema as it is."""
        if not isinstance(schema, str):
            return schema
        if schema not in self._schemas:
            whole = dict(self._documents[schema])
            for name, definition in whole.pop("$defs", {}).items():
                self._schemas[f"{schema}.{name}"] = _rebased(definition, schema)
            for own in ("$schema", "$id"):  # it is no document of its own here
                whole.pop(own, None)
            self._schemas[schema] = _rebased(whole, schema)
        return {"$ref": f"#/components/schemas/{schema}"}

    def refusal(self, status: int, codes: list[str], tag: str) -> Json:
        """A reference to the answer with this status, whose code is one of `codes`; where the tag is a dialect's, the
        body may also be its own."""
        other = REFUSALS.get(tag)
        name = ".".join([str(status), *codes, *(() if other is None else (tag,))])
        if name not in self._responses:
            narrowed = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
            native = {"allOf": [self.schema("error"), narrowed]}
            headers = _header_references()
            if status == Overloaded.status:
                headers["retry-after"] = _RETRY_AFTER
            self._responses[name] = {
                "description": ", ".join(f"`{code}`" for code in codes),
                "headers": headers,
                "content": {JSON: {"schema": native if other is None else {"anyOf": [native, other]}}},
            }
        return {"$ref": f"#/components/responses/{name}"}

    def as_dict(self) -> Json:
        return {
            "schemas": dict(sorted(self._schemas.items())),
            "responses": dict(sorted(self._responses.items())),
            "parameters": {
                "request-id": {
                    "name": "x-request-id",
                    "in": "header",
                    "description": "a name for this request: letters, digits and `._-`, at most 128; else one is made",
                    "schema": TEXT,
                }
            },
            "headers": dict(_HEADERS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "needed only with `api_keys`"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same, otherwise"},
            },
        }


def _operation(call: Call, parts: _Components) -> Json:
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{call.method.lower()} {call.path}").strip("_"),
        "tags": [call.tag],
        "summary": call.summary,
    }
    if call.doc:
        operation["description"] = call.doc
    if call.parameters:
        operation["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.doc,
                "example": parameter.example,
                "schema": parameter.schema,
            }
            for parameter in call.parameters
        ]
    if call.takes is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": parts.schema(call.takes)}}}
    responses = {str(answer.status): _answer(answer, parts) for answer in call.answers} | _refusals(call, parts)
    return operation | {"responses": responses}


def _answer(answer: Answer, parts: _Components) -> Json:
    headers = _header_references() | {
        name: {"description": doc, "required": answer.always, "schema": TEXT} for name, doc in answer.headers.items()
    }
    described: Json = {"description": answer.doc, "headers": headers}
    if answer.bodies:
        described["content"] = {body.content_type: _media(body, parts) for body in answer.bodies}
    return described


def _media(body: Body, parts: _Components) -> Json:
    """OpenAPI 3.1 has no word for streams; as others do, the schema is that of one line or event."""
    schema = parts.schema(body.schema)
    if body.content_type == NDJSON:
        return {"schema": schema, "x-each": "line"}
    if body.content_type == SSE:
        data: Json = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
        if body.end is not None:
            data = {"anyOf": [{"const": body.end}, data]}
        event = {"type": "object", "required": ["data"], "properties": {"event": TEXT, "id": TEXT, "data": data}}
        return {"schema": event, "x-each": "event"}
    return {"schema": schema}


def _refusals(call: Call, parts: _Components) -> Json:
    errors: set[type[EngineError]] = {*ANY_REQUEST, *call.errors, *(() if call.takes is None else ANY_BODY)}
    codes: dict[int, set[str]] = {HeadTooLarge.status: {HeadTooLarge.code}}
    for error in errors:
        codes.setdefault(error.status, set()).add(error.code)
    found = {str(status): parts.refusal(status, sorted(codes[status]), call.tag) for status in sorted(codes)}
    if call.forwards:
        for statuses in ("4XX", "5XX"):
            found[statuses] = {
                "description": "the runtime's own refusal, as it came",
                "headers": _header_references(),
                "content": {"*/*": {"schema": {}}},
            }
    return found


def _header_references() -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}


def _rebased(schema: Any, document: str) -> Any:
    """The schema with its references to `$defs` of `document` turned to where they are here."""
    if isinstance(schema, list):
        return [_rebased(part, document) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if key == "$ref":
            moved[key] = value.replace("#/$defs/", f"#/components/schemas/{document}.")
        elif key == "properties":  # names of fields, which may be any of these words
            moved[key] = {name: _rebased(field, document) for name, field in value.items()}
        else:
            moved[key] = value if key in _DATA else _rebased(value, document)
    return moved
