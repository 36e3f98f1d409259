"""The pooling proxy on Fargate behind an internal load balancer, and how functions are attached to it."""

from __future__ import annotations

from collections.abc import Mapping

import jsii
from aws_cdk import Annotations, Names, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from emberpool_cdk.attachment import AttachedFunctions, check_attachable, check_fits, remember_attached
from emberpool_cdk.budget_neighbours import PlacedBudget, place
from emberpool_cdk.chosen_settings import Chosen
from emberpool_cdk.connection_budget import FLOOR_CONNECTIONS, RESERVED_CONNECTIONS, ConnectionBudget, least_floor
from emberpool_cdk.function_settings import function_variables
from emberpool_cdk.pool_balancer import add_tasks, make_balancer
from emberpool_cdk.pool_client import PoolClient, PoolClients
from emberpool_cdk.pool_database import PoolDatabase
from emberpool_cdk.pool_encryption import PoolKey
from emberpool_cdk.pool_metrics import PoolMetrics
from emberpool_cdk.pool_network import PoolNetwork, check_ipv6
from emberpool_cdk.pool_secrets import (
    CLIENT_USER,
    grant_read,
    grant_tasks,
    make_ca_secret,
    make_client_secret,
)
from emberpool_cdk.pool_service import FLEET_TTL_SECONDS, ClientLoad, Fleet, make_cluster, make_service
from emberpool_cdk.proxy_container import ARM_64, X86_64, add_proxy_container, environment
from emberpool_cdk.queue_wait import TRANSACTION_SECONDS
from emberpool_cdk.task_settings import check_environment, task_variables
from emberpool_cdk.warm_connection_layer import PublishedLayer, WarmConnectionLayer
from emberpool_cdk.way_out import watch_way_out
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, EVERY_ADDRESS, PLAIN_NAME, RANGES, ProxySettings

CPU_UNITS = 1024  # of one vCPU
LONGEST_NAME = 63  # of a budget
ENDPOINTS = NLB, DNS = "nlb", "dns"
# AWS's user guide: a paused Aurora resumes in about 15 s; after more than a day in about 30.
RESUME_SECONDS = 30


