"""The pooling proxy on Fargate behind an internal load balancer, and how functions are attached to it."""

from __future__ import annotations

import jsii
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from emberpool import settings as layer_settings
from emberpool_cdk.attachment import check_attachable, check_fits
from emberpool_cdk.connection_budget import RESERVED_CONNECTIONS, ConnectionBudget
from emberpool_cdk.pool_balancer import add_tasks, make_balancer
from emberpool_cdk.pool_database import PoolDatabase
from emberpool_cdk.pool_network import PoolNetwork
from emberpool_cdk.pool_secrets import CLIENT_USER, grant_tasks, make_ca_secret, make_client_secret
from emberpool_cdk.pool_service import Fleet, make_service
from emberpool_cdk.proxy_container import ARM_64, X86_64, add_proxy_container, environment
from emberpool_cdk.warm_connection_layer import WarmConnectionLayer
from emberpool_proxy.settings import CLIENT_PORT

CPU_UNITS = 1024  # of one vCPU


@jsii.implements(ec2.IConnectable)
class PoolProxy(Construct):
    """PgBouncer and its agent on Fargate, in at least two zones, behind an internal network load balancer.

    `min_tasks` run always; up to `max_tasks` by CPU load. `cpu` is in 1/1024 vCPU, `memory_limit_mib` in MiB (an idle
    client with TLS takes 56 KB). The share of each task follows from `database.max_connections`. The VPC needs its DNS
    support and DNS host names, which are on unless somebody turned them off.

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
        subnets = vpc_subnets or ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.client_secret = make_client_secret(self)
        self.ca_secret = make_ca_secret(self)
        self._network = PoolNetwork(self, vpc=vpc, database=database)
        self._connections = ec2.Connections(
            security_groups=[self._network.balancer_group], default_port=ec2.Port.tcp(CLIENT_PORT)
        )
        self.load_balancer = make_balancer(self, vpc=vpc, subnets=subnets, security_group=self._network.balancer_group)
        fleet = Fleet(self, vpc=vpc)
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
            environment=environment(
                database,
                client_secret_arn=self.client_secret.secret_arn,
                ca_secret_arn=self.ca_secret.secret_arn,
                host_names=[self.endpoint],
                fleet_name=fleet.name,
                max_server_connections=self.budget.per_task,
                processes=min(max(cpu // CPU_UNITS, 1), self.budget.per_task),
            ),
            architecture=architecture,
            log_retention=log_retention,
        )
        grant_tasks(
            self.task_definition.task_role,
            database_secret=database.secret,
            client_secret=self.client_secret,
            ca_secret=self.ca_secret,
        )
        self.service = make_service(
            self,
            cluster=cluster or ecs.Cluster(self, "Cluster", vpc=vpc),
            task_definition=self.task_definition,
            budget=self.budget,
            security_group=self._network.task_group,
            subnets=subnets,
            fleet=fleet,
        )
        add_tasks(self.load_balancer, self.service)

    @property
    def connections(self) -> ec2.Connections:
        """The network rules of the load balancer; the default port is the clients'."""
        return self._connections

    @property
    def endpoint(self) -> str:
        """The host name that functions connect to, and that the proxy's certificate is for."""
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
            # By the CA's certificate that the proxy writes into the secret.
            layer_settings.SSLMODE: "verify-full",
        }

    def attach(self, function: lambda_.Function, *, layer: WarmConnectionLayer | None = None) -> None:
        """Let a function use the pool: layer, environment, network and the permission to read the password.

        Without `layer` all functions of a stack share one that fits their architecture and runtime. Raises
        FunctionNotAttachable when the function is outside the VPC, was imported, has a runtime that the layer does
        not exist for, or does not fit the given layer.
        """
        check_attachable(function)
        if layer is None:
            layer = WarmConnectionLayer.shared(function, architecture=function.architecture, runtime=function.runtime)
        check_fits(function, layer)
        function.add_layers(layer)
        for name, value in self.function_environment().items():
            function.add_environment(name, value)
        self._network.open_to(function.connections.security_groups)
        self.grant_connect(function)


def _platform(architecture: str) -> ecs.RuntimePlatform:
    cpu = ecs.CpuArchitecture.ARM64 if architecture == ARM_64 else ecs.CpuArchitecture.X86_64
    return ecs.RuntimePlatform(cpu_architecture=cpu, operating_system_family=ecs.OperatingSystemFamily.LINUX)
