"""The pool's own secrets, the functions' password and the proxy's CA, and who may read and write them."""

from __future__ import annotations

import json

from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

CLIENT_USER = "emberpool"
CLIENT_SECRET_CHARACTERS = 48  # letters and digits: 285 bits
CA_PLACEHOLDER = "placeholder"  # what the proxy takes for an empty secret


def make_client_secret(scope: Construct, key: kms.IKey | None) -> secretsmanager.Secret:
    """Make the secret that functions log in with; the proxy adds its CA's certificate to it."""
    return secretsmanager.Secret(
        scope,
        "ClientSecret",
        description="What functions log in with at the emberpool proxy, and its CA's certificate",
        encryption_key=key,
        generate_secret_string=secretsmanager.SecretStringGenerator(
            secret_string_template=json.dumps({"username": CLIENT_USER}),
            generate_string_key="password",
            password_length=CLIENT_SECRET_CHARACTERS,
            exclude_punctuation=True,
        ),
    )


def make_ca_secret(scope: Construct, key: kms.IKey | None) -> secretsmanager.Secret:
    """Make the secret that the first task writes a CA into; it holds a placeholder until then.

    CloudFormation writes a new placeholder over the CA when one of these values changes: leave them as they are.
    """
    return secretsmanager.Secret(
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


def grant_read(secret: secretsmanager.ISecret, grantee: iam.IGrantable) -> iam.Grant:
    """Let somebody read a secret, and use the key that it is encrypted with."""
    if secret.encryption_key is not None:
        # The secret's own grant asks for it in the key's policy only, which for an imported key is nowhere.
        secret.encryption_key.grant_decrypt(grantee)
    return secret.grant_read(grantee)


def grant_tasks(
    role: iam.IRole,
    *,
    database_secret: secretsmanager.ISecret,
    client_secret: secretsmanager.ISecret,
    ca_secret: secretsmanager.ISecret,
) -> None:
    """Let the tasks read all three, make the CA and write its certificate beside the functions' password."""
    for secret in (database_secret, client_secret, ca_secret):
        grant_read(secret, role)
    # Not grant_write(): that one may change the secret itself, its key for example.
    iam.Grant.add_to_principal(
        grantee=role, actions=["secretsmanager:PutSecretValue"], resource_arns=[ca_secret.secret_arn]
    )
    for secret in (ca_secret, client_secret):
        if secret.encryption_key is not None:
            secret.encryption_key.grant_encrypt(role)  # of a key of your own; AWS's own needs nothing
    # The label is moved in a second step, which fails if a rotation was faster.
    iam.Grant.add_to_principal(
        grantee=role,
        actions=["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"],
        resource_arns=[client_secret.secret_arn],
    )
