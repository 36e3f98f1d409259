"""The pooling proxy on Fargate behind an internal load balancer, and how functions are attached to it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jsii
from aws_cdk import (
    Duration,
    Token,
)
from aws_cdk import (
    aws_ec2 as ec2,
)
from aws_cdk import (
    aws_ecs as ecs,
)
from aws_cdk import (
    aws_elasticloadbalancingv2 as elbv2,
)
from aws_cdk import (
    aws_iam as iam,
)
from aws_cdk import (
    aws_lambda as lambda_,
)
from aws_cdk import (
    aws_logs as logs,
)
from aws_cdk import (
    aws_secretsmanager as secretsmanager,
)
from constructs import Construct

from emberpool import settings as layer_settings
from emberpool_cdk.connection_budget import RESERVED_CONNECTIONS, ConnectionBudget
from emberpool_cdk.layer_build import RUNTIMES
from emberpool_cdk.pool_database import PoolDatabase
from emberpool_cdk.proxy_container import (
    ARM_64,
    CONTAINER_NAME,
    READY_PATH,
    X86_64,
    add_proxy_container,
)
from emberpool_cdk.warm_connection_layer import WarmConnectionLayer
from emberpool_proxy import settings as proxy_settings

CLIENT_PORT = proxy_settings.CLIENT_PORT
HEALTH_PORT = proxy_settings.HEALTH_PORT
CLIENT_USER = "emberpool"
CLIENT_SECRET_CHARACTERS = 48  # letters and digits: 285 bits
BUDGET_METADATA = "emberpool:ConnectionBudget"
# Above PgBouncer's client_idle_timeout (3600): the side that tells the client closes first.
TCP_IDLE_TIMEOUT_SECONDS = 3900
# The time in which nothing new arrives at a task before it is told to stop.
DEREGISTRATION_DELAY_SECONDS = 15
SCALE_AT_CPU_PERCENT = 60  # PgBouncer has one thread: above this, logins queue


class FunctionNotAttachable(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The function cannot use the pool as it is: the message says what to change."""


