"""The internal network load balancer before the tasks: TCP only, so that TLS ends at the proxy."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from constructs import Construct

from emberpool_cdk.proxy_container import CONTAINER_NAME, READY_PATH
from emberpool_proxy.settings import CLIENT_PORT, HEALTH_PORT

# Above PgBouncer's client_idle_timeout (3600): the side that tells the client closes first.
TCP_IDLE_TIMEOUT_SECONDS = 3900
# The time in which nothing new arrives at a task before it is told to stop.
DEREGISTRATION_DELAY_SECONDS = 15


def make_balancer(
    scope: Construct, *, vpc: ec2.IVpc, subnets: ec2.SubnetSelection, security_group: ec2.ISecurityGroup
) -> elbv2.NetworkLoadBalancer:
    """Make the load balancer; its name is known before the tasks, whose certificate is for it."""
    return elbv2.NetworkLoadBalancer(
        scope,
        "LoadBalancer",
        vpc=vpc,
        vpc_subnets=subnets,
        internet_facing=False,
        cross_zone_enabled=True,  # a zone without a task is still served, and tasks get equal shares
        # A function asks its own zone's node only. Many share one address; from two nodes at once two connections
        # with the same address and port could meet at one task, where the address is kept: AWS calls it socket reuse.
        client_routing_policy=elbv2.ClientRoutingPolicy.AVAILABILITY_ZONE_AFFINITY,
        security_groups=[security_group],
    )


def add_tasks(balancer: elbv2.NetworkLoadBalancer, service: ecs.FargateService) -> elbv2.NetworkTargetGroup:
    """Send what arrives on the clients' port to the tasks that say they are ready; return those as a group."""
    listener = balancer.add_listener(
        "Clients", port=CLIENT_PORT, tcp_idle_timeout=Duration.seconds(TCP_IDLE_TIMEOUT_SECONDS)
    )
    return listener.add_targets(
        "Tasks",
        port=CLIENT_PORT,
        targets=[service.load_balancer_target(container_name=CONTAINER_NAME, container_port=CLIENT_PORT)],
        preserve_client_ip=True,  # a refused login is logged and limited by the address it came from
        deregistration_delay=Duration.seconds(DEREGISTRATION_DELAY_SECONDS),
        health_check=elbv2.HealthCheck(
            protocol=elbv2.Protocol.HTTP,
            port=str(HEALTH_PORT),
            path=READY_PATH,
            interval=Duration.seconds(10),
            healthy_threshold_count=2,
            unhealthy_threshold_count=2,
        ),
    )
