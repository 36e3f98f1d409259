"""Repairs of moto's own CloudFormation engine, without which the cdk command fails or leaves resources behind.

Each function makes moto do what AWS does. Written for moto 5.2.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from botocore.exceptions import ClientError
from moto.awslambda.models import LambdaFunction
from moto.cloudformation.models import ChangeSet, CloudFormationBackend, cloudformation_backends
from moto.cloudformation.parsing import ResourceMap
from moto.ec2.models import ec2_backends
from moto.ec2.models.route_tables import RouteTable
from moto.ec2.models.vpcs import VPCEndPoint
from moto.iam.models import Role

from emberpool_local.aws.cloudformation import gaps
from emberpool_local.aws.cloudformation.calls import client

VERSION_PARAMETER = "BootstrapVersion"


def apply() -> None:
    """Patch moto; call it once, before the server starts."""
    _outputs_of_change_sets()
    _previous_values_of_defaults()
    _unknown_change_sets()
    _deletion_in_reverse_order()
    _deletions_that_are_skipped()
    _managed_policies_of_roles()
    _architecture_of_updated_functions()


def _outputs_of_change_sets() -> None:
    """Give a stack that a change set made its outputs and exports, and let it import those of others."""
    original = ChangeSet.apply

    def apply_change_set(self: ChangeSet) -> None:
        stack: Any = self.stack
        exports = cloudformation_backends[stack.account_id][stack.region_name].exports
        stack.cross_stack_resources = stack.resource_map.cross_stack_resources = exports
        stack.parameters = self.parameters
        if self.change_set_type == "CREATE":
            stack.template = self.template
            stack._parse_template()
            stack.resource_map = stack._create_resource_map()
            stack.resource_map.create(stack.template_dict)
        else:
            original(self)
            stack.template = self.template
            stack._parse_template()
        stack.output_map = stack._create_output_map()
        for export in stack.exports:
            exports[export.name] = export

    ChangeSet.apply = apply_change_set  # type: ignore[method-assign]


def _previous_values_of_defaults() -> None:
    """Answer UsePreviousValue of a parameter that was never given with its default."""
    original = CloudFormationBackend._resolve_update_parameters

    def resolve(self: CloudFormationBackend, instance: Any, incoming_params: list[dict[str, str]]) -> dict[str, str]:
        given = instance.parameters
        defaults = dict(instance.stack_parameters)
        if VERSION_PARAMETER in defaults:
            # An SSM parameter's name; moto keeps the value that it resolved to.
            defaults[VERSION_PARAMETER] = "/cdk-bootstrap/hnb659fds/version"
        instance.parameters = {**given, **defaults}
        try:
            return original(self, instance, incoming_params)
        finally:
            instance.parameters = given

    CloudFormationBackend._resolve_update_parameters = resolve  # type: ignore[method-assign]


def _unknown_change_sets() -> None:
    """Succeed when the change set to delete does not exist."""
    original = CloudFormationBackend.delete_change_set

    def delete(self: CloudFormationBackend, change_set_name: str) -> None:
        try:
            original(self, change_set_name)
        except UnboundLocalError:
            return

    CloudFormationBackend.delete_change_set = delete  # type: ignore[method-assign]


def _deletion_in_reverse_order() -> None:
    """Delete a stack against the order of its creation, and fail when something cannot be deleted."""

    def delete(self: Any) -> None:
        left = [
            name
            for name in reversed(list(self._parsed_resources))
            if self._resource_json_map.get(name, {}).get("DeletionPolicy") != "Retain"
        ]
        failures: dict[str, Exception] = {}
        progress = True
        while left and progress:
            progress = False
            for name in list(left):
                resource = self._parsed_resources[name]
                try:
                    if resource is not None and not isinstance(resource, str):
                        self._delete_resource(resource, self._resource_json_map[name])
                except Exception as failure:  # noqa: BLE001 (any of moto's; tried again in the next round)
                    failures[name] = failure
                else:
                    left.remove(name)
                    progress = True
        for name in left:
            kind = self._resource_json_map[name]["Type"]
            print(f"not deleted: {name} ({kind}): {failures[name]!r}", file=sys.stderr, flush=True)  # noqa: T201
        if left:
            raise failures[left[0]]

    ResourceMap.delete = delete  # type: ignore[method-assign]


def _deletions_that_are_skipped() -> None:
    """Delete route tables, endpoints and roles with their stack."""

    def delete_route_table(self: Any, account: str, region: str) -> None:
        ec2_backends[account][region].delete_route_table(self.id)

    def delete_endpoint(self: Any, account: str, region: str) -> None:
        ec2_backends[account][region].delete_vpc_endpoints([self.id])

    def delete_role(self: Any, _: str, region: str) -> None:
        iam = client("iam", region)
        for policy in iam.list_attached_role_policies(RoleName=self.name)["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=self.name, PolicyArn=policy["PolicyArn"])
        for name in iam.list_role_policies(RoleName=self.name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=self.name, PolicyName=name)
        iam.delete_role(RoleName=self.name)

    for kind, delete in ((RouteTable, delete_route_table), (VPCEndPoint, delete_endpoint), (Role, delete_role)):
        kind.delete = delete  # type: ignore[union-attr]


def _managed_policies_of_roles() -> None:
    """Attach a role's ManagedPolicyArns."""
    original = Role.create_from_cloudformation_json.__func__  # type: ignore[attr-defined]

    def create(cls: Any, name: str, template: dict[str, Any], account: str, region: str, /, **named: Any) -> Any:
        role = original(cls, name, template, account, region, **named)
        for arn in template["Properties"].get("ManagedPolicyArns", []):
            try:
                client("iam", region).attach_role_policy(RoleName=role.name, PolicyArn=arn)
            except ClientError:
                gaps.record("dropped", "AWS::IAM::Role", json.dumps(arn))
        return role

    Role.create_from_cloudformation_json = classmethod(create)  # type: ignore[assignment,method-assign]


def _architecture_of_updated_functions() -> None:
    """Give a function the architecture that its new code is for."""
    original = LambdaFunction.update_function_code

    def update(self: LambdaFunction, updated_spec: dict[str, Any]) -> dict[str, Any]:
        self.architectures = updated_spec.get("Architectures") or self.architectures
        return original(self, updated_spec)

    LambdaFunction.update_function_code = update  # type: ignore[method-assign]