@jsii.implements(ec2.IConnectable)
class PoolProxy(Construct):
    """PgBouncer and its agent on Fargate, in at least two zones, behind an internal network load balancer.

    `min_tasks` run always; up to `max_tasks` by CPU load. `cpu` is in 1/1024 vCPU, `memory_limit_mib` in MiB (an idle
    client with TLS takes 56 KB). The share of each task follows from `database.max_connections`.

    Raises BudgetExceeded when a deployment at full scale could exceed the database's limit, ValueError for an
    unknown architecture.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        vpc: ec2.IVpc,
        database: PoolDatabase,
        vpc_subnets: ec2.SubnetSelection | None = None,
        min_tasks: int = 2,
        max_tasks: int = 4,
        reserved_connections: int = RESERVED_CONNECTIONS,
        architecture: str = ARM_64,
        cpu: int = 512,
        memory_limit_mib: int = 1024,
        cluster: ecs.ICluster | None = None,
        log_retention: logs.RetentionDays = logs.RetentionDays.ONE_MONTH,
    ) -> None:
        super().__init__(scope, construct_id)
        if architecture not in (ARM_64, X86_64):
            raise ValueError(f"architecture must be {ARM_64} or {X86_64}, got {architecture!r}")
        self.vpc = vpc
        self.database = database
        self.budget = ConnectionBudget(
            max_connections=database.max_connections,
            min_tasks=min_tasks,
            max_tasks=max_tasks,
            reserved_connections=reserved_connections,
        )
        self._subnets = vpc_subnets or ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.client_secret = self._make_client_secret()
        self._balancer_group, self._task_group = self._make_security_groups()
        self._connections = ec2.Connections(
            security_groups=[self._balancer_group], default_port=ec2.Port.tcp(CLIENT_PORT)
        )
        self.task_definition = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=cpu,
            memory_limit_mib=memory_limit_mib,
            runtime_platform=_platform(architecture),
        )
        add_proxy_container(
            self,
            self.task_definition,
            database=database,
            client_secret=self.client_secret,
            max_server_connections=self.budget.per_task,
            architecture=architecture,
            log_retention=log_retention,
        )
        self.service = self._make_service(cluster or ecs.Cluster(self, "Cluster", vpc=vpc))
        self.load_balancer = self._make_load_balancer()

    @property
    def connections(self) -> ec2.Connections:
        """The network rules of the load balancer; the default port is the clients'."""
        return self._connections

    @property
    def endpoint(self) -> str:
        """The host name that functions connect to."""
        return self.load_balancer.load_balancer_dns_name

    @property
    def client_port(self) -> int:
        """The TCP port that functions connect to."""
        return CLIENT_PORT

    @property
    def client_user(self) -> str:
        """The user that functions log in as; its password is in `client_secret`."""
        return CLIENT_USER

    def grant_connect(self, grantee: iam.IGrantable) -> iam.Grant:
        """Allow reading the client's password. Whoever has it and reaches the port is in."""
        return self.client_secret.grant_read(grantee)

    def function_environment(self) -> dict[str, str]:
        """Return what a function needs in its environment; no secret is among it."""
        return {
            layer_settings.HOST: self.endpoint,
            layer_settings.PORT: str(CLIENT_PORT),
            layer_settings.DATABASE: self.database.name,
            layer_settings.USER: CLIENT_USER,
            layer_settings.SECRET_ARN: self.client_secret.secret_arn,
            # Each task signs its own certificate for now: the function encrypts but cannot verify who answers.
            layer_settings.SSLMODE: "require",
        }

    def attach(self, function: lambda_.Function, *, layer: WarmConnectionLayer | None = None) -> None:
        """Let a function use the pool: layer, environment, network and the permission to read the password.

        Without `layer` all functions of a stack share one that fits their architecture and runtime. Raises
        FunctionNotAttachable when the function is outside the VPC, was imported, has a runtime that the layer does
        not exist for, or does not fit the given layer.
        """
        _check_attachable(function)
        if layer is None:
            layer = WarmConnectionLayer.shared(function, architecture=function.architecture, runtime=function.runtime)
        _check_fits(function, layer)
        function.add_layers(layer)
        for name, value in self.function_environment().items():
            function.add_environment(name, value)
        self._open_network(function.connections.security_groups)
        self.grant_connect(function)

    def _open_network(self, groups: Sequence[ec2.ISecurityGroup]) -> None:
        port = ec2.Port.tcp(CLIENT_PORT)
        for group in groups:
            # Remote: the rule belongs to the function's stack, which already depends on this one.
            self._balancer_group.add_ingress_rule(group, port, "a function's queries", remote_rule=True)
            if not group.allow_all_outbound:
                group.add_egress_rule(self._balancer_group, port, "queries through emberpool")

    def _make_client_secret(self) -> secretsmanager.Secret:
        return secretsmanager.Secret(
            self,
            "ClientSecret",
            description="What functions log in with at the emberpool proxy",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template=json.dumps({"username": CLIENT_USER}),
                generate_string_key="password",
                password_length=CLIENT_SECRET_CHARACTERS,
                exclude_punctuation=True,
            ),
        )

    def _make_security_groups(self) -> tuple[ec2.SecurityGroup, ec2.SecurityGroup]:
        balancer = ec2.SecurityGroup(
            self, "BalancerSecurityGroup", vpc=self.vpc, allow_all_outbound=False, description="emberpool: functions"
        )
        tasks = ec2.SecurityGroup(
            self, "TaskSecurityGroup", vpc=self.vpc, allow_all_outbound=False, description="emberpool: proxy tasks"
        )
        balancer.connections.allow_to(tasks, ec2.Port.tcp(CLIENT_PORT), "queries")
        balancer.connections.allow_to(tasks, ec2.Port.tcp(HEALTH_PORT), "health checks")
        tasks.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "image, secrets and logs: AWS's own endpoints")
        port = _tcp(self.database.port)
        if self.database.security_group is None:
            tasks.add_egress_rule(ec2.Peer.any_ipv4(), port, "the database")
        else:
            # From the tasks' side, so that both rules land in this stack: the database's stays independent.
            tasks.connections.allow_to(self.database.security_group, port, "the pool's server connections")
        return balancer, tasks

    def _make_service(self, cluster: ecs.ICluster) -> ecs.FargateService:
        service = ecs.FargateService(
            self,
            "Service",
            cluster=cluster,
            task_definition=self.task_definition,
            desired_count=self.budget.min_tasks,
            min_healthy_percent=100,
            max_healthy_percent=100 * self.budget.surge,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            health_check_grace_period=Duration.seconds(60),
            security_groups=[self._task_group],
            vpc_subnets=self._subnets,
            assign_public_ip=False,
            platform_version=ecs.FargatePlatformVersion.VERSION1_4,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
        resource = service.node.find_child("Service")
        if isinstance(resource, ecs.CfnService):
            resource.add_metadata(BUDGET_METADATA, self.budget.as_metadata())
        if self.budget.max_tasks > self.budget.min_tasks:
            scaling = service.auto_scale_task_count(
                min_capacity=self.budget.min_tasks, max_capacity=self.budget.max_tasks
            )
            scaling.scale_on_cpu_utilization("Cpu", target_utilization_percent=SCALE_AT_CPU_PERCENT)
        return service

    def _make_load_balancer(self) -> elbv2.NetworkLoadBalancer:
        balancer = elbv2.NetworkLoadBalancer(
            self,
            "LoadBalancer",
            vpc=self.vpc,
            vpc_subnets=self._subnets,
            internet_facing=False,
            cross_zone_enabled=True,  # a zone without a task is still served, and tasks get equal shares
            security_groups=[self._balancer_group],
        )
        listener = balancer.add_listener(
            "Clients", port=CLIENT_PORT, tcp_idle_timeout=Duration.seconds(TCP_IDLE_TIMEOUT_SECONDS)
        )
        listener.add_targets(
            "Tasks",
            port=CLIENT_PORT,
            targets=[self.service.load_balancer_target(container_name=CONTAINER_NAME, container_port=CLIENT_PORT)],
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
        return balancer


def _platform(architecture: str) -> ecs.RuntimePlatform:
    cpu = ecs.CpuArchitecture.ARM64 if architecture == ARM_64 else ecs.CpuArchitecture.X86_64
    return ecs.RuntimePlatform(cpu_architecture=cpu, operating_system_family=ecs.OperatingSystemFamily.LINUX)


def _tcp(port: int) -> ec2.Port:
    if not Token.is_unresolved(port):
        return ec2.Port.tcp(port)
    # CloudFormation knows the port only at deploy time: named so that the rule's id does not depend on it.
    return ec2.Port(protocol=ec2.Protocol.TCP, string_representation="database", from_port=port, to_port=port)


def _check_attachable(function: lambda_.Function) -> None:
    path = function.node.path
    if not isinstance(function, lambda_.Function):
        raise FunctionNotAttachable(
            f"{path} was imported, so its layers and environment cannot be changed from here: give it "
            "WarmConnectionLayer and PoolProxy.function_environment() where it is defined"
        )
    if not function.is_bound_to_vpc:
        raise FunctionNotAttachable(
            f"{path} is outside the VPC and cannot reach the pool: pass vpc= and vpc_subnets= to the function"
        )
    if function.runtime.name not in RUNTIMES:
        raise FunctionNotAttachable(
            f"{path} has the runtime {function.runtime.name}, the layer exists for {', '.join(RUNTIMES)}"
        )


def _check_fits(function: lambda_.Function, layer: WarmConnectionLayer) -> None:
    wanted, built = (function.architecture.name, function.runtime.name), (layer.architecture_name, layer.runtime_name)
    if wanted != built:
        raise FunctionNotAttachable(
            f"{function.node.path} is for {' and '.join(wanted)}, but the layer {layer.node.path} is for "
            f"{' and '.join(built)}: pass another layer, or none to get one that fits"
        )
