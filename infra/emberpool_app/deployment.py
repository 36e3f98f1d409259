"""Puts the stacks of our app together from the validated context."""

from __future__ import annotations

import os

from aws_cdk import App, Environment, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_secretsmanager as secretsmanager

from emberpool_app.context import AppContext, ContextInvalid, ExistingDatabase
from emberpool_app.database_stack import DatabaseStack
from emberpool_app.example_stack import ExampleStack
from emberpool_app.network_stack import NetworkStack
from emberpool_app.pool_stack import PoolStack, Surroundings
from emberpool_cdk import ConnectionBudget, PoolDatabase

NETWORK, DATABASE, POOL, EXAMPLE = (
    "EmberpoolNetwork",
    "EmberpoolDatabase",
    "EmberpoolPool",
    "EmberpoolExample",
)


def add_stacks(app: App) -> ConnectionBudget:
    """Add the stacks that the context asks for; return the pool's budget.

    Raises ContextInvalid and what the constructs raise.
    """
    context = AppContext.from_values(app.node.get_all_context())
    if context.existing is not None:
        return _beside_an_existing_database(app, context, context.existing)
    network = NetworkStack(
        app, NETWORK, dual_stack=context.dual_stack, description="emberpool: a VPC without a way out"
    )
    database = DatabaseStack(
        app,
        DATABASE,
        vpc=network.vpc,
        subnets=network.subnets,
        max_connections=context.max_connections,
        database_name=context.database_name,
        description="emberpool: a small PostgreSQL to try it with",
    )
    stack = PoolStack(
        app,
        POOL,
        find=lambda _: Surroundings(network.vpc, network.subnets, database.database),
        context=context,
        description="emberpool: the pooling proxy and the layer",
    )
    ExampleStack(
        app,
        EXAMPLE,
        pool=stack.pool,
        subnets=network.subnets,
        architecture=context.architecture,
        runtime=context.runtime,
        is_url_public=context.is_url_public,
        dual_stack=context.dual_stack,
        description="emberpool: an example function",
    )
    return stack.pool.budget


def _beside_an_existing_database(app: App, context: AppContext, existing: ExistingDatabase) -> ConnectionBudget:
    # A look-up needs an explicit account and region; `cdk` sets these two from your credentials.
    account, region = (os.environ.get(name) for name in ("CDK_DEFAULT_ACCOUNT", "CDK_DEFAULT_REGION"))
    if not account or not region:
        raise ContextInvalid(
            f"database=existing looks up {existing.vpc_id} in your account: sign in to AWS and set a region "
            "(AWS_PROFILE, AWS_REGION), then run cdk again"
        )
    if f":secretsmanager:{region}:" not in existing.secret_arn:
        raise ContextInvalid(
            f"databaseSecretArn must be of the region that the pool is deployed to, {region}, got {existing.secret_arn}"
        )
    stack = PoolStack(
        app,
        POOL,
        find=lambda stack: _looked_up(stack, existing),
        context=context,
        env=Environment(account=account, region=region),
        description="emberpool: the pooling proxy and the layer",
    )
    return stack.pool.budget


def _looked_up(scope: Stack, existing: ExistingDatabase) -> Surroundings:
    vpc = ec2.Vpc.from_lookup(scope, "Vpc", vpc_id=existing.vpc_id)
    kind = ec2.SubnetType.PRIVATE_WITH_EGRESS if vpc.private_subnets else ec2.SubnetType.PRIVATE_ISOLATED
    return Surroundings(vpc, ec2.SubnetSelection(subnet_type=kind), _described(scope, existing))


def _described(scope: Stack, existing: ExistingDatabase) -> PoolDatabase:
    group = None
    if existing.security_group_id:
        group = ec2.SecurityGroup.from_security_group_id(scope, "DatabaseGroup", existing.security_group_id)
    return PoolDatabase(
        host=existing.host,
        port=existing.port,
        name=existing.name,
        secret=secretsmanager.Secret.from_secret_complete_arn(scope, "DatabaseSecret", existing.secret_arn),
        max_connections=existing.max_connections,
        security_group=group,
    )
