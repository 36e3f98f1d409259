"""Parameters of Systems Manager."""

from __future__ import annotations

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

PARAMETER = "AWS::SSM::Parameter"


def register_types() -> None:
    """Teach moto the type, so that what it drops is recorded, and a changed value arrives."""
    register(
        PARAMETER, _create, _delete, name_property="Name", update=_update, in_place=("Description", "Type", "Value")
    )


def _create(region: str, properties: Properties, name: str) -> Made:
    call(region, PARAMETER, "ssm", "put_parameter", {"Name": name, **properties})
    return Made(properties.get("Name") or name, {"Type": properties["Type"], "Value": properties["Value"]})


def _update(region: str, name: str, properties: Properties) -> None:
    given = {**properties, "Name": name, "Overwrite": True}
    given.pop("Tags", None)  # put_parameter refuses them beside Overwrite
    call(region, PARAMETER, "ssm", "put_parameter", given)


def _delete(region: str, name: str, _: Properties) -> None:
    client("ssm", region).delete_parameter(Name=name)
