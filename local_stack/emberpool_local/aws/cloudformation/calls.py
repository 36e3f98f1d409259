"""Calls moto's own API with a template's properties, cast to the shape that botocore declares.

So moto validates what the template says, and what `describe_*` answers later is what was asked for. Properties that
no member of the shape takes are recorded as gaps.
"""

from __future__ import annotations

import json
import re
from typing import Any

import boto3
from botocore.config import Config
from botocore.model import ListShape, MapShape, Shape, StructureShape

from emberpool_local.aws.cloudformation import gaps

Properties = dict[str, Any]

_port = 0
DYNAMIC_SECRET = re.compile(
    r"\{\{resolve:secretsmanager:(arn:[^:]+:secretsmanager:[^:]*:[^:]*:secret:[^:}]+):SecretString:([^:}]*)[^}]*\}\}"
)


def use_port(port: int) -> None:
    """Say where this process's moto listens."""
    global _port  # noqa: PLW0603 (one server per process)
    _port = port


def client(service: str, region: str) -> Any:
    """Return a boto3 client of our own server."""
    return boto3.client(  # type: ignore[call-overload]
        service,
        region_name=region,
        endpoint_url=f"http://127.0.0.1:{_port}",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",  # noqa: S106 (moto's)
        config=Config(retries={"max_attempts": 0}),
    )


def call(region: str, resource_type: str, service: str, operation: str, properties: Properties) -> Any:
    """Call `operation` with the properties that are not None, cast to its input shape."""
    api = client(service, region)
    model = api.meta.service_model.operation_model(api.meta.method_to_api_mapping[operation])
    given = {name: value for name, value in properties.items() if value is not None}
    return getattr(api, operation)(**_Cast(region, resource_type).structure(model.input_shape, given, ""))


class _Cast:
    """Turns CloudFormation's values (mostly strings, upper camel case) into those of one API call."""

    def __init__(self, region: str, resource_type: str) -> None:
        self._region = region
        self._type = resource_type

    def structure(self, shape: StructureShape, value: Properties, path: str) -> Properties:
        members = {name.lower(): name for name in shape.members}
        cast: Properties = {}
        for name, each in value.items():
            member = members.get(name.lower())
            if member is None:
                gaps.record("dropped", self._type, f"{path}{name}")
            else:
                cast[member] = self.value(shape.members[member], each, f"{path}{name}.")
        return cast

    def value(self, shape: Shape, value: Any, path: str) -> Any:
        if isinstance(shape, StructureShape):
            return self.structure(shape, value, path)
        if isinstance(shape, ListShape):
            return [self.value(shape.member, each, path) for each in (value if isinstance(value, list) else [value])]
        if isinstance(shape, MapShape):
            pairs = {each["Key"]: each["Value"] for each in value} if isinstance(value, list) else value
            return {str(name): self.value(shape.value, each, path) for name, each in pairs.items()}
        return self._scalar(shape.type_name, value)

    def _scalar(self, kind: str, value: Any) -> Any:
        if kind in ("integer", "long"):
            return int(value)
        if kind in ("float", "double"):
            return float(value)
        if kind == "boolean":
            return value if isinstance(value, bool) else str(value).lower() == "true"
        if kind != "string":
            return value
        if isinstance(value, (dict, list)):
            return json.dumps(value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return DYNAMIC_SECRET.sub(self._secret, text)

    def _secret(self, reference: re.Match[str]) -> str:
        answer = client("secretsmanager", self._region).get_secret_value(SecretId=reference.group(1))
        secret: str = answer["SecretString"]
        return str(json.loads(secret)[reference.group(2)]) if reference.group(2) else secret