@jsii.implements(ec2.IConnectable)
class PoolProxy(PoolMetrics, Construct):
    """PgBouncer and its agent on Fargate, in at least two zones, behind an internal network load balancer.

    With `endpoint="dns"` there is no load balancer: functions find the tasks by their name in the VPC.

    `min_tasks` run always; up to `max_tasks` by CPU load and, with `metrics`, by the number of clients. `cpu` is in
    1/1024 vCPU, `memory_limit_mib` in MiB (an idle client with TLS takes 56 KB). The VPC needs its DNS support and DNS
    host names, which are on unless somebody turned them off.

    All tasks share `database.max_connections` without `reserved_connections`: each may always have
    `floor_connections` (default: 2, or what the PgBouncers of a larger task need), the others go to the tasks whose
    clients wait. Pools with the same `budget_name` (default: this construct's own) on one database have one budget,
    in which each counts the others' tasks as `other_tasks`; before several databases of one server they also need the
    same `budget_database`, to which their roles may connect. To a pool with a budget of its own the others'
    connections are reserved ones.

    Clients wait at most `query_wait_seconds` for a server connection, and synth warns when the attached functions may
    wait for longer than they can, if all have a transaction of `transaction_seconds` at once. `metrics` go to
    CloudWatch through the log (18 of them: 5.40 USD a month); `metrics_service` (default: from this construct's path)
    tells them from other pools'. `encryption_key` is for the secrets and the log that
    are made here and, unless `cluster` is given, for the tasks' disks; an imported key's policy is yours to change, and
    synth says how. With `dual_stack`, in subnets with IPv6, functions may connect by IPv6, too.

    With `data_endpoint` the tasks also answer SQL over HTTPS, as the RDS Data API does: boto3's `rds-data` client, or
    the layer's `data_client()`, needs no driver and holds no connection.

    `database_roles` are further roles in the same database, each with its secret, by the database name that clients
    with that role connect to: for users by `add_client`. `settings` are further fields of the proxy's settings
    (docs/proxy.md), such as {"reset_policy": "always"}.

    Raises BudgetExceeded when a deployment at full scale could exceed the database's limit, ValueError for an
    unknown architecture, a name that is none, a count out of range, or a setting that the proxy would refuse.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        vpc: ec2.IVpc,
        database: PoolDatabase,
        vpc_subnets: ec2.SubnetSelection | None = None,
        endpoint: str = NLB,
        min_tasks: int = 2,
        max_tasks: int = 4,
        reserved_connections: int = RESERVED_CONNECTIONS,
        floor_connections: int | None = None,
        budget_name: str | None = None,
        budget_database: str = "",
        other_tasks: int = 0,
        architecture: str = ARM_64,
        cpu: int = 512,
        memory_limit_mib: int = 1024,
        cluster: ecs.ICluster | None = None,
        log_retention: logs.RetentionDays = logs.RetentionDays.ONE_MONTH,
        query_wait_seconds: float = ProxySettings.query_wait_seconds,
        transaction_seconds: float = TRANSACTION_SECONDS,
        metrics: bool = True,
        metrics_service: str | None = None,
        encryption_key: kms.IKey | None = None,
        database_roles: Mapping[str, secretsmanager.ISecret] | None = None,
        settings: Chosen | None = None,
        dual_stack: bool = False,
        data_endpoint: bool = False,
    ) -> None:
        super().__init__(scope, construct_id)
        _check(architecture, endpoint, query_wait_seconds)
        pool_key = PoolKey(self, encryption_key) if encryption_key else None
        key = pool_key.key if pool_key else None
        if pool_key:
            pool_key.warn_if_imported(with_disks=cluster is None)
        self._settings = dict(settings or {})
        self._clients = PoolClients(
            self,
            database_name=database.name,
            roles=database_roles or {},
            most_connections=self._most_clients,
            encryption_key=key,
        )
        self.vpc = vpc
        self.database = database
        self.query_wait_seconds = query_wait_seconds
        self.has_metrics = metrics
        self.has_data_endpoint = data_endpoint
        self.metrics_service = metrics_service or Names.unique_id(self)
        processes = max(cpu // CPU_UNITS, 1)
        pools = processes * len(self._clients.entries)
        default_floor = max(FLOOR_CONNECTIONS, least_floor(pools))
        self.budget = ConnectionBudget(
            max_connections=database.max_connections,
            min_tasks=min_tasks,
            max_tasks=max_tasks,
            reserved_connections=reserved_connections,
            floor_connections=default_floor if floor_connections is None else floor_connections,
            other_tasks=other_tasks,
            pools=pools,
        )
        self.budget_name = budget_name or Names.unique_id(self)[-LONGEST_NAME:]
        self.budget_database = budget_database or database.name
        self._place_budget()
        self._warn()
        self._functions = AttachedFunctions(
            self,
            server_connections=self.budget.most_at_min_tasks,
            query_wait_seconds=query_wait_seconds,
            transaction_seconds=transaction_seconds,
        )
        self.client_secret = make_client_secret(self, key)
        self.ca_secret = make_ca_secret(self, key)
        self.log_group = logs.LogGroup(
            self, "Logs", retention=log_retention, removal_policy=RemovalPolicy.DESTROY, encryption_key=key
        )
        subnets = vpc_subnets or ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        watch_way_out(self, vpc, subnets)
        if dual_stack:
            check_ipv6(vpc, subnets)
        self._network = PoolNetwork(
            self,
            vpc=vpc,
            database=database,
            with_balancer=endpoint == NLB,
            dual_stack=dual_stack,
            has_data_endpoint=data_endpoint,
        )
        group = self._network.entry_group
        self._connections = ec2.Connections(security_groups=[group], default_port=ec2.Port.tcp(CLIENT_PORT))
        self.load_balancer = (
            make_balancer(self, vpc=vpc, subnets=subnets, security_group=group, dual_stack=dual_stack)
            if endpoint == NLB
            else None
        )
        fleet = Fleet(self, vpc=vpc, has_ipv6=dual_stack and endpoint == DNS)
        self._fleet_name = fleet.name
        self.task_definition = ecs.FargateTaskDefinition(
            self, "Task", cpu=cpu, memory_limit_mib=memory_limit_mib, runtime_platform=_platform(architecture)
        )
        self._add_container(processes, architecture, EVERY_ADDRESS if dual_stack else ProxySettings.listen_host)
        self.service = make_service(
            self,
            cluster=cluster or make_cluster(self, vpc=vpc, key=encryption_key),
            task_definition=self.task_definition,
            budget=self.budget,
            security_group=self._network.task_group,
            subnets=subnets,
            fleet=fleet,
            has_balancer=self.load_balancer is not None,
            clients=self._client_load() if metrics else None,
        )
        self.target_group = (
            add_tasks(self.load_balancer, self.service, has_data_endpoint=data_endpoint) if self.load_balancer else None
        )

    @property
    def connections(self) -> ec2.Connections:
        """The network rules of the load balancer, or of the tasks without one; the default port is the clients'."""
        return self._connections

    @property
    def endpoint(self) -> str:
        """The host name that functions connect to, and that the proxy's certificate is for."""
        return self.load_balancer.load_balancer_dns_name if self.load_balancer else self._fleet_name

    @property
    def client_port(self) -> int:
        """The TCP port that functions connect to."""
        return CLIENT_PORT

    @property
    def data_url(self) -> str | None:
        """Where the data endpoint answers, None without one: AWS_ENDPOINT_URL_RDS_DATA of an AWS SDK."""
        return f"https://{self.endpoint}:{DATA_PORT}" if self.has_data_endpoint else None

    @property
    def client_user(self) -> str:
        """The user that functions log in as; its password is in `client_secret`."""
        return CLIENT_USER

    def grant_connect(self, grantee: iam.IGrantable) -> iam.Grant:
        """Allow reading the client's password. Whoever has it and reaches the port is in."""
        return grant_read(self.client_secret, grantee)

    def add_client(
        self, user: str, *, entry: str | None = None, max_connections: int | None = None, read_only: bool = False
    ) -> PoolClient:
        """Add a user of the pool with a secret of its own, for `attach(function, client=...)`.

        `entry` is one of `database_roles` (default: the pool's own database and role), `max_connections` bounds the
        user's client connections at each PgBouncer (default: the setting `max_connections_per_client_user`). The data
        endpoint runs a `read_only` client's statements in transactions that change nothing; elsewhere a role's rights
        are the database's to say. A secret costs 0.40 USD a month. Raises ValueError for a user, an entry or a limit
        that cannot be.
        """
        return self._clients.add(user, entry=entry, max_connections=max_connections, read_only=read_only)

    def function_environment(
        self, *, client: PoolClient | None = None, name: str | None = None, settings: Chosen | None = None
    ) -> dict[str, str]:
        """Return what a function needs in its environment; no secret is among it. The arguments are those of attach.

        Raises ValueError for a client of another pool, and for a setting that the layer would refuse.
        """
        if client is not None and client.node.scope is not self:
            raise ValueError(f"{client.node.path} is not a client of {self.node.path}")
        values = {
            "host": self.endpoint,
            "port": str(CLIENT_PORT),
            "database": client.entry if client else self.database.name,
            "user": client.user if client else CLIENT_USER,
            "secret_arn": (client or self).client_secret.secret_arn,
            # By the CA's certificate that the proxy writes into the secret.
            "sslmode": "verify-full",
            **({"data_endpoint": self.data_url} if self.data_url else {}),
        }
        return function_variables(values, settings or {}, name)

    def attach(
        self,
        function: lambda_.Function,
        *,
        layer: WarmConnectionLayer | PublishedLayer | None = None,
        client: PoolClient | None = None,
        name: str | None = None,
        settings: Chosen | None = None,
    ) -> None:
        """Let a function use the pool: layer, environment, network and the permission to read the password.

        Without `layer` all functions of a stack share one that fits their architecture and runtime; without `client`
        they share one user. `name` is for a function with several databases: what its decorator calls this one.
        `settings` are further fields of the layer's settings (docs/layer.md), such as {"deadline_margin_ms": 500}.

        Raises FunctionNotAttachable when the function is outside the VPC, was imported, has a runtime that the layer
        does not exist for, does not fit the given layer, or is attached already under the same name; ValueError for a
        setting that the layer would refuse. The function's reserved concurrency and timeout, as they are at synth,
        count in the warning of long waits.
        """
        check_attachable(function)
        variables = self.function_environment(client=client, name=name, settings=settings)
        if layer is None:
            layer = WarmConnectionLayer.shared(function, architecture=function.architecture, runtime=function.runtime)
        check_fits(function, layer)
        if remember_attached(function, name):
            function.add_layers(layer.layer_version)
        for variable, value in variables.items():
            function.add_environment(variable, value)
        self._network.open_to(function)
        (client or self).grant_connect(function)
        self._functions.add(function)

    @property
    def _most_clients(self) -> int:
        return int(self._settings.get("max_client_connections", ProxySettings.max_client_connections))

    def _client_load(self) -> ClientLoad:
        return ClientLoad(self.metric("ClientConnections", statistic="Average"), self._most_clients)

    def _place_budget(self) -> None:
        for field, value in (("budget_name", self.budget_name), ("budget_database", self.budget_database)):
            if not PLAIN_NAME.fullmatch(value):
                raise ValueError(f"{field} must match {PLAIN_NAME.pattern}, got {value!r}")
        place(
            self,
            PlacedBudget(
                path=self.node.path,
                server=self.database.server_name,
                name=self.budget_name,
                database=self.budget_database,
                budget=self.budget,
            ),
        )

    def _warn(self) -> None:
        warn = Annotations.of(self).add_warning_v2
        if self.budget.shares_budget and not self.budget.shared_slots:
            warn(
                "emberpool:nothing-shared",
                f"the floors take the whole budget of {self.budget.budget} connections: each task has "
                f"{self.budget.floor} and no more, however idle the others are; lower max_tasks or floor_connections",
            )
        if self.database.estimated_from:
            warn(
                "emberpool:estimated-limit",
                f"max_connections is an estimate, {self.database.max_connections} for {self.database.estimated_from}: "
                "the tasks keep to what they find at run time, but the budget is proven against the estimate; give the "
                "database a TunedParameterGroup with max_connections, or pass max_connections= here",
            )
        if self.database.can_pause and self.query_wait_seconds < RESUME_SECONDS:
            warn(
                "emberpool:slow-resume",
                f"the database can pause and takes up to {RESUME_SECONDS} s to resume, but query_wait_seconds is "
                f"{self.query_wait_seconds:g}: the first clients after a pause are told PoolBusy; raise it, and the "
                "functions' timeout above it",
            )

    def _add_container(self, processes: int, architecture: str, listen_host: str) -> None:
        variables = environment(
            self.database,
            client_secret_arn=self.client_secret.secret_arn,
            ca_secret_arn=self.ca_secret.secret_arn,
            host_names=[self.endpoint],
            fleet_name=self._fleet_name,
            budget=self.budget,
            budget_name=self.budget_name,
            budget_database=self.budget_database,
            processes=processes,
            query_wait_seconds=self.query_wait_seconds,
            metrics_service=self.metrics_service,
            has_metrics=self.has_metrics,
            # A load balancer sends nothing any more before a task is told to stop; a name is remembered.
            notice_seconds=0 if self.load_balancer else FLEET_TTL_SECONDS,
            listen_host=listen_host,
            has_data_endpoint=self.has_data_endpoint,
        ) | task_variables(self._settings)
        check_environment(variables)
        container = add_proxy_container(
            self,
            self.task_definition,
            environment=variables,
            architecture=architecture,
            log_group=self.log_group,
            has_data_endpoint=self.has_data_endpoint,
        )
        grant_tasks(
            self.task_definition.task_role,
            database_secret=self.database.secret,
            client_secret=self.client_secret,
            ca_secret=self.ca_secret,
        )
        self._clients.serve_by(container, self.task_definition.task_role)


def _check(architecture: str, endpoint: str, query_wait_seconds: float) -> None:
    if architecture not in (ARM_64, X86_64):
        raise ValueError(f"architecture must be {ARM_64} or {X86_64}, got {architecture!r}")
    if endpoint not in ENDPOINTS:
        raise ValueError(f"endpoint must be {NLB} or {DNS}, got {endpoint!r}")
    ((lowest, highest),) = [range_ for name, *range_ in RANGES if name == "query_wait_seconds"]
    if not lowest <= query_wait_seconds <= highest:
        raise ValueError(f"query_wait_seconds must be between {lowest:g} and {highest:g}, got {query_wait_seconds:g}")


def _platform(architecture: str) -> ecs.RuntimePlatform:
    cpu = ecs.CpuArchitecture.ARM64 if architecture == ARM_64 else ecs.CpuArchitecture.X86_64
    return ecs.RuntimePlatform(cpu_architecture=cpu, operating_system_family=ecs.OperatingSystemFamily.LINUX)
