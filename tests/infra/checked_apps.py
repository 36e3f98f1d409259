"""The apps whose templates are checked as a whole: ours in its variants, and a user's with what ours does without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_rds as rds
from tests.infra.conftest import Template, make_app

from emberpool_app.deployment import add_stacks
from emberpool_cdk import (
    PoolDatabase,
    PoolMonitoring,
    PoolProxy,
    TunedParameterGroup,
    WarmConnectionLayer,
    add_pool_endpoints,
)

ACCOUNT, REGION = "123456789012", "eu-west-1"
VPC = "vpc-0123456789abcdef0"
EXISTING_DATABASE = {
    "database": "existing",
    "vpcId": VPC,
    "databaseHost": "db.example.com",
    "databaseSecretArn": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:theirs-AbCdEf",
    "databaseMaxConnections": "200",
    "databaseSecurityGroupId": "sg-0123456789abcdef0",
    # What the look-up in the user's account would answer.
    f"vpc-provider:account={ACCOUNT}:filter.vpc-id={VPC}:region={REGION}:returnAsymmetricSubnets=true": {
        "vpcId": VPC,
        "vpcCidrBlock": "10.0.0.0/16",
        "ownerAccountId": ACCOUNT,
        "availabilityZones": [],
        "subnetGroups": [
            {
                "name": "Private",
                "type": "Private",
                "subnets": [
                    {
                        "subnetId": f"subnet-0123456789abcdef{number}",
                        "cidr": f"10.0.{number}.0/24",
                        "availabilityZone": f"{REGION}{zone}",
                        "routeTableId": f"rtb-0123456789abcdef{number}",
                    }
                    for number, zone in enumerate("ab")
                ],
            }
        ],
    },
}
# The variants of our own app, by their context values.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "dns": {"endpoint": "dns"},
    "dual_stack": {"dualStack": "true"},
    "data_endpoint": {"dataEndpoint": "true"},
    "x86_64": {"architecture": "x86_64"},
    "existing": EXISTING_DATABASE,
}


def our_app(folder: Path, variant: str) -> App:
    """Return our app, not synthesized yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDK_DEFAULT_ACCOUNT", ACCOUNT)
        patch.setenv("CDK_DEFAULT_REGION", REGION)
        app = make_app(folder, **VARIANTS[variant])
        add_stacks(app)
    return app


def users_app(folder: Path, endpoint: str) -> App:
    """Return a user's app of one stack: a key and a database of theirs, endpoints, and a function with its own user."""
    app = make_app(folder)
    stack = Stack(app, "Users")
    private = ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
    vpc = ec2.Vpc(stack, "Vpc", max_azs=2, nat_gateways=0, subnet_configuration=[private])
    subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
    add_pool_endpoints(vpc, subnets=subnets)
    key = kms.Key(stack, "Key", enable_key_rotation=True)
    engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
    database = rds.DatabaseInstance(
        stack,
        "Database",
        engine=engine,
        vpc=vpc,
        vpc_subnets=subnets,
        storage_encryption_key=key,
        credentials=rds.Credentials.from_generated_secret("app", encryption_key=key),
        parameter_group=TunedParameterGroup(stack, "Parameters", engine=engine, max_connections=200),
    )
    pool = PoolProxy(
        stack,
        "Pool",
        vpc=vpc,
        vpc_subnets=subnets,
        database=PoolDatabase.from_instance(database),
        endpoint=endpoint,
        encryption_key=key,
    )
    PoolMonitoring(stack, "Monitoring", pool=pool)
    layer = WarmConnectionLayer(stack, "Layer", parameter_name="/users/layer")
    pool.attach(_function(stack, vpc, subnets), layer=layer, client=pool.add_client("reports"))
    return app


def _function(stack: Stack, vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> lambda_.Function:
    return lambda_.Function(
        stack,
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_13,
        architecture=lambda_.Architecture.ARM_64,
        handler="index.handler",
        code=lambda_.Code.from_inline("def handler(event, context): ..."),
        vpc=vpc,
        vpc_subnets=subnets,
        allow_all_outbound=False,
    )


def templates(app: App) -> dict[str, Template]:
    """Synthesize and return the templates by the names of their stacks."""
    return {stack.stack_name: stack.template for stack in app.synth().stacks}
