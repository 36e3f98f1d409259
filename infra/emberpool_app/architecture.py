"""The context's `architecture` in Lambda's type."""

from __future__ import annotations

from aws_cdk import aws_lambda as lambda_


def lambda_architecture(name: str) -> lambda_.Architecture:
    """Return Lambda's architecture for arm64 or x86_64."""
    return lambda_.Architecture.ARM_64 if name == "arm64" else lambda_.Architecture.X86_64
