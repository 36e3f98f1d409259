"""Updates a stack as CloudFormation does: in place where the type can, else the new resource first and the old last.

moto compares templates only, so that a function would keep the layer version that was replaced; here a resource is
changed when its properties are, after everything that it refers to. Written for moto 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import Stack, cloudformation_backends
from moto.cloudformation.parsing import ResourceMap, clean_json, parse_and_update_resource

from emberpool_local.aws.cloudformation.resource import is_replaced

IN_TEXT = re.compile(r"\$\{([A-Za-z0-9:]+)[^}]*\}")  # of Fn::Sub


def apply() -> None:
    """Patch moto; call it once, before the server starts."""
    ResourceMap.update = _update  # type: ignore[method-assign]
    original = Stack.update

    def update(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            original(self, *arguments, **named)
        except Exception as error:
            # Else a 500, which cdk would send again: half done already, the second attempt would look well.
            shown = repr(error).replace("<", "(").replace(">", ")").replace("&", "and")
            self.status = "UPDATE_FAILED"
            raise ValidationError(message=f"the update of {self.name} failed: {shown}") from error
        exports = cloudformation_backends[self.account_id][self.region_name].exports
        exports.update({export.name: export for export in self.exports})

    Stack.update = update  # type: ignore[method-assign]


def _update(self: Any, template: dict[str, Any], parameters: dict[str, Any] | None = None) -> None:
    before: Mapping[str, Any] = self._resource_json_map
    resolved = {name: _resolved(before[name], self) for name in before if name in self._parsed_resources}
    self._template = template
    if parameters:
        self.input_parameters = parameters
    self.load_mapping()
    self.load_parameters()
    self.load_conditions()
    self._resource_json_map = template["Resources"]
    # What is replaced or no longer there ends when everything new stands, the newest first.
    old = [(self._parsed_resources.pop(name), before[name]) for name in before if name not in template["Resources"]]
    for name in in_order(template["Resources"]):
        now = template["Resources"][name]
        if name not in resolved:
            _ = self[name]  # makes it
        elif resolved[name] != _resolved(now, self):
            original = self._parsed_resources[name]
            changed = parse_and_update_resource(name, now, self, self._account_id, self._region_name)
            self._parsed_resources[name] = changed
            if is_replaced(original, changed):
                old.append((original, before[name]))
    for resource, description in reversed(old):
        if resource is not None and description.get("DeletionPolicy") != "Retain":
            self._delete_resource(resource, description)


def _resolved(description: dict[str, Any], resources: Any) -> Any:
    return clean_json(description.get("Properties", {}), resources)


def in_order(resources: Mapping[str, Any]) -> list[str]:
    """Return the names of a template's resources, each after those that it refers to or depends on."""
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        for other in dict.fromkeys(_references(resources[name])):
            if other in resources and other != name:
                add(other)
        ordered[name] = None

    for name in resources:
        add(name)
    return list(ordered)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for each in part:
            yield from _references(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "Ref":
                yield value
            elif key == "Fn::GetAtt":
                yield value[0] if isinstance(value, list) else value.split(".")[0]
            elif key == "DependsOn":
                yield from [value] if isinstance(value, str) else value
            elif key == "Fn::Sub":
                yield from IN_TEXT.findall(value if isinstance(value, str) else value[0])
            else:
                yield from _references(value)
