"""The example of our app: the function of examples/hello, which needs no tables and so answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aws_cdk import Annotations, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from emberpool_app.architecture import lambda_architecture
from emberpool_cdk import PoolProxy
from emberpool_cdk.queue_wait import UNBOUNDED

HELLO = Path(__file__).parents[2] / "examples" / "hello"


class ExampleStack(Stack):
    """One function in the VPC; `pool.attach` is all that makes it a client of the pool."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        pool: PoolProxy,
        subnets: ec2.SubnetSelection,
        architecture: str,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        function = lambda_.Function(
            self,
            "Hello",
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_architecture(architecture),
            handler="handler.handler",
            code=lambda_.Code.from_asset(str(HELLO), exclude=["__pycache__", "*.md", "*.json"]),
            memory_size=512,
            timeout=Duration.seconds(15),
            vpc=pool.vpc,
            vpc_subnets=subnets,
            allow_all_outbound=False,
            log_group=logs.LogGroup(
                self, "HelloLogs", retention=logs.RetentionDays.ONE_WEEK, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        function.connections.allow_to_any_ipv4(ec2.Port.tcp(443), "its secret, from AWS's own endpoints")
        pool.attach(function)
        # Nothing is reserved: an account that is new has 10 executions in all, and AWS keeps them for no function.
        Annotations.of(pool).acknowledge_warning(UNBOUNDED, "an example, which people invoke by hand")
        CfnOutput(self, "FunctionName", value=function.function_name)
        CfnOutput(self, "TryIt", value=f"aws lambda invoke --function-name {function.function_name} /dev/stdout")
