"""A user's VPC without a way out: its endpoints are enough for a pool in it."""

from __future__ import annotations

import json
from pathlib import Path

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Template
from tests.infra.conftest import make_app

from emberpool_cdk import PoolDatabase, PoolProxy, add_pool_endpoints


def test_isolated_subnets_get_what_tasks_and_functions_call(tmp_path: Path) -> None:
    """Four interface endpoints and S3's gateway are there, nothing leads out, and a pool there synthesizes."""
    stack = Stack(make_app(tmp_path), "Users")
    private = ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
    vpc = ec2.Vpc(stack, "Vpc", max_azs=2, nat_gateways=0, subnet_configuration=[private])
    subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
    add_pool_endpoints(vpc, subnets=subnets)
    secret = secretsmanager.Secret.from_secret_name_v2(stack, "Secret", "theirs")
    database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=200)
    PoolProxy(stack, "Pool", vpc=vpc, vpc_subnets=subnets, database=database)
    template = Template.from_stack(stack)
    endpoints = [each["Properties"] for each in template.find_resources("AWS::EC2::VPCEndpoint").values()]
    kinds = [each["VpcEndpointType"] for each in endpoints]
    assert (kinds.count("Interface"), kinds.count("Gateway")) == (4, 1)
    named = json.dumps([each["ServiceName"] for each in endpoints])
    assert all(service in named for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", ".s3"))
    assert all(each["PrivateDnsEnabled"] for each in endpoints if each["VpcEndpointType"] == "Interface")
    template.resource_count_is("AWS::EC2::NatGateway", 0)
    template.resource_count_is("AWS::EC2::InternetGateway", 0)
