"""Lambda functions, their URLs and permissions, and layers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

FUNCTION = "AWS::Lambda::Function"
LAYER = "AWS::Lambda::LayerVersion"
URL = "AWS::Lambda::Url"
PERMISSION = "AWS::Lambda::Permission"
CODE = ("Architectures", "Code")
CONFIGURATION = (
    "Description",
    "Environment",
    "Handler",
    "Layers",
    "LoggingConfig",
    "MemorySize",
    "Role",
    "Runtime",
    "Timeout",
    "VpcConfig",
)
LONGEST_NAME = 64


def register_types() -> None:
    """Teach moto the types of Lambda."""
    register(
        FUNCTION,
        _create_function,
        _delete_function,
        name_property="FunctionName",
        update=_update_function,
        in_place=(*CODE, *CONFIGURATION),
    )
    register(LAYER, _create_layer, _delete_layer)
    register(URL, _create_url, _delete_url, update=_update_url, in_place=("AuthType", "Cors", "InvokeMode"))
    register(PERMISSION, _create_permission, _delete_permission)


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


def _update_function(region: str, name: str, properties: Properties) -> None:
    given = {key: properties[key] for key in CONFIGURATION if key in properties}
    call(region, FUNCTION, "lambda", "update_function_configuration", {"FunctionName": name, **given})
    code = {"FunctionName": name, "Architectures": properties.get("Architectures"), **properties["Code"]}
    if "ZipFile" in code:
        code["ZipFile"] = _zipped(code["ZipFile"])
    call(region, FUNCTION, "lambda", "update_function_code", code)


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


def _create_url(region: str, properties: Properties, _: str) -> Made:
    made = call(region, URL, "lambda", "create_function_url_config", _of_url(properties))
    return Made(made["FunctionArn"], {"FunctionUrl": made["FunctionUrl"], "FunctionArn": made["FunctionArn"]})


def _update_url(region: str, _: str, properties: Properties) -> None:
    call(region, URL, "lambda", "update_function_url_config", _of_url(properties))


def _delete_url(region: str, arn: str, _: Properties) -> None:
    client("lambda", region).delete_function_url_config(FunctionName=arn)


def _of_url(properties: Properties) -> Properties:
    given = dict(properties)
    return {"FunctionName": given.pop("TargetFunctionArn"), **given}


def _create_permission(region: str, properties: Properties, name: str) -> Made:
    call(region, PERMISSION, "lambda", "add_permission", {"StatementId": name, **properties})
    return Made(name, {"Id": name})


def _delete_permission(region: str, name: str, properties: Properties) -> None:
    client("lambda", region).remove_permission(FunctionName=properties["FunctionName"], StatementId=name)
