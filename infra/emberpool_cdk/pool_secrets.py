"""The pool's own secrets, the functions' password and the proxy's CA, and who may read and write them."""

from __future__ import annotations

import json

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from emberpool_cdk.explained_findings import explain

CLIENT_USER = "emberpool"
CLIENT_SECRET_CHARACTERS = 48  # letters and digits: 285 bits
CA_PLACEHOLDER = "placeholder"  # what the proxy takes for an empty secret
TO_ENCRYPT = ("kms:Decrypt", "kms:GenerateDataKey")  # what PutSecretValue asks for


def make_client_secret(scope: Construct, key: kms.IKey | None, user: str = CLIENT_USER) -> secretsmanager.Secret:
    """Make the secret that functions log in with; the proxy adds its CA's certificate to it."""
    secret = secretsmanager.Secret(
        scope,
        "ClientSecret",
        description="What functions log in with at the emberpool proxy, and its CA's certificate",
        encryption_key=key,
        generate_secret_string=secretsmanager.SecretStringGenerator(
            secret_string_template=json.dumps({"username": user}),
            generate_string_key="password",
            password_length=CLIENT_SECRET_CHARACTERS,
            exclude_punctuation=True,
        ),
    )
    explain(
        secret,
        "AwsSolutions-SMG4",
        "A random password of 285 bits that opens nothing outside of the VPC. A new version of the secret rotates it "
        "(old and new are valid side by side); a schedule would need a rotation function, which is yours to choose.",
    )
    return secret


def make_ca_secret(scope: Construct, key: kms.IKey | None) -> secretsmanager.Secret:
    """Make the secret that the first task writes a CA into; it holds a placeholder until then.

    CloudFormation writes a new placeholder over the CA when one of these values changes: leave them as they are.
    """
    secret = secretsmanager.Secret(
        scope,
        "CaSecret",
        description="The CA that signs the emberpool proxy's certificates; its tasks make and renew it",
        encryption_key=key,
        generate_secret_string=secretsmanager.SecretStringGenerator(
            secret_string_template="{}",  # noqa: S106 (an empty JSON object)
            generate_string_key=CA_PLACEHOLDER,
            password_length=16,
            exclude_punctuation=True,
        ),
    )
    explain(
        secret,
        "AwsSolutions-SMG4",
        "A certificate authority and no password: the proxy's tasks make the next one in time, and clients trust both.",
    )
    return secret


def grant_read(secret: secretsmanager.ISecret, grantee: iam.IGrantable) -> iam.Grant:
    """Let somebody read a secret's value, and have Secrets Manager use the key that it is encrypted with."""
    # Not the secret's own grant: that one also describes the secret, and changes its key's policy, which cannot be done
    # to an imported key, and makes two stacks wait for each other when the key is another's.
    _grant_key(secret, grantee, "kms:Decrypt")
    return iam.Grant.add_to_principal_or_resource(
        grantee=grantee,
        actions=["secretsmanager:GetSecretValue"],
        # By its name alone a secret's ARN lacks the six characters that Secrets Manager adds.
        resource_arns=[secret.secret_full_arn or f"{secret.secret_arn}-??????"],
        resource=secret,
    )


def grant_tasks(
    role: iam.IRole,
    *,
    database_secret: secretsmanager.ISecret,
    client_secret: secretsmanager.ISecret,
    ca_secret: secretsmanager.ISecret,
) -> None:
    """Let the tasks read all three, make the CA and write its certificate beside the functions' password."""
    for secret in (database_secret, ca_secret):
        grant_read(secret, role)
    # Not grant_write(): that one may change the secret itself, its key for example.
    iam.Grant.add_to_principal(
        grantee=role, actions=["secretsmanager:PutSecretValue"], resource_arns=[ca_secret.secret_arn]
    )
    _grant_key(ca_secret, role, *TO_ENCRYPT)
    grant_client(role, client_secret)


def grant_client(role: iam.IRole, client_secret: secretsmanager.ISecret) -> None:
    """Let the tasks read a client's secret, and write the CA's certificate beside the password."""
    grant_read(client_secret, role)
    _grant_key(client_secret, role, *TO_ENCRYPT)
    # The label is moved in a second step, which fails if a rotation was faster.
    iam.Grant.add_to_principal(
        grantee=role,
        actions=["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"],
        resource_arns=[client_secret.secret_arn],
    )


def _grant_key(secret: secretsmanager.ISecret, grantee: iam.IGrantable, *actions: str) -> None:
    if secret.encryption_key is None:
        return  # AWS's own key, which needs nothing
    stack = Stack.of(secret)
    iam.Grant.add_to_principal(
        grantee=grantee,
        actions=list(actions),
        resource_arns=[secret.encryption_key.key_arn],
        # Whatever else is encrypted with this key stays closed.
        conditions={"StringEquals": {"kms:ViaService": f"secretsmanager.{stack.region}.{stack.url_suffix}"}},
    )
