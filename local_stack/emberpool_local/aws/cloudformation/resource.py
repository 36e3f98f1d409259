"""How a CloudFormation type is taught to moto: functions that create, delete and update in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
Update = Callable[[str, str, Properties], object]  # region, physical id, all properties as they shall be


class _ApiResource:
    """One resource of a stack that was made by API calls; the methods are those that moto's engine calls."""

    create_resource: Create
    delete_resource: Delete | None
    update_resource: Update | None
    updated_in_place: frozenset[str]
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
        with _errors_named(cls.type_name, str(named.get("LogicalId"))):
            made = cls.create_resource(region_name, properties, resource_name)
        return cls(region_name, made, properties)

    @classmethod
    def update_from_cloudformation_json(
        cls,
        original_resource: Any,
        new_resource_name: str,
        cloudformation_json: Properties,
        account_id: str,
        region_name: str,
    ) -> Any:
        """Change the resource if only such properties differ as CloudFormation changes in place, else make another.

        The other one is made first; `updates` ends the original when everything else stands.
        """
        properties = cloudformation_json.get("Properties", {})
        before: Properties = original_resource.properties
        changed = {name for name in before | properties if before.get(name) != properties.get(name)}
        if cls.update_resource is not None and changed <= cls.updated_in_place:
            with _errors_named(cls.type_name, str(original_resource.physical_resource_id)):
                cls.update_resource(region_name, original_resource.made.physical_id, properties)
            return cls(region_name, original_resource.made, properties)
        name = properties.get(cls.name_property) or new_resource_name
        return cls.create_from_cloudformation_json(name, cloudformation_json, account_id, region_name)

    @classmethod
    def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
        """Nothing: `delete` did it."""

    def delete(self, *_: str) -> None:
        if self.delete_resource is not None:
            self.delete_resource(self.region, self.made.physical_id, self.properties)


@contextmanager
def _errors_named(type_name: str, name: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, ParamValidationError) as error:
        # The message becomes XML; moto does not escape it.
        shown = str(error).replace("<", "(").replace(">", ")").replace("&", "and")
        raise ValidationError(message=f"{name} ({type_name}): {shown}") from error


def is_replaced(original: object, changed: object) -> bool:
    """Return whether an update has made another resource, so that the original is still to be deleted."""
    if not isinstance(original, _ApiResource) or not isinstance(changed, _ApiResource):
        return False  # moto's own types see to it themselves
    return changed.physical_resource_id != original.physical_resource_id


def register(
    type_name: str,
    create: Create,
    delete: Delete | None = None,
    *,
    name_property: str = "",
    update: Update | None = None,
    in_place: Iterable[str] = (),
) -> None:
    """Teach moto one type; later registrations win over moto's own.

    `name_property` names the property whose value becomes the name, when the template gives one. `update` changes a
    resource when only properties of `in_place` differ; for any other, or without it, the resource is replaced.
    """
    members = {
        "__module__": "moto.emberpool.models",  # moto derives the service from it
        "create_resource": staticmethod(create),
        "delete_resource": staticmethod(delete) if delete else None,
        "update_resource": staticmethod(update) if update else None,
        "updated_in_place": frozenset(in_place),
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
