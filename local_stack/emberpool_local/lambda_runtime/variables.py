"""The environment variables of an execution environment: Lambda's own, the function's, and very few of ours.

Owns the allow-list of what an environment inherits from the developer's shell. Everything else (cloud
credentials, tokens, database passwords) stays out unless the function's own variables contain it.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REGION = "eu-west-1"
ACCOUNT = "123456789012"

# What Python and the dynamic loader need to find the same interpreter and packages that we run with.
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TMPDIR",
    "VIRTUAL_ENV",
)
# As on Lambda, there is no usable home: libpq would read the developer's ~/.pgpass there, boto3 ~/.aws. Below a file
# nothing can be made either, not even by a handler that runs as root.
NO_HOME = os.devnull


@dataclass(frozen=True)
class Function:
    """The function that the environments run; `handler` is in awslambdaric's form, `package.module.name`."""

    name: str
    handler: str
    code_folder: Path
    environment: Mapping[str, str] = field(repr=False)  # may hold passwords
    timeout_seconds: float = 30.0
    memory_mb: int = 512
    init_timeout_seconds: float = 60.0
    is_snapstart: bool = False
    max_concurrency: int = 1

    @property
    def takes_several(self) -> bool:
        """Whether an environment runs several invocations at a time, as on Lambda Managed Instances."""
        return self.max_concurrency > 1

    @property
    def arn(self) -> str:
        """The function's ARN in an account that is nobody's."""
        region = self.environment.get("AWS_REGION", REGION)
        return f"arn:aws:lambda:{region}:{ACCOUNT}:function:{self.name}"


def function_variables(function: Function) -> dict[str, str]:
    """Return what every environment of the function gets.

    In this order, the later wins: the variables of INHERITED that are set here; an empty home and no AWS
    credentials; Lambda's own variables; the function's; what must be true of this environment.
    """
    return {
        **{name: os.environ[name] for name in INHERITED if name in os.environ},
        **_isolation(),
        **_lambda_variables(function),
        **function.environment,
        "LAMBDA_TASK_ROOT": str(function.code_folder),
        "_HANDLER": function.handler,
        # The runtime client forks so many workers; without the variable it is the only process.
        **({"AWS_LAMBDA_MAX_CONCURRENCY": str(function.max_concurrency)} if function.takes_several else {}),
        # Its warning is for users of AWS's preview runtimes, whatever Python this machine has.
        "LAMBDA_DISABLE_PREVIEW_WARN": "1",
    }


def environment_variables(number: int, port: int) -> dict[str, str]:
    """Return what differs between environments: where their Runtime API is, and their log stream."""
    return {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"local/[$LATEST]{number:06d}",
    }


def _lambda_variables(function: Function) -> dict[str, str]:
    return {
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": _initialization_type(function),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_REGION": REGION,
        "TZ": ":UTC",
    }


def _initialization_type(function: Function) -> str:
    if function.takes_several:
        return "lambda-managed-instances"
    return "snap-start" if function.is_snapstart else "on-demand"


def _isolation() -> dict[str, str]:
    variables = {
        "HOME": NO_HOME,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    if site.ENABLE_USER_SITE:
        # Packages installed with `pip install --user` are found through the home folder otherwise.
        variables["PYTHONUSERBASE"] = site.getuserbase()
    return variables
