"""The internal network load balancer before the tasks: TCP only, so that TLS ends at the proxy."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from constructs import Construct

from emberpool_cdk.explained_findings import explain
from emberpool_cdk.proxy_container import CONTAINER_NAME, READY_PATH
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, HEALTH_PORT

# Above PgBouncer's client_idle_timeout (3600): the side that tells the client closes first.
TCP_IDLE_TIMEOUT_SECONDS = 3900
# The time in which nothing new arrives at a task before it is told to stop.
DEREGISTRATION_DELAY_SECONDS = 15


def make_balancer(
    scope: Construct,
    *,
    vpc: ec2.IVpc,
    subnets: ec2.SubnetSelection,
    security_group: ec2.ISecurityGroup,
    dual_stack: bool,
) -> elbv2.NetworkLoadBalancer:
    """Make the load balancer; its name is known before the tasks, whose certificate is for it."""
    balancer = elbv2.NetworkLoadBalancer(
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
        ip_address_type=elbv2.IpAddressType.DUAL_STACK if dual_stack else None,
    )
    explain(
        balancer,
        "AwsSolutions-ELB2",
        "A network load balancer writes access logs of TLS listeners only, and TLS passes through this one to the "
        "proxy, which logs every refused login with the address that it came from.",
    )
    return balancer


def add_tasks(
    balancer: elbv2.NetworkLoadBalancer, service: ecs.FargateService, *, has_data_endpoint: bool
) -> elbv2.NetworkTargetGroup:
    """Send what arrives on the clients' port to the tasks that say they are ready; return those as a group.

    With a data endpoint its port is another listener, and a group of its own with the same tasks.

    By IPv4, which every task has whatever the account's setting is: a group has addresses of one kind, and what arrives
    by IPv6 is translated. Those clients are seen with the load balancer's address.
    """
    if has_data_endpoint:
        _add_port(balancer, service, "Data", "DataTasks", DATA_PORT)
    return _add_port(balancer, service, "Clients", "Tasks", CLIENT_PORT)


def _add_port(
    balancer: elbv2.NetworkLoadBalancer, service: ecs.FargateService, listener_id: str, group_id: str, port: int
) -> elbv2.NetworkTargetGroup:
    listener = balancer.add_listener(
        listener_id, port=port, tcp_idle_timeout=Duration.seconds(TCP_IDLE_TIMEOUT_SECONDS)
    )
    return listener.add_targets(
        group_id,
        port=port,
        targets=[service.load_balancer_target(container_name=CONTAINER_NAME, container_port=port)],
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
