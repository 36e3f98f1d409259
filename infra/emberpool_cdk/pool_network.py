"""The pool's security groups: who reaches the balancer or the tasks, and what the tasks reach."""

from __future__ import annotations

from typing import cast

from aws_cdk import Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from emberpool_cdk.pool_database import PoolDatabase
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, HEALTH_PORT


class PoolNetwork:
    """A security group for the load balancer and one for the tasks, with the rules between them and to the database.

    `entry_group` is the one that functions reach: the tasks' own where there is no load balancer. A rule between groups
    is for addresses of both kinds; with `dual_stack` those to addresses are made for both.
    """

    def __init__(
        self,
        scope: Construct,
        *,
        vpc: ec2.IVpc,
        database: PoolDatabase,
        with_balancer: bool,
        dual_stack: bool,
        has_data_endpoint: bool,
    ) -> None:
        self._entries = ((CLIENT_PORT, "queries"), *(((DATA_PORT, "data endpoint"),) if has_data_endpoint else ()))
        self._everywhere = (ec2.Peer.any_ipv4(), *((ec2.Peer.any_ipv6(),) if dual_stack else ()))
        balancer_group = (
            ec2.SecurityGroup(
                scope, "BalancerSecurityGroup", vpc=vpc, allow_all_outbound=False, description="emberpool: functions"
            )
            if with_balancer
            else None
        )
        self.task_group = ec2.SecurityGroup(
            scope, "TaskSecurityGroup", vpc=vpc, allow_all_outbound=False, description="emberpool: proxy tasks"
        )
        self.entry_group = balancer_group or self.task_group
        if balancer_group is not None:
            self._open_balancer_to_tasks(balancer_group)
        self._open_tasks_to_each_other()
        self._open_tasks_to_others(database)

    def open_to(self, function: lambda_.Function) -> None:
        """Let a function reach the load balancer, or the tasks."""
        for group in function.connections.security_groups:
            for port, what in self._entries:
                # Remote: the rule belongs to the function's stack, which already depends on this one.
                self.entry_group.add_ingress_rule(group, ec2.Port.tcp(port), f"{what} of a function", remote_rule=True)
                if not group.allow_all_outbound:
                    group.add_egress_rule(self.entry_group, ec2.Port.tcp(port), f"{what} through emberpool")
                elif _has_ipv6(function) and not getattr(group, "allow_all_ipv6_outbound", False):
                    self._open_ipv6(group, port, f"{what} through emberpool")

    def _open_ipv6(self, group: ec2.ISecurityGroup, port: int, description: str) -> None:
        # "All outbound" is all of IPv4, and makes add_egress_rule() leave out what it takes for allowed.
        suffix = "" if port == CLIENT_PORT else f"-{port}"
        construct_id = f"ToEmberpool-{self.entry_group.node.addr[-10:]}{suffix}"
        if group.node.try_find_child(construct_id) is None:
            ec2.CfnSecurityGroupEgress(
                cast("Construct", group),
                construct_id,
                group_id=group.security_group_id,
                destination_security_group_id=self.entry_group.security_group_id,
                ip_protocol="tcp",
                from_port=port,
                to_port=port,
                description=description,
            )

    def _open_balancer_to_tasks(self, balancer_group: ec2.SecurityGroup) -> None:
        # By group, not by address: AWS lets the balancer's traffic in even where it keeps the function's address.
        connections = balancer_group.connections
        for port, what in self._entries:
            connections.allow_to(self.task_group, ec2.Port.tcp(port), what)
        connections.allow_to(self.task_group, ec2.Port.tcp(HEALTH_PORT), "health checks")

    def _open_tasks_to_each_other(self) -> None:
        connections = self.task_group.connections
        connections.allow_internally(ec2.Port.tcp(CLIENT_PORT), "cancel requests for queries of another task")
        connections.allow_internally(ec2.Port.tcp(HEALTH_PORT), "who is in the fleet")
        if len(self._entries) > 1:
            connections.allow_internally(ec2.Port.tcp(DATA_PORT), "calls for a transaction of another task")

    def _open_tasks_to_others(self, database: PoolDatabase) -> None:
        tasks = self.task_group
        port = _tcp(database.port)
        for anywhere in self._everywhere:
            # Not by group, even where all are interface endpoints of this VPC: image layers come from S3's addresses.
            tasks.add_egress_rule(anywhere, ec2.Port.tcp(443), "image, secrets and logs: endpoints of AWS")
            if database.security_group is None:
                tasks.add_egress_rule(anywhere, port, "the database")
        if database.security_group is not None:
            # From the tasks' side, so that both rules land in this stack: the database's stays independent.
            tasks.connections.allow_to(database.security_group, port, "server connections of the pool")


def check_ipv6(vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> None:
    """Raise ValueError for a subnet of this app that gives no IPv6 addresses; of imported ones that is not known."""
    for subnet in select_subnets(vpc, subnets).subnets:
        made = subnet.node.default_child
        if isinstance(made, ec2.CfnSubnet) and not (made.ipv6_cidr_block and made.assign_ipv6_address_on_creation):
            raise ValueError(
                f"dual_stack needs subnets with IPv6 addresses, and {subnet.node.path} gives none: make the VPC with "
                "ip_protocol=ec2.IpProtocol.DUAL_STACK, or leave dual_stack out"
            )


def select_subnets(vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> ec2.SelectedSubnets:
    """Return what a selection selects of a VPC."""
    return vpc.select_subnets(
        availability_zones=subnets.availability_zones,
        one_per_az=subnets.one_per_az,
        subnet_filters=subnets.subnet_filters,
        subnet_group_name=subnets.subnet_group_name,
        subnets=subnets.subnets,
        subnet_type=subnets.subnet_type,
    )


def _has_ipv6(function: lambda_.Function) -> bool:
    made = function.node.default_child
    network = made.vpc_config if isinstance(made, lambda_.CfnFunction) else None
    return isinstance(network, lambda_.CfnFunction.VpcConfigProperty) and bool(network.ipv6_allowed_for_dual_stack)


def _tcp(port: int) -> ec2.Port:
    if not Token.is_unresolved(port):
        return ec2.Port.tcp(port)
    # CloudFormation knows the port only at deploy time: named so that the rule's id does not depend on it.
    return ec2.Port(protocol=ec2.Protocol.TCP, string_representation="database", from_port=port, to_port=port)
