"""What a request's body may be: each member of the service's model is read, anything else is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import boto3
import orjson
import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proxy_service.data_endpoint.signed import response

from emberpool_proxy.data_endpoint.calls import (
    BatchExecuteStatement,
    BeginTransaction,
    Call,
    CommitTransaction,
    ExecuteStatement,
    Parameter,
    Place,
    RollbackTransaction,
)
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.requests import MOST_PARAMETERS, MOST_SETS, parse

MODEL = ServiceModel(Loader().load_service_model("rds-data", "service-2"))
ARN = "arn:aws:rds:eu-west-1:123456789012:cluster:c"
ARNS = {"resourceArn": ARN, "secretArn": ARN}
FIELDS = [*MODEL.shape_for("Field").members, *MODEL.shape_for("ArrayValue").members]
PATHS = {name: MODEL.operation_model(name).http["requestUri"] for name in MODEL.operation_names}


def execute(**members: Any) -> Call:
    return parse("/Execute", orjson.dumps({**ARNS, "sql": "select 1", **members}))


def value(field: Any) -> Any:
    call = execute(parameters=[{"name": "a", "value": field}])
    assert isinstance(call, ExecuteStatement)
    return call.parameters[0].value


def refusal(path: str, body: Any, kind: str = "BadRequestException") -> str:
    with pytest.raises(DataError) as caught:
        parse(path, body if isinstance(body, bytes) else orjson.dumps(body))
    assert caught.value.kind == kind
    assert caught.value.__cause__ is None  # the parser's errors hold the request
    return caught.value.message


def error_of(path: str, body: bytes) -> str:
    try:
        parse(path, body)
    except DataError as error:
        return error.kind
    return ""


def wrong(**members: Any) -> str:
    return refusal("/Execute", {**ARNS, "sql": "select 1", **members})


def wrong_value(field: Any) -> str:
    return wrong(parameters=[{"name": "fine"}, {"name": "a", "value": field}])


def sent_by_boto3(operation: str, **members: Any) -> Call:
    """Return the call that boto3's client makes of the members."""
    calls = []

    def send(request: Any, **_: object) -> Any:
        calls.append(parse(request.url.removeprefix("https://pool.example"), request.body))
        return response(200, "", b"{}")

    client: Any = boto3.Session("a", "b", region_name="eu-west-1").client(
        "rds-data", endpoint_url="https://pool.example"
    )
    client.meta.events.register("before-send.rds-data", send)
    getattr(client, operation)(**ARNS, **members)
    return calls[0]


def test_every_member_of_a_statement_is_read() -> None:
    """As boto3 sends them, all at once."""
    call = sent_by_boto3(
        "execute_statement",
        sql="select :a",
        database="main",
        schema="private",
        transactionId="t",
        parameters=[
            {"name": "a", "value": {"longValue": -5}, "typeHint": "DECIMAL"},
            {"name": "b", "value": {"blobValue": b"\0\xff"}},
            {"name": "c", "value": {"doubleValue": float("-inf")}},
            {"name": "d"},
        ],
        includeResultMetadata=True,
        continueAfterTimeout=True,
        resultSetOptions={"longReturnType": "STRING", "decimalReturnType": "DOUBLE_OR_LONG"},
        formatRecordsAs="JSON",
    )
    assert call == ExecuteStatement(
        "select :a",
        Place("main", "private", "t"),
        (
            Parameter("a", {"longValue": -5}, "DECIMAL"),
            Parameter("b", {"blobValue": "AP8="}),
            Parameter("c", {"doubleValue": "-Infinity"}),
            Parameter("d", None),
        ),
        includes_metadata=True,
        continues_after_timeout=True,
        as_json=True,
        long_as_text=True,
        decimal_as_number=True,
    )


def test_other_operations_are_read() -> None:
    """The four calls beside ExecuteStatement, with all that they may have."""
    sets = [[], [{"name": "a", "value": {"isNull": True}}]]
    place = {"database": "main", "schema": "private"}
    batch = sent_by_boto3("batch_execute_statement", sql="x", parameterSets=sets, transactionId="t", **place)
    assert batch == BatchExecuteStatement("x", Place("main", "private", "t"), ((), (Parameter("a", {"isNull": True}),)))
    assert sent_by_boto3("begin_transaction", **place) == BeginTransaction(Place("main", "private"))
    assert sent_by_boto3("commit_transaction", transactionId="t") == CommitTransaction("t")
    assert sent_by_boto3("rollback_transaction", transactionId="t") == RollbackTransaction("t")


