"""The few AWS calls that the proxy makes: secrets, RDS IAM tokens, Cloud Map.

Owns the child that makes them (`aws_call`): started at the first call, ended after some idle seconds. botocore in the
agent would cost 16 MB for good; in a child it costs 0.3 s of CPU for a batch of calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from emberpool_proxy.aws_call import ALREADY_WRITTEN_CODE
from emberpool_proxy.errors import AwsCallFailed, SecretAlreadyWritten, SecretUnreadable
from emberpool_proxy.settings import PREFIX

AWSCURRENT, AWSPENDING, AWSPREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"
CALL_SECONDS = 25.0  # above the child's own timeouts, which say more about what was slow
LINGER_SECONDS = 2.0  # a check reads several secrets in a row: one child for all of them
END_SECONDS = 1.0
LONGEST_LINE_BYTES = 1 << 20  # a secret has at most 64 KiB


@dataclass(frozen=True)
class SecretVersion:
    """The text of a secret and the version that it was read from."""

    text: str = field(repr=False)
    version_id: str


class AwsCalls:
    """AWS's API as the agent uses it; every call ends within `call_seconds`. Opens nothing until the first call."""

    def __init__(self, call_seconds: float = CALL_SECONDS, linger_seconds: float = LINGER_SECONDS) -> None:
        self._call_seconds = call_seconds
        self._linger_seconds = linger_seconds
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._starting = asyncio.Lock()  # two first calls at once would start two children
        self._linger: asyncio.TimerHandle | None = None

    async def get_secret(self, arn: str, stage: str = AWSCURRENT) -> str:
        """Return the text of the secret's version at `stage`. Raises SecretUnreadable, never with the value."""
        answer = await self._call("get_secret", arn=arn, stage=stage)
        if "answer" in answer:
            return str(answer["answer"])
        raise _unreadable(stage, arn, answer)

    async def put_secret(self, arn: str, value: str, request_token: str) -> None:
        """Write a new version of the secret; repeating the same token and value is harmless.

        `request_token` has 32 to 64 characters and becomes the version's id. Raises SecretAlreadyWritten when the
        token was used with another value, SecretUnreadable when it cannot be written.
        """
        answer = await self._call("put_secret", arn=arn, value=value, request_token=request_token)
        if "answer" not in answer:
            raise _unwritable(arn, answer)

    async def read_secret(self, arn: str) -> SecretVersion:
        """Return what AWSCURRENT is now, with its version's id. Raises SecretUnreadable, never with the value."""
        answer = await self._call("read_secret", arn=arn)
        if "answer" in answer:
            return SecretVersion(text=str(answer["answer"]["text"]), version_id=str(answer["answer"]["version_id"]))
        raise _unreadable(AWSCURRENT, arn, answer)

    async def swap_secret(self, arn: str, value: str, request_token: str, replaces: str) -> None:
        """Write a new version and make it AWSCURRENT if the version `replaces` still is: no rotation is undone.

        Raises SecretAlreadyWritten when another version is current by now, SecretUnreadable when it cannot be written.
        """
        answer = await self._call("swap_secret", arn=arn, value=value, request_token=request_token, replaces=replaces)
        if "answer" not in answer:
            raise _unwritable(arn, answer)

    async def rds_token(self, host: str, port: int, user: str) -> str:
        """Return an RDS IAM token, good for 15 minutes. Raises AwsCallFailed without credentials or region."""
        answer = await self._call("rds_token", host=host, port=port, user=user)
        if "answer" in answer:
            return str(answer["answer"])
        raise AwsCallFailed(
            f"cannot sign an IAM login for {user} at {host}:{port}: {_reason(answer)}; the task needs a role that "
            "may rds-db:connect, and AWS_REGION"
        )

    async def deregister_instance(self, service_id: str, instance_id: str) -> None:
        """Take an instance out of a Cloud Map service. Raises AwsCallFailed."""
        answer = await self._call("deregister_instance", service_id=service_id, instance_id=instance_id)
        if "answer" not in answer:
            raise AwsCallFailed(
                f"cannot deregister {instance_id} from the Cloud Map service {service_id}: {_reason(answer)}; "
                "the task's role needs servicediscovery:DeregisterInstance"
            )

    async def close(self) -> None:
        """End the child, if there is one. A later call starts another."""
        if self._linger:
            self._linger.cancel()
        child, self._child = self._child, None
        if child is not None:
            await _end(child)
        if self._reader:
            await self._reader

    async def _call(self, call: str, **arguments: object) -> dict[str, Any]:
        """Return the child's answer: {"answer": …} or {"code": …, "reason": …}."""
        try:
            async with asyncio.timeout(self._call_seconds):
                return await self._ask(call, arguments)
        except TimeoutError:
            await self.close()  # whatever hangs in it would hang the next call, too
            return {"code": "Timeout", "reason": f"no answer within {self._call_seconds:g} s"}
        except (OSError, EOFError) as error:
            return {"code": "ChildEnded", "reason": f"the process that calls AWS ended: {error}"}

    async def _ask(self, call: str, arguments: dict[str, object]) -> dict[str, Any]:
        child = await self._started()
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            assert child.stdin is not None  # noqa: S101 (it was started with a pipe)
            child.stdin.write(json.dumps({"id": number, "call": call, "arguments": arguments}).encode() + b"\n")
            await child.stdin.drain()
            return await answer
        finally:
            self._waiting.pop(number, None)
            if not self._waiting:
                self._linger = asyncio.get_running_loop().call_later(self._linger_seconds, self._let_go)

    async def _started(self) -> asyncio.subprocess.Process:
        if self._linger:
            self._linger.cancel()
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                self._child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "emberpool_proxy.aws_call",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,  # a traceback may hold a secret
                    limit=LONGEST_LINE_BYTES,
                    start_new_session=True,  # a Ctrl-C at the terminal is the agent's to handle
                    env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
                )
                self._reader = asyncio.create_task(self._read(self._child), name="aws-answers")
            return self._child

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None  # noqa: S101 (it was started with a pipe)
        with contextlib.suppress(ValueError):  # a line above the limit: the child is ended below
            while line := await child.stdout.readline():
                answer = json.loads(line)
                if (waiting := self._waiting.get(answer["id"])) and not waiting.done():
                    waiting.set_result(answer)
        if self._child is child:
            self._child = None
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        code = await child.wait()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(EOFError(f"exit code {code}"))

    def _let_go(self) -> None:
        # It ends when its input does, and `_read` collects it.
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()


async def _end(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None  # noqa: S101 (it was started with a pipe)
    child.stdin.close()
    try:
        async with asyncio.timeout(END_SECONDS):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _unreadable(stage: str, arn: str, answer: dict[str, Any]) -> SecretUnreadable:
    return SecretUnreadable(
        f"cannot read {stage} of the secret {arn}: {_reason(answer)}; the task's role needs "
        "secretsmanager:GetSecretValue on it (kms:Decrypt on its key) and a way to Secrets Manager",
        arn=arn,
        code=str(answer["code"]),
    )


def _unwritable(arn: str, answer: dict[str, Any]) -> AwsCallFailed:
    if answer["code"] == ALREADY_WRITTEN_CODE:
        return SecretAlreadyWritten(f"the secret {arn} was written by another task; read it")
    return SecretUnreadable(
        f"cannot write the secret {arn}: {_reason(answer)}; the task's role needs secretsmanager:PutSecretValue and "
        "secretsmanager:UpdateSecretVersionStage on it and a way to Secrets Manager",
        arn=arn,
        code=str(answer["code"]),
    )


def _reason(answer: dict[str, Any]) -> str:
    return f"{answer['code']}: {answer['reason']}" if answer["reason"] else str(answer["code"])
