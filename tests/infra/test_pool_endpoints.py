"""A VPC without a way out: which endpoints a pool in it needs, what they let through, and the warning without them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Annotations, Match, Template
from tests.infra.conftest import CHECKOUT, Synthesized, make_app

from emberpool_app.deployment import NETWORK, POOL
from emberpool_cdk import PoolDatabase, PoolProxy, add_pool_endpoints
from emberpool_cdk.pool_endpoints import CALLS, ENDPOINTS, NOT_NEEDED
from emberpool_cdk.pool_secrets import TO_ENCRYPT
from emberpool_cdk.way_out import NO_WAY_OUT
from emberpool_proxy.settings import variable

ISOLATED = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
PUBLIC = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC)
WITH_NAT = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
SERVICES = [each.service for each in ENDPOINTS]


class Users:
    """A user's stack with a VPC of one kind of private subnets."""

    def __init__(self, folder: Path, kind: ec2.SubnetType = ec2.SubnetType.PRIVATE_ISOLATED) -> None:
        self.app = make_app(folder)
        self.stack = Stack(self.app, "Users")
        subnets = [ec2.SubnetConfiguration(name="Private", subnet_type=kind)]
        if kind is ec2.SubnetType.PRIVATE_WITH_EGRESS:
            subnets.append(ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC))
        self.vpc: ec2.IVpc = ec2.Vpc(self.stack, "Vpc", max_azs=2, nat_gateways=None, subnet_configuration=subnets)

    def pool(self, subnets: ec2.SubnetSelection = ISOLATED, vpc: ec2.IVpc | None = None) -> PoolProxy:
        secret = secretsmanager.Secret.from_secret_name_v2(self.stack, "Secret", "theirs")
        database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=200)
        return PoolProxy(self.stack, "Pool", vpc=vpc or self.vpc, vpc_subnets=subnets, database=database)

    def said(self, read: Callable[[Annotations], Any]) -> list[str]:
        """Synthesize and return what is said of ways out."""
        return [str(entry.entry.data) for entry in read(Annotations.from_stack(self.stack))]

    def warnings(self) -> list[str]:
        return self.said(lambda all_: all_.find_warning("/Users/Pool", Match.string_like_regexp(NO_WAY_OUT)))