@pytest.mark.parametrize("nothing", [{}, {"parameters": None, "formatRecordsAs": None, "transactionId": None}])
def test_what_is_left_out_or_null_has_its_default(nothing: dict[str, None]) -> None:
    """JSON's null is as if the member were not there, as in AWS's protocol."""
    assert execute(**nothing) == ExecuteStatement("select 1")


@pytest.mark.parametrize("operation", sorted(set(PATHS) - {"ExecuteSql"}))
def test_every_member_of_the_model_is_known_and_checked(operation: str) -> None:
    """Each member of the model takes part: with a wrong type it is named, and what the model lacks is unknown."""
    shape = MODEL.operation_model(operation).input_shape
    fine = {**ARNS, **{name: "x" for name in shape.required_members if not name.endswith("Arn")}}
    parse(PATHS[operation], orjson.dumps(fine))
    for member in shape.members:
        assert member in refusal(PATHS[operation], {**fine, member: {"x": 1} if member.endswith("s") else 7})
    for member in shape.required_members:
        left = {name: content for name, content in fine.items() if name != member}
        assert refusal(PATHS[operation], left) == f"{member} must be a string, got nothing"
    assert "unknown member 'strange'" in refusal(PATHS[operation], {**fine, "strange": 1})


def test_likely_member_is_named() -> None:
    """A slip of the pen is told what is meant."""
    assert wrong(transactionID="t") == "the request has the unknown member 'transactionID' (is transactionId meant?)"
    assert wrong_value({"stringvalue": "x"}).endswith("unknown member 'stringvalue' (is stringValue meant?)")


def test_execute_sql_names_what_to_use() -> None:
    """The one operation that is not supported says so."""
    message = refusal("/ExecuteSql", {"dbClusterOrInstanceArn": ARN, "awsSecretStoreArn": ARN, "sqlStatements": "x"})
    assert message.startswith("ExecuteSql is not supported, as AWS has withdrawn it: use ExecuteStatement")


