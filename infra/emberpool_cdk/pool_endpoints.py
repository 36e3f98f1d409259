"""What a VPC without a way out needs, so that the tasks and the functions reach AWS: endpoints, and what they cost.

ENDPOINTS is the documentation's table, too. Prices are AWS's list prices without traffic, of PRICES_OF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from emberpool_cdk.explained_findings import explain

PRICES_OF = "us-east-1, May 2026"
HOURS_A_MONTH = 730
USD_AN_HOUR = 0.01  # an interface endpoint in one zone; 0.01 USD for each GB beside it
S3 = "s3"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of AWS's own: the end of its service's name, who uses it and what for."""

    construct_id: str
    service: str
    used_by: str
    reason: str

    @property
    def is_gateway(self) -> bool:
        """Whether it is an entry in the route tables, which costs nothing."""
        return self.service == S3

    @property
    def usd_a_month_and_zone(self) -> float:
        """The list price without traffic."""
        return 0.0 if self.is_gateway else USD_AN_HOUR * HOURS_A_MONTH


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("S3", S3, "tasks at their start", "the image's layers"),
    Endpoint("EcrApi", "ecr.api", "tasks at their start", "the permission to pull the image"),
    Endpoint("EcrDocker", "ecr.dkr", "tasks at their start", "the image's manifest"),
    Endpoint("Logs", "logs", "tasks", "the log, and the metrics, which are lines of it"),
    Endpoint("SecretsManager", "secretsmanager", "tasks and functions", "passwords, and the CA that functions trust"),
)
CALLS = {
    "logs": ("CreateLogStream", "PutLogEvents"),
    "secretsmanager": ("GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"),
}
# What nothing of ours calls from inside of the VPC, and why not.
NOT_NEEDED: tuple[tuple[str, str], ...] = (
    ("monitoring", "CloudWatch takes the metrics from the log's lines"),
    ("kms", "Secrets Manager, CloudWatch Logs and Fargate use your key on their side"),
    ("sts", "ECS and Lambda bring the credentials of the roles"),
    ("servicediscovery", "ECS registers the tasks, and the VPC's own resolver answers for their name"),
    ("rds, rds-data", "the tasks speak PostgreSQL; an IAM token is signed where it is used"),
    ("ecs", "Fargate's own agent reaches ECS from outside of your VPC"),
)


def add_pool_endpoints(
    vpc: ec2.IVpc, *, subnets: ec2.SubnetSelection, only_for_pool: bool = False
) -> ec2.SecurityGroup:
    """Add the endpoints that pool and functions in these subnets need, to a VPC that has none of them yet.

    Each of the four interface endpoints costs 7.30 USD a month and zone (us-east-1, May 2026) and 0.01 USD for each GB:
    58.40 USD in two zones, where two NAT gateways cost 65.70 USD and 0.045 USD for each GB. S3's costs nothing.

    With `only_for_pool` S3's lets nothing through but image layers, and the log's and the secrets' what the pool asks
    for, as somebody of this account: nothing in there can send data elsewhere. Leave it off where others use them.

    Returns the security group of the interface endpoints, which answer the whole VPC.
    """
    group = ec2.SecurityGroup(
        cast("Construct", vpc),
        "PoolEndpoints",
        vpc=vpc,
        allow_all_outbound=False,
        description="emberpool: endpoints of AWS",
    )
    group.add_ingress_rule(ec2.Peer.ipv4(vpc.vpc_cidr_block), ec2.Port.tcp(443), "APIs of AWS, for all in this VPC")
    explain(group, "AwsSolutions-EC23", "Open to this VPC only, whose addresses the rule cannot read at synth.")
    for each in ENDPOINTS:
        made = _gateway(vpc, each, subnets) if each.is_gateway else _interface(vpc, each, subnets, group)
        statement = _only_for_pool(made, each.service) if only_for_pool else None
        if statement is not None:
            made.add_to_policy(statement)
    return group


def _gateway(vpc: ec2.IVpc, endpoint: Endpoint, subnets: ec2.SubnetSelection) -> ec2.VpcEndpoint:
    return vpc.add_gateway_endpoint(
        endpoint.construct_id, service=ec2.GatewayVpcEndpointAwsService.S3, subnets=[subnets]
    )


def _interface(
    vpc: ec2.IVpc, endpoint: Endpoint, subnets: ec2.SubnetSelection, group: ec2.ISecurityGroup
) -> ec2.VpcEndpoint:
    return vpc.add_interface_endpoint(
        endpoint.construct_id,
        service=ec2.InterfaceVpcEndpointAwsService(endpoint.service),
        subnets=subnets,
        security_groups=[group],
        open=False,  # the one rule is enough
    )


def _only_for_pool(endpoint: ec2.VpcEndpoint, service: str) -> iam.PolicyStatement | None:
    stack = Stack.of(endpoint)
    if service == S3:
        # Where ECR keeps layers, by "Minimum Amazon S3 Bucket Permissions for Amazon ECR" of its user guide.
        layers = f"arn:{stack.partition}:s3:::prod-{stack.region}-starport-layer-bucket/*"
        return iam.PolicyStatement(principals=[iam.AnyPrincipal()], actions=["s3:GetObject"], resources=[layers])
    if service not in CALLS:
        return None  # an image that is pulled takes nothing out
    return iam.PolicyStatement(
        principals=[iam.AnyPrincipal()],
        actions=[f"{service}:{call}" for call in CALLS[service]],
        resources=["*"],
        conditions={"StringEquals": {"aws:PrincipalAccount": stack.account}},
    )
