"""The description and its tables are those of the service's own model, which botocore ships."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
import schemathesis
from botocore.loaders import Loader
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate

from emberpool_proxy.data_endpoint.errors import STATUS, DataError
from emberpool_proxy.data_endpoint.openapi import description, document
from emberpool_proxy.data_endpoint.requests import parse
from emberpool_proxy.data_endpoint.shapes import (
    COMMON_ERRORS,
    OPERATIONS,
    REFUSED_OPERATION,
    REFUSED_PATH,
    SHAPES,
    Listed,
    Plain,
    Shape,
    Structure,
    Text,
)

MODEL: dict[str, Any] = Loader().load_service_model("rds-data", "service-2")
OF_MODEL: dict[str, Any] = MODEL["shapes"]
# The secrets of AWS's Data API and its paused clusters: nothing here can fail in these ways.
NEVER = {
    "SecretsErrorException",
    "HttpEndpointNotEnabledException",
    "DatabaseResumingException",
    "InvalidSecretException",
    "InvalidResourceStateException",
}
IN_NO_MODEL = {"ThrottlingException"}


def in_our_words(shape: dict[str, Any]) -> Shape:
    """Return a shape of the model as our tables have it."""
    match shape["type"]:
        case "structure":
            members = {name: member["shape"] for name, member in shape["members"].items()}
            return Structure(members, tuple(shape.get("required", ())), shape.get("union", False))
        case "list":
            return Listed(shape["member"]["shape"], shape.get("sparse", False))
        case "string":
            return Text(shape.get("min", 0), shape.get("max"), tuple(shape.get("enum", ())))
        case kind:
            return Plain(kind)


def test_operations_are_those_of_the_model() -> None:
    """Names, paths, requests, answers; what is not supported is one operation, and it is withdrawn by AWS."""
    ours = {each.name: (each.path, each.request, each.response) for each in OPERATIONS}
    theirs = {
        name: (each["http"]["requestUri"], each["input"]["shape"], each["output"]["shape"])
        for name, each in MODEL["operations"].items()
        if not each.get("deprecated")
    }
    assert ours == theirs
    assert MODEL["operations"][REFUSED_OPERATION]["http"]["requestUri"] == REFUSED_PATH
    assert {each["http"]["method"] for each in MODEL["operations"].values()} == {"POST"}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shape_is_that_of_the_model(name: str) -> None:
    """Members, what is required, unions, limits and choices: a member that AWS adds makes this test fail."""
    assert SHAPES[name] == in_our_words(OF_MODEL[name])


def test_no_shape_is_missing() -> None:
    """Whatever a supported operation can take or give is described."""
    seen: set[str] = set()
    to_see = [each[side]["shape"] for each in supported() for side in ("input", "output")]
    while to_see:
        name = to_see.pop()
        if name not in seen:
            seen.add(name)
            shape = OF_MODEL[name]
            to_see += [member["shape"] for member in shape.get("members", {}).values()]
            to_see += [shape["member"]["shape"]] if "member" in shape else []
    assert seen == set(SHAPES)


def supported() -> list[dict[str, Any]]:
    return [each for each in MODEL["operations"].values() if not each.get("deprecated")]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_errors_are_those_of_the_model(operation: Any) -> None:
    """Each answer is an exception that boto3 has a type for, under the model's status."""
    theirs = {error["shape"] for error in MODEL["operations"][operation.name]["errors"]}
    assert {*COMMON_ERRORS, *operation.own_errors} == theirs - NEVER | IN_NO_MODEL
    for kind in theirs - NEVER:
        assert STATUS[kind] == OF_MODEL[kind]["error"]["httpStatusCode"]


def test_document_is_valid_openapi() -> None:
    """What the endpoint serves is a right description by OpenAPI's own schema."""
    served = json.loads(document())
    validate(served)
    assert served == description()
    assert len(served["paths"]) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_requests_by_the_description_are_read(operation: Any) -> None:
    """schemathesis can load it, and every request that it makes of it is taken as one."""
    schema = schemathesis.openapi.from_dict(json.loads(document()))
    refused: list[str] = []

    @settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
    @given(case=schema[operation.path]["POST"].as_strategy())
    def is_read(case: Any) -> None:
        try:
            parse(operation.path, orjson.dumps(case.body))
        except DataError as error:
            refused.append(error.message)

    is_read()
    # A schema cannot say that names differ, and takes 1.0 for a whole number.
    assert [message for message in refused if "is there twice" not in message and "got a number" not in message] == []
