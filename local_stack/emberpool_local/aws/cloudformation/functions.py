"""Lambda functions, layers, versions and aliases."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

FUNCTION = "AWS::Lambda::Function"
LAYER = "AWS::Lambda::LayerVersion"
LONGEST_NAME = 64


def register_types() -> None:
    """Teach moto the types of Lambda."""
    register(FUNCTION, _create_function, _delete_function, name_property="FunctionName")
    register(LAYER, _create_layer, _delete_layer)


def _create_function(region: str, properties: Properties, name: str) -> Made:
    given = {"FunctionName": name[:LONGEST_NAME], **properties}
    reserved = given.pop("ReservedConcurrentExecutions", None)
    if "ZipFile" in given["Code"]:
        given["Code"] = {"ZipFile": _zipped(given["Code"]["ZipFile"])}
    made: dict[str, Any] = call(region, FUNCTION, "lambda", "create_function", given)
    if reserved is not None:
        client("lambda", region).put_function_concurrency(
            FunctionName=made["FunctionName"], ReservedConcurrentExecutions=int(reserved)
        )
    return Made(made["FunctionName"], {"Arn": made["FunctionArn"]})


def _zipped(source: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("index.py", source)
    return content.getvalue()


def _delete_function(region: str, name: str, _: Properties) -> None:
    client("lambda", region).delete_function(FunctionName=name)


def _create_layer(region: str, properties: Properties, name: str) -> Made:
    answer = call(region, LAYER, "lambda", "publish_layer_version", {"LayerName": name, **properties})
    return Made(answer["LayerVersionArn"], {"LayerVersionArn": answer["LayerVersionArn"]})


def _delete_layer(region: str, arn: str, _: Properties) -> None:
    *_start, name, version = arn.split(":")
    client("lambda", region).delete_layer_version(LayerName=name, VersionNumber=int(version))