@pytest.mark.parametrize("path", ["/", "/execute", "/Execute/", "/Execute/x", "/x" * 5000])
def test_other_path_is_not_found(path: str) -> None:
    """The paths that there are stand in the message."""
    message = refusal(path, ARNS, "NotFoundException")
    assert "/Execute, /BatchExecute, /BeginTransaction" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"{}{}", "the body is not JSON"),
        (b'{"sql": NaN}', "the body is not JSON"),
        (b'{"sql": "\\ud800"}', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON: depth limit"),
        (b'{"a":' * 100_000, "the body is not JSON: depth limit"),
        (b"[]", "the body must be a JSON object, got a list"),
        (b"null", "the body must be a JSON object, got nothing"),
        (b'"x"', "the body must be a JSON object, got a string"),
    ],
)
def test_malformed_body_is_one_clear_error(body: bytes, message: str) -> None:
    """Broken, of another kind or as deep as a request may be long: nothing but this error."""
    assert refusal("/Execute", body).startswith(message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"sql": "x" * 65_537}, "sql must have at most 65536 characters, got 65537"),
        ({"sql": "\0"}, "sql has a NUL character"),
        ({"database": "x" * 65}, "database must have at most 64 characters, got 65"),
        ({"schema": "a\0"}, "schema has a NUL character"),
        ({"transactionId": ""}, "transactionId is empty: leave it out to run a statement in no transaction"),
        ({"transactionId": "x" * 193}, "transactionId must have at most 192 characters, got 193"),
        ({"resourceArn": "short"}, "resourceArn must have 11 to 570 characters, got 5"),
        ({"secretArn": "x" * 571}, "secretArn must have 11 to 570 characters, got 571"),
        ({"formatRecordsAs": "CSV"}, "formatRecordsAs must be one of NONE, JSON, got 'CSV'"),
        (
            {"resultSetOptions": {"longReturnType": "LONGER"}},
            "resultSetOptions.longReturnType must be one of STRING",
        ),
        (
            {"resultSetOptions": {"decimalReturnType": []}},
            "resultSetOptions.decimalReturnType must be one of STRING",
        ),
        ({"resultSetOptions": {"x": 1}}, "resultSetOptions has the unknown member 'x'"),
        ({"includeResultMetadata": "true"}, "includeResultMetadata must be a boolean, got a string"),
        ({"parameters": [1]}, "parameters[0] must be an object, got a number"),
        ({"parameters": [{"name": "a"}, {}]}, "parameters[1].name must be a string that is not empty, got nothing"),
        ({"parameters": [{"name": ""}]}, "parameters[0].name must be a string that is not empty, got ''"),
        ({"parameters": [{"name": "a"}, {"name": "a"}]}, "parameters[1].name: 'a' is there twice"),
        ({"parameters": [{"name": "a", "typeHint": "INT"}]}, "parameters[0].typeHint must be one of JSON, UUID"),
        ({"parameters": [{"name": "a", "typeHint": []}]}, "parameters[0].typeHint must be one of JSON, UUID"),
        ({"parameters": [{"name": "a", "x": 1}]}, "parameters[0] has the unknown member 'x'"),
        ({"parameters": [{}] * (MOST_PARAMETERS + 1)}, "parameters must have at most 65535 parameters, got 65536"),
        ({"x" * 100_000: 1}, "the request has the unknown member 'xxx"),
    ],
)
def test_wrong_member_is_named(members: dict[str, Any], message: str) -> None:
    """The message says which member it is, what it has and what it may have; it is short whatever was sent."""
    found = wrong(**members)
    assert found.startswith(message)
    assert len(found) < 400


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "parameterSets must be a list, got an object"),
        ([[], {}], "parameterSets[1] must be a list, got an object"),
        ([[], None], "parameterSets[1] must be a list, got nothing"),
        ([[], [{"name": "a", "value": {}}]], "parameterSets[1][0].value must have exactly one of isNull, booleanValue"),
    ],
)
def test_wrong_set_is_named(sets: Any, message: str) -> None:
    """The set and the parameter in it are told by their positions."""
    assert refusal("/BatchExecute", {**ARNS, "sql": "x", "parameterSets": sets}).startswith(message)


def test_thousands_of_sets_are_one_call_but_not_any_number() -> None:
    """AWS has no limit but the request's size: a million sets in 4 MiB were 3.8 GB of memory and half a minute."""
    members = {**ARNS, "sql": "x", "parameterSets": [[]] * MOST_SETS}
    call = parse("/BatchExecute", orjson.dumps(members))
    assert isinstance(call, BatchExecuteStatement)
    assert len(call.parameter_sets) == MOST_SETS
    message = refusal("/BatchExecute", {**members, "parameterSets": [[]] * (MOST_SETS + 1)})
    assert message.startswith(f"parameterSets must have at most {MOST_SETS} sets, got {MOST_SETS + 1}")


@pytest.mark.parametrize(
    "field",
    [
        {"isNull": True},
        {"booleanValue": False},
        {"longValue": -(2**63)},
        {"longValue": 2**63 - 1},
        {"doubleValue": 1.5},
        {"doubleValue": 1},
        {"doubleValue": "NaN"},
        {"stringValue": ""},
        {"stringValue": "\\u0000"},
        {"blobValue": "AP8="},
        {"arrayValue": {"booleanValues": [True, None]}},
        {"arrayValue": {"longValues": []}},
        {"arrayValue": {"doubleValues": [1.5, "Infinity", None]}},
        {"arrayValue": {"stringValues": ["a", None]}},
        {"arrayValue": {"arrayValues": [{"longValues": [1]}, {"longValues": [2]}, None]}},
    ],
)
def test_value_of_each_kind_is_taken_as_it_is(field: dict[str, Any]) -> None:
    """What the value means to PostgreSQL is not decided here."""
    assert value(field) == field


def nested(dimensions: int) -> dict[str, Any]:
    return {"longValues": [1]} if dimensions == 1 else {"arrayValues": [nested(dimensions - 1)]}


