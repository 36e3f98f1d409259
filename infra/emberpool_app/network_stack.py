"""The network of our app: a VPC of its own without a way to the internet."""

from __future__ import annotations

from typing import Any

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from emberpool_cdk import add_pool_endpoints

ZONES = 2


class NetworkStack(Stack):
    """A VPC with isolated subnets in two zones and the endpoints that replace a NAT gateway.

    With `dual_stack` each subnet has IPv6 addresses beside the others, and as little of a way out.
    """

    def __init__(self, scope: Construct, construct_id: str, *, dual_stack: bool = False, **stack: Any) -> None:
        super().__init__(scope, construct_id, **stack)
        self.subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr("10.64.0.0/16"),
            ip_protocol=ec2.IpProtocol.DUAL_STACK if dual_stack else None,
            max_azs=ZONES,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=20)
            ],
        )
        add_pool_endpoints(self.vpc, subnets=self.subnets, only_for_pool=True)
        self._log_what_is_refused()

    def _log_what_is_refused(self) -> None:
        # Nothing is refused where all is well: so this costs nothing, and tells of a rule that lacks or of somebody
        # who tries doors.
        log_group = logs.LogGroup(
            self, "Refused", retention=logs.RetentionDays.ONE_WEEK, removal_policy=RemovalPolicy.DESTROY
        )
        self.vpc.add_flow_log(
            "FlowLog",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(log_group),
            traffic_type=ec2.FlowLogTrafficType.REJECT,
        )
