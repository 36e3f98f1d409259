"""The network of our app: a VPC of its own without a way to the internet."""

from __future__ import annotations

from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from emberpool_cdk import add_pool_endpoints

ZONES = 2


class NetworkStack(Stack):
    """A VPC with isolated subnets in two zones and the endpoints that replace a NAT gateway."""

    def __init__(self, scope: Construct, construct_id: str, **stack: Any) -> None:
        super().__init__(scope, construct_id, **stack)
        self.subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr("10.64.0.0/16"),
            max_azs=ZONES,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=20)
            ],
        )
        add_pool_endpoints(self.vpc, subnets=self.subnets)