def test_isolated_subnets_get_what_tasks_and_functions_call(tmp_path: Path) -> None:
    """Four interface endpoints and S3's gateway are there, nothing leads out, and a pool there needs no more."""
    users = Users(tmp_path)
    add_pool_endpoints(users.vpc, subnets=ISOLATED)
    users.pool()
    template = Template.from_stack(users.stack)
    endpoints = [each["Properties"] for each in template.find_resources("AWS::EC2::VPCEndpoint").values()]
    kinds = [each["VpcEndpointType"] for each in endpoints]
    assert (kinds.count("Interface"), kinds.count("Gateway")) == (4, 1)
    named = json.dumps([each["ServiceName"] for each in endpoints])
    assert all(service in named for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", ".s3"))
    assert all(each["PrivateDnsEnabled"] for each in endpoints if each["VpcEndpointType"] == "Interface")
    assert not any("PolicyDocument" in each for each in endpoints)
    template.resource_count_is("AWS::EC2::NatGateway", 0)
    template.resource_count_is("AWS::EC2::InternetGateway", 0)
    assert users.warnings() == []


def test_endpoints_answer_the_vpc_and_call_nobody(synthesized: Synthesized) -> None:
    """All interface endpoints have one security group: HTTPS from the VPC's own addresses, and no way out."""
    (group,) = synthesized.resources(NETWORK, "AWS::EC2::SecurityGroup")
    (rule,) = group["Properties"]["SecurityGroupIngress"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (443, 443, "tcp")
    assert rule["CidrIp"]["Fn::GetAtt"][1] == "CidrBlock"
    assert [rule["CidrIp"] for rule in group["Properties"]["SecurityGroupEgress"]] == ["255.255.255.255/32"]


def test_our_own_endpoints_let_nothing_else_through(synthesized: Synthesized) -> None:
    """From our app's VPC nothing can be written to S3, and only this account's roles reach its log and secrets."""
    endpoints = [each["Properties"] for each in synthesized.resources(NETWORK, "AWS::EC2::VPCEndpoint")]
    policies = {
        json.dumps(each["ServiceName"]).rsplit(".", 1)[1].split('"')[0]: each["PolicyDocument"]["Statement"]
        for each in endpoints
        if "PolicyDocument" in each
    }
    assert set(policies) == {"s3", "logs", "secretsmanager"}
    (layers,) = policies["s3"]
    assert layers["Action"] == "s3:GetObject"
    assert json.dumps(layers["Resource"]).endswith('"-starport-layer-bucket/*"]]}')
    for service in ("logs", "secretsmanager"):
        (statement,) = policies[service]
        assert statement["Action"] == [f"{service}:{call}" for call in CALLS[service]]
        assert statement["Condition"] == {"StringEquals": {"aws:PrincipalAccount": {"Ref": "AWS::AccountId"}}}


def test_every_service_that_is_called_is_in_the_list(synthesized: Synthesized) -> None:
    """What the proxy's and the layer's code asks of AWS has an endpoint, or a reason why it needs none."""
    proxy = (CHECKOUT / "proxy_service/emberpool_proxy/aws_call.py").read_text()
    layer = "\n".join(path.read_text() for path in (CHECKOUT / "lambda_layer/emberpool").glob("*.py"))
    called = set(re.findall(r'_client\(\s*"([a-z-]+)"', proxy)) | set(re.findall(r'client\(\s*"([a-z-]+)"', layer))
    assert {"secretsmanager", "servicediscovery"} <= called
    known = {*SERVICES, *(name for names, _ in NOT_NEEDED for name in names.split(", "))}
    assert called <= known
    # The proxy itself calls Cloud Map only by a setting that the construct does not write.
    assert variable("cloud_map_service_id") not in json.dumps(synthesized.templates[POOL])
    assert "kms:Decrypt" in TO_ENCRYPT  # asked for by Secrets Manager, as the condition of that grant says


def test_missing_endpoints_are_a_warning_with_the_way_to_make_them(tmp_path: Path) -> None:
    """Tasks that could not start are no surprise after the deployment."""
    users = Users(tmp_path)
    users.pool()
    (said,) = users.warnings()
    assert f"no endpoint in it for {', '.join(SERVICES)}: tasks could not start" in said
    assert "add_pool_endpoints(vpc, subnets=...)" in said


def test_only_what_is_missing_is_named_wherever_the_others_are_made(tmp_path: Path) -> None:
    """Endpoints by hand count, those of another stack and those made after the pool too; other VPCs' do not."""
    users = Users(tmp_path)
    users.pool()
    users.vpc.add_interface_endpoint("Api", service=ec2.InterfaceVpcEndpointAwsService.ECR)
    other = Stack(users.app, "Other")
    service = ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS
    ec2.InterfaceVpcEndpoint(other, "Logs", vpc=users.vpc, service=service)
    others_vpc = ec2.Vpc(other, "Vpc", max_azs=1, nat_gateways=0)
    others_vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
    (said,) = users.warnings()
    assert "no endpoint in it for s3, ecr.dkr, secretsmanager: " in said


def test_route_out_of_the_vpc_is_enough(tmp_path: Path) -> None:
    """A NAT gateway, or another default route that this app makes, is a way to AWS."""
    nat = Users(tmp_path / "nat", ec2.SubnetType.PRIVATE_WITH_EGRESS)
    nat.pool(WITH_NAT)
    assert nat.warnings() == []
    transit = Users(tmp_path / "transit")
    transit.pool()
    for index, subnet in enumerate(transit.vpc.isolated_subnets):
        ec2.CfnRoute(
            transit.stack,
            f"Route{index}",
            route_table_id=subnet.route_table.route_table_id,
            destination_cidr_block="0.0.0.0/0",
            transit_gateway_id="tgw-0123456789abcdef0",
        )
    assert transit.warnings() == []


def test_public_subnets_are_no_way_out(tmp_path: Path) -> None:
    """The tasks get no public address, so that an internet gateway does not lead them anywhere."""
    users = Users(tmp_path, ec2.SubnetType.PUBLIC)
    users.pool(PUBLIC)
    assert len(users.warnings()) == 1


@pytest.mark.parametrize("is_isolated", [True, False])
def test_imported_vpc_may_have_what_is_not_seen_here(tmp_path: Path, is_isolated: bool) -> None:
    """Of isolated subnets of a VPC that others made it is said, without a warning; of others nothing."""
    users = Users(tmp_path)
    kind = "isolated_subnet_ids" if is_isolated else "private_subnet_ids"
    ids: Any = {kind: ["subnet-1", "subnet-2"], "availability_zones": ["us-east-1a", "us-east-1b"]}
    vpc = ec2.Vpc.from_vpc_attributes(users.stack, "Theirs", vpc_id="vpc-1", **ids)
    users.pool(ISOLATED if is_isolated else WITH_NAT, vpc)
    assert users.warnings() == []
    said = users.said(lambda all_: all_.find_info("/Users/Pool", Match.string_like_regexp("no way out of the VPC")))
    assert [each.endswith("unless the VPC has them already") for each in said] == [True] * is_isolated
