"""The ECS service of the tasks: how many there are, how they are replaced, and how they find each other."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_kms as kms
from aws_cdk import aws_servicediscovery as servicediscovery
from constructs import Construct

from emberpool_cdk.connection_budget import ConnectionBudget
from emberpool_cdk.explained_findings import explain, explain_to_cfn_lint

BUDGET_METADATA = "emberpool:ConnectionBudget"
SCALE_AT_CPU_PERCENT = 60  # PgBouncer has one thread: above this, logins queue
# A task that is full refuses logins; environments keep their connections, so new tasks get new clients only.
SCALE_AT_CLIENTS_PERCENT = 60
FLEET_SERVICE = "tasks"
FLEET_TTL_SECONDS = 10


@dataclass(frozen=True)
class ClientLoad:
    """The average number of clients a task, and how many one may have."""

    per_task: cloudwatch.IMetric
    most: int


class Fleet:
    """A DNS name inside the VPC whose addresses are the running tasks: a private namespace of Cloud Map.

    With `has_ipv6` the tasks' IPv6 addresses are in it, too; ECS registers no task then that has none.

    The hosted zone costs 0.50 USD a month, and Route 53 0.40 USD for a million questions, which four tasks ask in a
    month or two. The tasks need no way to Cloud Map: ECS registers them.
    """

    def __init__(self, scope: Construct, *, vpc: ec2.IVpc, has_ipv6: bool) -> None:
        self._has_ipv6 = has_ipv6
        # From the construct's path: two pools in one VPC must not share a zone. `.internal` is never delegated.
        zone = f"emberpool-{scope.node.addr[-10:]}.internal"
        self.name = f"{FLEET_SERVICE}.{zone}"
        self._namespace = servicediscovery.PrivateDnsNamespace(
            scope, "Namespace", vpc=vpc, name=zone, description="emberpool: the proxy's tasks, for each other"
        )

    def as_options(self) -> ecs.CloudMapOptions:
        """Return what makes ECS register each task."""
        return ecs.CloudMapOptions(
            cloud_map_namespace=self._namespace,
            name=FLEET_SERVICE,
            dns_record_type=servicediscovery.DnsRecordType.A_AAAA
            if self._has_ipv6
            else servicediscovery.DnsRecordType.A,
            dns_ttl=Duration.seconds(FLEET_TTL_SECONDS),
        )


def make_cluster(scope: Construct, *, vpc: ec2.IVpc, key: kms.IKey | None) -> ecs.Cluster:
    """Make a cluster whose tasks' disks are encrypted with `key`, by default with one of Fargate's.

    The proxy's rendered files are there, the database's password among them; the key's policy gets what Fargate needs.
    """
    storage = ecs.ManagedStorageConfiguration(fargate_ephemeral_storage_kms_key=key) if key else None
    cluster = ecs.Cluster(scope, "Cluster", vpc=vpc, managed_storage_configuration=storage)
    explain(
        cluster,
        "AwsSolutions-ECS4",
        "Container Insights is paid for by the metric, and the pool has metrics, alarms and a dashboard of its own. "
        "Give the pool a cluster of yours to have both.",
    )
    return cluster


def make_service(
    scope: Construct,
    *,
    cluster: ecs.ICluster,
    task_definition: ecs.FargateTaskDefinition,
    budget: ConnectionBudget,
    security_group: ec2.ISecurityGroup,
    subnets: ec2.SubnetSelection,
    fleet: Fleet,
    has_balancer: bool,
    clients: ClientLoad | None,
) -> ecs.FargateService:
    """Make the service, scaled between the budget's numbers of tasks: by CPU, and by `clients` where they are known."""
    service = ecs.FargateService(
        scope,
        "Service",
        cluster=cluster,
        task_definition=task_definition,
        desired_count=budget.min_tasks,
        min_healthy_percent=100,
        max_healthy_percent=100 * budget.surge,
        circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
        health_check_grace_period=Duration.seconds(60) if has_balancer else None,  # ECS refuses it without
        security_groups=[security_group],
        vpc_subnets=subnets,
        assign_public_ip=False,
        platform_version=ecs.FargatePlatformVersion.VERSION1_4,
        propagate_tags=ecs.PropagatedTagSource.SERVICE,
        cloud_map_options=fleet.as_options(),
    )
    resource = service.node.find_child("Service")
    if isinstance(resource, ecs.CfnService):
        resource.add_metadata(BUDGET_METADATA, budget.as_metadata())
        if has_balancer:
            # The CDK lets the service depend on its target group, which it refers to anyway.
            explain_to_cfn_lint(resource, "W3005")
    if budget.max_tasks > budget.min_tasks:
        scaling = service.auto_scale_task_count(min_capacity=budget.min_tasks, max_capacity=budget.max_tasks)
        scaling.scale_on_cpu_utilization("Cpu", target_utilization_percent=SCALE_AT_CPU_PERCENT)
        if clients:
            scaling.scale_to_track_custom_metric(
                "Clients", metric=clients.per_task, target_value=clients.most * SCALE_AT_CLIENTS_PERCENT / 100
            )
    return service
