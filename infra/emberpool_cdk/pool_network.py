"""The pool's security groups: who reaches the balancer or the tasks, and what the tasks reach."""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Token
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from emberpool_cdk.pool_database import PoolDatabase
from emberpool_proxy.settings import CLIENT_PORT, HEALTH_PORT


class PoolNetwork:
    """A security group for the load balancer and one for the tasks, with the rules between them and to the database.

    `entry_group` is the one that functions reach: the tasks' own where there is no load balancer.
    """

    def __init__(self, scope: Construct, *, vpc: ec2.IVpc, database: PoolDatabase, with_balancer: bool) -> None:
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

    def open_to(self, groups: Sequence[ec2.ISecurityGroup]) -> None:
        """Let functions with these security groups reach the load balancer, or the tasks."""
        port = ec2.Port.tcp(CLIENT_PORT)
        for group in groups:
            # Remote: the rule belongs to the function's stack, which already depends on this one.
            self.entry_group.add_ingress_rule(group, port, "a function's queries", remote_rule=True)
            if not group.allow_all_outbound:
                group.add_egress_rule(self.entry_group, port, "queries through emberpool")

    def _open_balancer_to_tasks(self, balancer_group: ec2.SecurityGroup) -> None:
        # By group, not by address: AWS lets the balancer's traffic in even where it keeps the function's address.
        connections = balancer_group.connections
        connections.allow_to(self.task_group, ec2.Port.tcp(CLIENT_PORT), "queries")
        connections.allow_to(self.task_group, ec2.Port.tcp(HEALTH_PORT), "health checks")

    def _open_tasks_to_each_other(self) -> None:
        connections = self.task_group.connections
        connections.allow_internally(ec2.Port.tcp(CLIENT_PORT), "cancel requests for queries of another task")
        connections.allow_internally(ec2.Port.tcp(HEALTH_PORT), "who is in the fleet")

    def _open_tasks_to_others(self, database: PoolDatabase) -> None:
        tasks = self.task_group
        tasks.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "image, secrets and logs: AWS's own endpoints")
        port = _tcp(database.port)
        if database.security_group is None:
            tasks.add_egress_rule(ec2.Peer.any_ipv4(), port, "the database")
        else:
            # From the tasks' side, so that both rules land in this stack: the database's stays independent.
            tasks.connections.allow_to(database.security_group, port, "the pool's server connections")


def _tcp(port: int) -> ec2.Port:
    if not Token.is_unresolved(port):
        return ec2.Port.tcp(port)
    # CloudFormation knows the port only at deploy time: named so that the rule's id does not depend on it.
    return ec2.Port(protocol=ec2.Protocol.TCP, string_representation="database", from_port=port, to_port=port)
