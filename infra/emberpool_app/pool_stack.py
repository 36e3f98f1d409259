"""The pool of our app: the proxy, and the layer for functions that are defined elsewhere."""

from __future__ import annotations

from typing import Any

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from emberpool_app.architecture import lambda_architecture
from emberpool_app.context import AppContext
from emberpool_cdk import PoolDatabase, PoolMonitoring, PoolProxy, WarmConnectionLayer


class PoolStack(Stack):
    """PoolProxy with its dashboard and alarms, and a WarmConnectionLayer whose ARN is an output.

    Functions of this app's other stacks get a layer of their own stack: CloudFormation never replaces a layer
    version that another stack imports.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        vpc: ec2.IVpc,
        subnets: ec2.SubnetSelection,
        database: PoolDatabase,
        context: AppContext,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self.pool = PoolProxy(
            self,
            "Pool",
            vpc=vpc,
            vpc_subnets=subnets,
            database=database,
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
            runtime=lambda_.Runtime.PYTHON_3_13,
        )
        CfnOutput(self, "ProxyEndpoint", value=f"{self.pool.endpoint}:{self.pool.client_port}")
        CfnOutput(self, "ClientSecretArn", value=self.pool.client_secret.secret_arn)
        CfnOutput(self, "LayerArn", value=layer.layer_version_arn)
        CfnOutput(self, "DashboardUrl", value=monitoring.dashboard_url)
