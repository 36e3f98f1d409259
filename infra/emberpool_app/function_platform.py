"""The context's `architecture` and `runtime` in Lambda's types."""

from __future__ import annotations

from aws_cdk import aws_lambda as lambda_


def lambda_architecture(name: str) -> lambda_.Architecture:
    """Return Lambda's architecture for arm64 or x86_64."""
    return lambda_.Architecture.ARM_64 if name == "arm64" else lambda_.Architecture.X86_64


def lambda_runtime(name: str) -> lambda_.Runtime:
    """Return Lambda's runtime for a name such as python3.13."""
    runtime: lambda_.Runtime = getattr(lambda_.Runtime, name.upper().replace("PYTHON", "PYTHON_").replace(".", "_"))
    return runtime
