"""The task's entry in a Cloud Map service: withdrawn first in a drain, so that names no longer lead here."""

from __future__ import annotations

import os
from typing import Protocol

import aiohttp

from emberpool_proxy.errors import AwsCallFailed
from emberpool_proxy.log import logger
from emberpool_proxy.settings import ProxySettings

METADATA_VARIABLE = "ECS_CONTAINER_METADATA_URI_V4"  # set by ECS in each container
METADATA_SECONDS = 2.0


class CloudMap(Protocol):
    """The one call of AWS's API that is needed here."""

    async def deregister_instance(self, service_id: str, instance_id: str) -> None: ...  # noqa: D102


class Registration:
    """This task in the Cloud Map service of the settings; nothing to withdraw where there is none."""

    def __init__(self, settings: ProxySettings, cloud_map: CloudMap) -> None:
        self._service_id = settings.cloud_map_service_id
        self._cloud_map = cloud_map

    async def withdraw(self) -> None:
        """Take this task out of the service. A failure is logged: ECS withdraws it too, a little later."""
        if not self._service_id:
            return
        try:
            instance_id = await task_id()
            await self._cloud_map.deregister_instance(self._service_id, instance_id)
        except (AwsCallFailed, TaskUnknown) as error:
            logger.warning("the registration was not withdrawn: %s", error)
        else:
            logger.info("registration withdrawn", extra={"fields": {"instance_id": instance_id}})


class TaskUnknown(Exception):  # noqa: N818 (named by what happened; it never leaves the agent)
    """ECS did not say which task this is."""


async def task_id() -> str:
    """Return the id of this ECS task, by which ECS registers it in Cloud Map. Raises TaskUnknown."""
    uri = os.environ.get(METADATA_VARIABLE)
    if not uri:
        raise TaskUnknown(f"{METADATA_VARIABLE} is not set; a Cloud Map service needs a task on ECS")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=METADATA_SECONDS)) as session,
            session.get(f"{uri}/task") as response,
        ):
            response.raise_for_status()
            arn = (await response.json(content_type=None))["TaskARN"]
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
        raise TaskUnknown(f"the task's metadata at {uri}/task cannot be read: {error!r}") from error
    # arn:aws:ecs:<region>:<account>:task/<cluster>/<id>
    return str(arn).rsplit("/", 1)[-1]
