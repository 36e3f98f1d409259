"""The child that makes AWS calls for the agent: requests on standard input, answers on standard output, a line each.

A process of its own, because botocore costs 16 MB and is needed for some seconds in every few minutes. Run by
`aws.AwsCalls`; it ends when its standard input does. Secrets come and go through the pipes only: its error texts never
hold a value that it was given or has read.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CONNECT_SECONDS = 3
READ_SECONDS = 5
ATTEMPTS = 2
CALLS_AT_ONCE = 4
TOKEN_SECONDS = 900  # RDS accepts an IAM token for 15 minutes
BESIDE = "EMBERPOOL"  # a staging label of our own: every version needs one
ALREADY_WRITTEN_CODE = "ResourceExistsException"  # the same request token with another value

Json = dict[str, Any]


class Aws:
    """botocore clients by service and region, made when first needed and shared by the threads."""

    def __init__(self) -> None:
        import botocore.session  # noqa: PLC0415 (an installation without it gets an answer that says so)

        self._session = botocore.session.get_session()
        self._clients: dict[tuple[str, str | None], Any] = {}
        self._lock = threading.Lock()  # making clients is not thread-safe in botocore, using them is

    def get_secret(self, arn: str, stage: str) -> str:
        """Return the text of the secret's version at `stage`."""
        answer = self._client("secretsmanager", region_of(arn)).get_secret_value(SecretId=arn, VersionStage=stage)
        if "SecretString" not in answer:
            raise Refused("BinarySecret", "it is binary, a JSON string is needed")
        return str(answer["SecretString"])

    def put_secret(self, arn: str, value: str, request_token: str) -> str:
        """Write a new version of the secret; the same token and value again change nothing."""
        client = self._client("secretsmanager", region_of(arn))
        answer = client.put_secret_value(SecretId=arn, SecretString=value, ClientRequestToken=request_token)
        return str(answer["VersionId"])

    def read_secret(self, arn: str) -> Json:
        """Return the text of AWSCURRENT and its version's id."""
        client = self._client("secretsmanager", region_of(arn))
        answer = client.get_secret_value(SecretId=arn, VersionStage="AWSCURRENT")
        if "SecretString" not in answer:
            raise Refused("BinarySecret", "it is binary, a JSON string is needed")
        return {"text": str(answer["SecretString"]), "version_id": str(answer["VersionId"])}

    def swap_secret(self, arn: str, value: str, request_token: str, replaces: str) -> str:
        """Write a new version beside AWSCURRENT, and give it that label only if the version `replaces` still has it.

        PutSecretValue alone would move AWSCURRENT away from whatever a rotation has made current in between.
        AWSPREVIOUS, which goes to the replaced version then, is given back: its user may still log in for a while.
        """
        client = self._client("secretsmanager", region_of(arn))
        previous = _version_of(client, arn, "AWSPREVIOUS")
        version = client.put_secret_value(
            SecretId=arn, SecretString=value, ClientRequestToken=request_token, VersionStages=[BESIDE]
        )["VersionId"]
        try:
            client.update_secret_version_stage(
                SecretId=arn, VersionStage="AWSCURRENT", MoveToVersionId=version, RemoveFromVersionId=replaces
            )
        except (client.exceptions.InvalidParameterException, client.exceptions.InvalidRequestException):
            raise Refused(ALREADY_WRITTEN_CODE, "another version is current by now") from None
        if previous not in (None, replaces):
            client.update_secret_version_stage(
                SecretId=arn, VersionStage="AWSPREVIOUS", MoveToVersionId=previous, RemoveFromVersionId=replaces
            )
        return str(version)

    def deregister_instance(self, service_id: str, instance_id: str) -> str:
        """Take an instance out of a Cloud Map service."""
        client = self._client("servicediscovery", _own_region())
        return str(client.deregister_instance(ServiceId=service_id, InstanceId=instance_id)["OperationId"])

    def rds_token(self, host: str, port: int, user: str) -> str:
        """Sign an IAM login. What generate_db_auth_token does, without loading the description of all of RDS."""
        from botocore.exceptions import NoCredentialsError, NoRegionError  # noqa: PLC0415 (as above)
        from botocore.model import ServiceId  # noqa: PLC0415
        from botocore.signers import RequestSigner  # noqa: PLC0415

        region = _region_of_host(host) or _own_region()
        with self._lock:
            credentials = self._session.get_credentials()
        if not region:
            raise NoRegionError
        if credentials is None:
            raise NoCredentialsError
        emitter = self._session.get_component("event_emitter")
        signer = RequestSigner(ServiceId("RDS"), region, "rds-db", "v4", credentials, emitter)
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

    def _client(self, service: str, region: str | None) -> Any:
        from botocore.config import Config  # noqa: PLC0415 (as above)

        with self._lock:
            if (service, region) not in self._clients:
                config = Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    max_pool_connections=CALLS_AT_ONCE,
                )
                self._clients[service, region] = self._session.create_client(service, region, config=config)
            return self._clients[service, region]


