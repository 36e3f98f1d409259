"""The endpoint's description in OpenAPI 3.1, made from the tables of shapes.py by which requests are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import orjson

from emberpool_proxy.data_endpoint.errors import STATUS
from emberpool_proxy.data_endpoint.fields import NOT_A_NUMBER
from emberpool_proxy.data_endpoint.requests import MOST_PARAMETERS, MOST_SETS
from emberpool_proxy.data_endpoint.shapes import (
    COMMON_ERRORS,
    LARGEST_LONG,
    OPERATIONS,
    SHAPES,
    SMALLEST_LONG,
    Listed,
    Operation,
    Plain,
    Shape,
    Structure,
    Text,
)

API_VERSION = "2018-08-01"
_NO_NUL = r"^[^\x00]*$"  # neither SQL nor a value of PostgreSQL's may have one
_JSON = "application/json"
_DESCRIPTION = (
    "The RDS Data API for the database behind this pool. Requests are signed by AWS Signature Version 4 for the "
    "service rds-data: the access key id is a client user of the pool, the secret access key its password. resourceArn "
    "and secretArn are needed, but any will do. A request that is sent again with the same amz-sdk-invocation-id gets "
    "the first answer. ExecuteSql is not supported."
)
_PLAIN: Final[Mapping[str, Mapping[str, Any]]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "format": "int32"},
    "long": {"type": "integer", "format": "int64", "minimum": SMALLEST_LONG, "maximum": LARGEST_LONG},
    "double": {"anyOf": [{"type": "number", "format": "double"}, {"enum": sorted(NOT_A_NUMBER)}]},
    "blob": {"type": "string", "contentEncoding": "base64"},
}
# What is asked for beyond the service's model, by shape.
_NARROWER: Final[Mapping[str, Mapping[str, Any]]] = {
    "Id": {"minLength": 1},
    "ParameterName": {"minLength": 1},
    "SqlParameter": {"required": ["name"]},
    "SqlParametersList": {"maxItems": MOST_PARAMETERS},
    "SqlParameterSets": {"maxItems": MOST_SETS},
}
_NULL: Final[Mapping[str, Any]] = {"type": "null"}


@cache
def document() -> bytes:
    """Return the description as JSON."""
    return orjson.dumps(description())


def description() -> dict[str, Any]:
    """Return the description: an OpenAPI document as JSON has it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "emberpool data endpoint", "version": API_VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"signature": []}],
        "paths": {operation.path: {"post": _operation(operation)} for operation in OPERATIONS},
        "components": {
            "securitySchemes": {
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "AWS Signature Version 4",
                }
            },
            "schemas": {**{name: _schema(name, shape) for name, shape in SHAPES.items()}, "Error": _ERROR},
        },
    }


_ERROR: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "message": {"type": "string"},
        "dbConnectionId": {"type": "integer", "description": "of a StatementTimeoutException"},
    },
    "required": ["message"],
}


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _reference(operation.request)}}},
        "responses": {
            "200": {"description": "done", "content": {_JSON: {"schema": _reference(operation.response)}}},
            **_errors((*COMMON_ERRORS, *operation.own_errors)),
        },
    }


def _errors(kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the answers that are errors: several kinds may have one status, a header says which it is."""
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(STATUS[kind], []).append(kind)
    return {
        str(status): {
            "description": ", ".join(sorted(found)),
            "headers": {"x-amzn-ErrorType": {"schema": {"type": "string", "enum": sorted(found)}}},
            "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, found in sorted(by_status.items())
    }


def _schema(name: str, shape: Shape) -> dict[str, Any]:
    narrower = _NARROWER.get(name, {})
    if isinstance(shape, Plain):
        return {**_PLAIN[shape.kind], **narrower}
    if isinstance(shape, Listed):
        item = _reference(shape.of)
        items = {"anyOf": [item, _NULL]} if shape.is_sparse else item
        return {"type": "array", "items": items, **narrower}
    if isinstance(shape, Structure):
        return {**_structure(name, shape), **narrower}
    return {**_text(shape), **narrower}


def _text(shape: Text) -> dict[str, Any]:
    if shape.values:
        return {"type": "string", "enum": list(shape.values)}
    schema: dict[str, Any] = {"type": "string", "minLength": shape.shortest, "pattern": _NO_NUL}
    return schema if shape.longest is None else {**schema, "maxLength": shape.longest}


def _structure(name: str, shape: Structure) -> dict[str, Any]:
    properties: dict[str, Any] = {member: _reference(of) for member, of in shape.members.items()}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if shape.is_union:
        if "isNull" in properties:
            properties["isNull"] = {"const": True}
        return {**schema, "minProperties": 1, "maxProperties": 1}
    needed = {*shape.required, *_NARROWER.get(name, {}).get("required", ())}
    for member in properties.keys() - needed:
        properties[member] = {"anyOf": [properties[member], _NULL]}  # as if it were not there
    return {**schema, "required": sorted(needed)} if needed else schema


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
