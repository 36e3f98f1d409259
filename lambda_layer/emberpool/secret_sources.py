"""Where a password comes from on AWS: the secrets extension beside the function, Secrets Manager, an RDS IAM token.

Knows neither caching nor what a secret means: text in, one clear error out. botocore and boto3 are imported by the
function that needs them: a fifth of a second that a function with another source does not pay. So is psycopg, for the
errors, by `emberpool.SecretUnavailable`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import emberpool
from emberpool import signed_request

if TYPE_CHECKING:
    from emberpool.errors import SecretUnavailable

TIMEOUT_SECONDS = 3
ATTEMPTS = 2

EXTENSION: Final = Path("/opt/extensions/AWSParametersAndSecretsLambdaExtension")
EXTENSION_PORT_VARIABLE = "PARAMETERS_SECRETS_EXTENSION_HTTP_PORT"
EXTENSION_PORT = "2773"

TOKEN_SECONDS = 900  # RDS accepts an IAM token for 15 minutes


def from_extension(secret_arn: str) -> str | None:
    """Return the secret's text from AWS's secrets extension, None where it is absent or does not give it.

    It answers from a cache of its own (5 minutes by default), and refuses while the environment initialises.
    """
    session_token = os.environ.get("AWS_SESSION_TOKEN")
    port = os.environ.get(EXTENSION_PORT_VARIABLE) or (EXTENSION_PORT if EXTENSION.exists() else "")
    if not session_token or not port.isdecimal():
        return None
    import http.client  # noqa: PLC0415 (only where the extension is)
    import json  # noqa: PLC0415 (as above)

    query = urlencode({"secretId": secret_arn, "versionStage": "AWSCURRENT"})
    connection = http.client.HTTPConnection("localhost", int(port), timeout=TIMEOUT_SECONDS)
    try:
        connection.request(
            "GET", f"/secretsmanager/get?{query}", headers={"X-Aws-Parameters-Secrets-Token": session_token}
        )
        response = connection.getresponse()
        answer = json.loads(response.read()) if response.status == http.client.OK else None
    except (OSError, ValueError, http.client.HTTPException):
        return None  # boto3 is asked next, and its error says more
    finally:
        connection.close()
    text = answer.get("SecretString") if isinstance(answer, dict) else None
    return text if isinstance(text, str) else None


def from_secrets_manager(secret_arn: str, stage: str) -> str:
    """Return the text of the secret's version at `stage` from Secrets Manager itself. Raises SecretUnavailable."""
    text = signed_request.secret_text(secret_arn, stage, TIMEOUT_SECONDS)
    if text is not None:
        return text
    try:
        import boto3  # noqa: PLC0415 (see the module's docstring)
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError, SSLError  # noqa: PLC0415
    except ImportError:
        raise _boto3_missing(f"cannot read the secret {secret_arn}") from None
    config = Config(
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    try:
        # A session of its own: boto3's default one is not safe beside the user's threads, and this may run in ours.
        client: Any = boto3.Session().client("secretsmanager", region_name=_region_of(secret_arn), config=config)
        return str(client.get_secret_value(SecretId=secret_arn, VersionStage=stage)["SecretString"])
    except KeyError:
        code = "it is binary, a JSON string is needed"
    except ClientError as error:
        code = error.response["Error"]["Code"]
    except SSLError:
        code = "its endpoint's certificate is not to be trusted, so nothing was sent; AWS_CA_BUNDLE names other CAs"
    except BotoCoreError as error:
        code = type(error).__name__
    raise emberpool.SecretUnavailable(
        f"cannot read the secret {secret_arn}: {code}; the function's role needs secretsmanager:GetSecretValue "
        "on it and a way to Secrets Manager (an interface endpoint or NAT in its VPC)"
    )


def iam_token(host: str, port: int, user: str) -> str:
    """Return an RDS IAM token for this login, good for TOKEN_SECONDS. Signed here: nothing is sent.

    Raises SecretUnavailable without AWS credentials or region.
    """
    problem = f"cannot make an IAM token for {user} at {host}:{port}"
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise emberpool.SecretUnavailable(f"{problem}: no region; set AWS_REGION")
    try:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 (see the module's docstring)
    except ImportError:
        raise _boto3_missing(problem) from None
    try:
        return _signed_token(host, port, user, region)
    except BotoCoreError as error:
        code = type(error).__name__
    raise emberpool.SecretUnavailable(f"{problem}: {code}; the credentials come from the function's role")


def _signed_token(host: str, port: int, user: str, region: str) -> str:
    """Do what boto3's generate_db_auth_token does, without loading the description of all of RDS (0.2 s)."""
    import botocore.session  # noqa: PLC0415 (see the module's docstring)
    from botocore.exceptions import NoCredentialsError  # noqa: PLC0415
    from botocore.model import ServiceId  # noqa: PLC0415
    from botocore.signers import RequestSigner  # noqa: PLC0415

    session = botocore.session.get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    signer = RequestSigner(
        ServiceId("RDS"), region, "rds-db", "v4", credentials, session.get_component("event_emitter")
    )
    request = {
        "method": "GET",
        "url": f"https://{host}:{port}/",
        "url_path": "/",
        "query_string": {},
        "headers": {},
        "body": {"Action": "connect", "DBUser": user},
        "context": {},
    }
    url = signer.generate_presigned_url(
        request, operation_name="connect", region_name=region, expires_in=TOKEN_SECONDS, signing_name="rds-db"
    )
    return str(url).removeprefix("https://")


def _boto3_missing(problem: str) -> SecretUnavailable:
    return emberpool.SecretUnavailable(
        f"{problem}: boto3 is not installed; Lambda's own runtimes have it, add it to an image"
    )


def _region_of(secret_arn: str) -> str | None:
    """Return the region in an ARN; None for a plain name, which is looked for in the function's own region."""
    parts = secret_arn.split(":")
    return parts[3] if parts[0] == "arn" and len(parts) > 4 else os.environ.get("AWS_REGION")  # noqa: PLR2004
