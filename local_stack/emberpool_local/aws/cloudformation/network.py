"""Security groups and their rules as the template says: moto's own keep allow-all egress whatever is asked for."""

from __future__ import annotations

from contextlib import suppress

from botocore.exceptions import ClientError

from emberpool_local.aws.cloudformation.calls import Properties, client
from emberpool_local.aws.cloudformation.resource import Made, register

EVERYTHING: Properties = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}


def register_types() -> None:
    """Teach moto the types of security groups."""
    register("AWS::EC2::SecurityGroup", _create_group, _delete_group, name_property="GroupName")
    register("AWS::EC2::SecurityGroupIngress", _create_ingress, _delete_ingress)
    register("AWS::EC2::SecurityGroupEgress", _create_egress, _delete_egress)


def _permission(rule: Properties) -> Properties:
    permission: Properties = {"IpProtocol": str(rule["IpProtocol"])}
    if "FromPort" in rule:
        permission |= {"FromPort": int(rule["FromPort"]), "ToPort": int(rule["ToPort"])}
    description = {"Description": rule.get("Description", "")}
    group = rule.get("SourceSecurityGroupId") or rule.get("DestinationSecurityGroupId")
    if group:
        permission["UserIdGroupPairs"] = [{"GroupId": group, **description}]
    elif "CidrIpv6" in rule:
        permission["Ipv6Ranges"] = [{"CidrIpv6": rule["CidrIpv6"], **description}]
    else:
        permission["IpRanges"] = [{"CidrIp": rule["CidrIp"], **description}]
    return permission


def _create_group(region: str, properties: Properties, name: str) -> Made:
    ec2 = client("ec2", region)
    group = ec2.create_security_group(
        GroupName=properties.get("GroupName") or name,
        Description=properties["GroupDescription"],
        VpcId=properties["VpcId"],
    )["GroupId"]
    if tags := properties.get("Tags"):
        ec2.create_tags(Resources=[group], Tags=[{"Key": tag["Key"], "Value": str(tag["Value"])} for tag in tags])
    if egress := properties.get("SecurityGroupEgress"):
        ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[EVERYTHING])
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[_permission(rule) for rule in egress])
    if ingress := properties.get("SecurityGroupIngress"):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in ingress])
    return Made(group, {"GroupId": group, "VpcId": properties["VpcId"], "Id": group})


def _delete_group(region: str, group: str, _: Properties) -> None:
    client("ec2", region).delete_security_group(GroupId=group)


def _create_ingress(region: str, properties: Properties, name: str) -> Made:
    client("ec2", region).authorize_security_group_ingress(
        GroupId=properties["GroupId"], IpPermissions=[_permission(properties)]
    )
    return Made(name)


def _delete_ingress(region: str, _: str, properties: Properties) -> None:
    client("ec2", region).revoke_security_group_ingress(
        GroupId=properties["GroupId"], IpPermissions=[_permission(properties)]
    )


def _create_egress(region: str, properties: Properties, name: str) -> Made:
    ec2 = client("ec2", region)
    # CloudFormation drops the default rule as soon as one is given; an earlier rule may have done it.
    with suppress(ClientError):
        ec2.revoke_security_group_egress(GroupId=properties["GroupId"], IpPermissions=[EVERYTHING])
    ec2.authorize_security_group_egress(GroupId=properties["GroupId"], IpPermissions=[_permission(properties)])
    return Made(name)


def _delete_egress(region: str, _: str, properties: Properties) -> None:
    client("ec2", region).revoke_security_group_egress(
        GroupId=properties["GroupId"], IpPermissions=[_permission(properties)]
    )
