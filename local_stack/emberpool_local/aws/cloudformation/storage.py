"""The types of the bootstrap stack that are accepted without effect."""

from __future__ import annotations

from emberpool_local.aws.cloudformation.resource import register_nothing


def register_types() -> None:
    """Accept the bucket policy and the CDK's own metadata."""
    # moto enforces Deny but ignores Condition: the CDK's policy against plain HTTP would block every upload.
    register_nothing("AWS::S3::BucketPolicy")
    register_nothing("AWS::CDK::Metadata")
