"""How a CloudFormation type is taught to moto: two functions, one that creates and one that deletes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError, ParamValidationError
from moto.cloudformation.exceptions import ValidationError
from moto.core.common_models import CloudFormationModel

from emberpool_local.aws.cloudformation import gaps
from emberpool_local.aws.cloudformation.calls import Properties, call, client


@dataclass(frozen=True)
class Made:
    """What a creation left: the physical id (`Ref`) and the attributes (`Fn::GetAtt`)."""

    physical_id: str
    attributes: dict[str, Any] = field(default_factory=dict)


Create = Callable[[str, Properties, str], Made]  # region, properties, generated name
Delete = Callable[[str, str, Properties], object]  # region, physical id, properties


class _ApiResource:
    """One resource of a stack that was made by API calls; the methods are those that moto's engine calls."""

    create_resource: Create
    delete_resource: Delete | None
    type_name: str
    name_property: str

    def __init__(self, region: str, made: Made, properties: Properties) -> None:
        self.region = region
        self.made = made
        self.properties = properties

    @property
    def physical_resource_id(self) -> str:
        return self.made.physical_id

    @property
    def type(self) -> str:
        return self.type_name

    def is_created(self) -> bool:
        return True

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:  # noqa: ARG003 (moto's signature; get_cfn_attribute decides)
        return True

    def get_cfn_attribute(self, attribute: str) -> Any:
        if attribute not in self.made.attributes:
            raise ValidationError(message=f"{self.type_name} has no attribute {attribute} here")
        return self.made.attributes[attribute]

    @classmethod
    def create_from_cloudformation_json(
        cls,
        resource_name: str,
        cloudformation_json: Properties,
        account_id: str,  # noqa: ARG003 (moto's signature)
        region_name: str,
        **named: Any,
    ) -> Any:
        properties = cloudformation_json.get("Properties", {})
        try:
            made = cls.create_resource(region_name, properties, resource_name)
        except (ClientError, ParamValidationError) as error:
            # The message becomes XML; moto does not escape it.
            shown = str(error).replace("<", "(").replace(">", ")").replace("&", "and")
            raise ValidationError(message=f"{named.get('LogicalId')} ({cls.type_name}): {shown}") from error
        return cls(region_name, made, properties)

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource: Any, new_resource_name: str, cloudformation_json: Properties, *place: str
    ) -> Any:
        properties = cloudformation_json.get("Properties", {})
        if original_resource.properties == properties:
            return original_resource
        # Always a replacement: updates in place are not simulated.
        original_resource.delete()
        account_id, region_name = place
        name = properties.get(cls.name_property) or new_resource_name
        return cls.create_from_cloudformation_json(name, cloudformation_json, account_id, region_name)

    @classmethod
    def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
        """Nothing: `delete` did it."""

    def delete(self, *_: str) -> None:
        if self.delete_resource is not None:
            self.delete_resource(self.region, self.made.physical_id, self.properties)


def register(type_name: str, create: Create, delete: Delete | None = None, *, name_property: str = "") -> None:
    """Teach moto one type; later registrations win over moto's own.

    `name_property` names the property whose value becomes the name, when the template gives one.
    """
    members = {
        "__module__": "moto.emberpool.models",  # moto derives the service from it
        "create_resource": staticmethod(create),
        "delete_resource": staticmethod(delete) if delete else None,
        "type_name": type_name,
        "name_property": name_property,
        "cloudformation_type": staticmethod(lambda: type_name),
        "cloudformation_name_type": staticmethod(lambda: name_property),
    }
    # A direct subclass: moto looks no deeper. It keeps no other reference, so we do.
    _REGISTERED.append(type(type_name.replace("::", ""), (_ApiResource, CloudFormationModel), members))


_REGISTERED: list[type] = []


def register_call(
    type_name: str,
    service: str,
    operation: str,
    made: Callable[[Any, Properties], Made],
    *,
    delete: tuple[str, Callable[[str, Properties], Properties]] | None = None,
    name_property: str = "",
) -> None:
    """Teach moto a type that one API call makes and another deletes."""

    def create(region: str, properties: Properties, name: str) -> Made:
        given = dict(properties)
        if name_property:
            given.setdefault(name_property, name)
        return made(call(region, type_name, service, operation, given), given)

    def remove(region: str, physical_id: str, properties: Properties) -> None:
        if delete is not None:
            getattr(client(service, region), delete[0])(**delete[1](physical_id, properties))

    register(type_name, create, remove, name_property=name_property)


def register_nothing(type_name: str) -> None:
    """Accept a type without making anything; it is recorded as a gap."""

    def create(_: str, __: Properties, name: str) -> Made:
        gaps.record("skipped", type_name)
        return Made(name)

    register(type_name, create)