def test_arrays_have_as_many_dimensions_as_postgresql_allows() -> None:
    """Six; one more is refused before anything is made of it."""
    assert value({"arrayValue": nested(6)})
    assert "is too deep: an array has at most 6 dimensions" in wrong_value({"arrayValue": nested(7)})
    assert "is too deep" in wrong_value({"arrayValue": nested(50)})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("x", " must be an object, got a string"),
        ({}, " must have exactly one of isNull, booleanValue, longValue"),
        ({"longValue": 1, "isNull": False}, " must have exactly one of isNull, booleanValue, longValue"),
        ({"isNull": False}, ".isNull must be true, got false: leave it out"),
        ({"isNull": "x"}, ".isNull must be true, got a string"),
        ({"booleanValue": 1}, ".booleanValue must be a boolean, got a number"),
        ({"longValue": True}, ".longValue must be a whole number of 64 bits, got a boolean"),
        ({"longValue": 1.0}, ".longValue must be a whole number of 64 bits, got a number"),
        ({"longValue": "1"}, ".longValue must be a whole number of 64 bits, got a string"),
        ({"longValue": 2**63}, ".longValue must be between -9223372036854775808 and 9223372036854775807, got 92"),
        ({"doubleValue": "nan"}, ".doubleValue must be a number, 'NaN', 'Infinity' or '-Infinity', got a string"),
        ({"doubleValue": True}, ".doubleValue must be a number, 'NaN', 'Infinity' or '-Infinity', got a boolean"),
        ({"stringValue": 1}, ".stringValue must be a string, got a number"),
        ({"stringValue": None}, ".stringValue must be a string, got nothing"),
        ({"stringValue": "a\0b"}, ".stringValue has a NUL character, which PostgreSQL's text cannot hold"),
        ({"blobValue": []}, ".blobValue must be a string, got a list"),
        ({"arrayValue": []}, ".arrayValue must be an object, got a list"),
        ({"arrayValue": {"x": []}}, ".arrayValue has the unknown member 'x'"),
        ({"arrayValue": {"longValues": [], "stringValues": []}}, ".arrayValue must have exactly one of booleanValues"),
        ({"arrayValue": {"longValues": {}}}, ".arrayValue.longValues must be a list, got an object"),
        (
            {"arrayValue": {"longValues": [1, "x"]}},
            ".arrayValue.longValues[1] must be a whole number of 64 bits, got a",
        ),
        ({"arrayValue": {"stringValues": ["\0"]}}, ".arrayValue.stringValues[0] has a NUL character"),
        (
            {"arrayValue": {"arrayValues": [{"booleanValues": [0]}]}},
            ".arrayValue.arrayValues[0].booleanValues[0] must be a boolean, got a number",
        ),
    ],
)
def test_wrong_value_is_named_and_not_shown(field: Any, message: str) -> None:
    """The way to it is exact; a string that was sent is never repeated, as it may be a secret."""
    assert wrong_value(field).startswith(f"parameters[1].value{message}")


def test_number_too_large_for_a_long_is_refused_however_large() -> None:
    """Beyond 64 bits JSON's parser makes a float of it: no digit is lost silently."""
    body = json.dumps({**ARNS, "sql": "x", "parameters": [{"name": "a", "value": {"longValue": 10**30}}]})
    assert "must be a whole number of 64 bits" in refusal("/Execute", body.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = sorted({name for each in PATHS for name in MODEL.operation_model(each).input_shape.members})


@settings(max_examples=150)
@given(path=st.sampled_from(sorted(PATHS.values())), members=st.dictionaries(st.sampled_from(MEMBERS), JSON))
def test_no_json_is_more_than_a_clear_error(path: str, members: dict[str, Any]) -> None:
    """Whatever a member holds, it is either read or BadRequestException."""
    for body in (members, {**ARNS, "sql": "x", **members}):
        assert error_of(path, json.dumps(body).encode()) in {"", "BadRequestException"}


@settings(max_examples=150)
@given(st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(sorted(FIELDS)), inner), max_leaves=6))
def test_no_value_is_more_than_a_clear_error(field: Any) -> None:
    """The members of a value in any order and depth."""
    body = json.dumps({**ARNS, "sql": "x", "parameters": [{"name": "a", "value": field}]}).encode()
    assert error_of("/Execute", body) in {"", "BadRequestException"}


@settings(max_examples=150)
@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_are_more_than_a_clear_error(body: bytes) -> None:
    """Bytes that are no JSON, or no request, are told so."""
    assert error_of("/Execute", body) == "BadRequestException"
