"""The pool of our app: the proxy, and the layer for functions that are defined elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from emberpool_app.context import AppContext
from emberpool_app.function_platform import lambda_architecture, lambda_runtime
from emberpool_app.own_function import DESCRIPTION, three_lines
from emberpool_cdk import PoolDatabase, PoolMonitoring, PoolProxy, WarmConnectionLayer

LAYER_PARAMETER = "/emberpool/layer-arn"


@dataclass(frozen=True)
class Surroundings:
    """Where the pool is put, and the database that it is for."""

    vpc: ec2.IVpc
    subnets: ec2.SubnetSelection
    database: PoolDatabase


class PoolStack(Stack):
    """PoolProxy with its dashboard and alarms, and a WarmConnectionLayer whose ARN is an output and an SSM parameter.

    Functions of other stacks take it by the parameter (`WarmConnectionLayer.from_parameter`) or, as this app's example,
    get a layer of their own stack: CloudFormation never replaces a layer version that another stack imports.

    `find` is asked for the surroundings once the stack is there: what is looked up in the account belongs to a stack.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        find: Callable[[Stack], Surroundings],
        context: AppContext,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        around = find(self)
        self.pool = PoolProxy(
            self,
            "Pool",
            vpc=around.vpc,
            vpc_subnets=around.subnets,
            database=around.database,
            endpoint=context.endpoint,
            dual_stack=context.dual_stack,
            data_endpoint=context.data_endpoint,
            min_tasks=context.min_tasks,
            max_tasks=context.max_tasks,
            reserved_connections=context.reserved_connections,
            floor_connections=context.floor_connections,
            budget_name=context.budget_name or None,
            other_tasks=context.other_tasks,
            architecture=context.architecture,
        )
        monitoring = PoolMonitoring(self, "Monitoring", pool=self.pool)
        layer = WarmConnectionLayer(
            self,
            "Layer",
            architecture=lambda_architecture(context.architecture),
            runtime=lambda_runtime(context.runtime),
            parameter_name=LAYER_PARAMETER,
        )
        if self.pool.data_url:
            CfnOutput(self, "DataEndpoint", value=self.pool.data_url)
        CfnOutput(self, "ProxyEndpoint", value=f"{self.pool.endpoint}:{self.pool.client_port}")
        CfnOutput(self, "ClientSecretArn", value=self.pool.client_secret.secret_arn)
        CfnOutput(self, "LayerArn", value=layer.layer_version_arn)
        CfnOutput(
            self, "LayerParameter", value=LAYER_PARAMETER, description="The SSM parameter that has the layer's ARN"
        )
        CfnOutput(self, "DashboardUrl", value=monitoring.dashboard_url)
        CfnOutput(self, "ForYourFunction", value=three_lines(self.pool, layer), description=DESCRIPTION)