class Refused(Exception):  # noqa: N818 (a code and a reason for the agent, not an error of ours)
    """A call that cannot succeed, with a code and a reason that hold no secret."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


def _version_of(client: Any, arn: str, stage: str) -> str | None:
    try:
        return str(client.get_secret_value(SecretId=arn, VersionStage=stage)["VersionId"])
    except client.exceptions.ResourceNotFoundException:
        return None


def region_of(arn: str) -> str | None:
    """Return the region in an ARN; a plain name is looked for in the task's own region."""
    parts = arn.split(":")
    return parts[3] if parts[0] == "arn" and len(parts) > 4 else _own_region()  # noqa: PLR2004 (an ARN)


def _own_region(environment: Mapping[str, str] = os.environ) -> str | None:
    # None leaves it to botocore: the user's configuration file, outside of a task.
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")


def _region_of_host(host: str) -> str | None:
    # db.abc123.eu-west-1.rds.amazonaws.com(.cn): a token signed for another region is refused.
    parts = host.split(".")
    return parts[parts.index("rds") - 1] if "rds" in parts[2:] and "amazonaws" in parts else None


def _answer(aws: Callable[[], Aws], request: Json) -> Json:
    """Make one call; every failure becomes a code and a reason."""
    call, arguments = str(request["call"]), request["arguments"]
    try:
        return {"id": request["id"], "answer": getattr(aws(), call)(**arguments)}
    except Refused as refused:
        code, reason = refused.code, refused.reason
    except Exception as error:  # noqa: BLE001 (whatever botocore raises must reach the agent, which decides)
        code, reason = _described(error, call)
    return {"id": request["id"], "code": code, "reason": reason}


def _described(error: Exception, call: str) -> tuple[str, str]:
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        found = response["Error"]
        # AWS repeats arguments in some messages, and one of put_secret's is the secret.
        message = "" if call in ("put_secret", "swap_secret") else str(found.get("Message", ""))
        return str(found.get("Code", type(error).__name__)), message
    # botocore's own checks quote the argument that they refuse.
    is_about_the_way = type(error).__name__ in {
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ModuleNotFoundError",
        "NoCredentialsError",
        "NoRegionError",
        "ReadTimeoutError",
        "SSLError",
    }
    return type(error).__name__, str(error) if is_about_the_way else ""


def main() -> None:
    """Answer requests until standard input ends, several at once."""
    lock = threading.Lock()
    made: list[Aws] = []

    def aws() -> Aws:
        with lock:
            if not made:
                made.append(Aws())
            return made[0]

    def work(request: Json) -> None:
        line = json.dumps(_answer(aws, request)) + "\n"
        with lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    with ThreadPoolExecutor(CALLS_AT_ONCE) as threads:
        for line in sys.stdin:
            threads.submit(work, json.loads(line))


if __name__ == "__main__":
    main()
