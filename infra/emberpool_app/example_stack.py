"""The example of our app: the function of examples/hello, which needs no tables and so answers at once, at a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aws_cdk import Annotations, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from emberpool_app.function_platform import lambda_architecture, lambda_runtime
from emberpool_cdk import PoolProxy
from emberpool_cdk.explained_findings import explain, explain_to_cfn_lint
from emberpool_cdk.queue_wait import UNBOUNDED

HELLO = Path(__file__).parents[2] / "examples" / "hello"


class ExampleStack(Stack):
    """One function in the VPC; `pool.attach` is all that makes it a client of the pool.

    Its URL answers those who sign their requests as somebody who may call it, or with `is_url_public` everybody.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        pool: PoolProxy,
        subnets: ec2.SubnetSelection,
        architecture: str,
        runtime: str,
        is_url_public: bool,
        dual_stack: bool = False,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        function = lambda_.Function(
            self,
            "Hello",
            runtime=lambda_runtime(runtime),
            architecture=lambda_architecture(architecture),
            handler="handler.handler",
            code=lambda_.Code.from_asset(str(HELLO), exclude=["__pycache__", "*.md", "*.json"]),
            memory_size=512,
            timeout=Duration.seconds(15),
            vpc=pool.vpc,
            vpc_subnets=subnets,
            ipv6_allowed_for_dual_stack=dual_stack or None,
            allow_all_outbound=False,
            log_group=logs.LogGroup(
                self, "HelloLogs", retention=logs.RetentionDays.ONE_WEEK, removal_policy=RemovalPolicy.DESTROY
            ),
        )
        function.connections.allow_to_any_ipv4(ec2.Port.tcp(443), "its secret, from endpoints of AWS")
        pool.attach(function)
        # Nothing is reserved: an account that is new has 10 executions in all, and AWS keeps them for no function.
        Annotations.of(pool).acknowledge_warning(UNBOUNDED, "an example, which people invoke by hand")
        _explain(function)
        url = function.add_function_url(
            auth_type=lambda_.FunctionUrlAuthType.NONE if is_url_public else lambda_.FunctionUrlAuthType.AWS_IAM
        ).url
        CfnOutput(self, "FunctionName", value=function.function_name)
        CfnOutput(self, "TryIt", value=f"aws lambda invoke --function-name {function.function_name} /dev/stdout")
        CfnOutput(self, "FunctionUrl", value=url)
        CfnOutput(self, "TryUrl", value=f"curl {url}" if is_url_public else f"{self._signing_curl()} {url}")

    def _signing_curl(self) -> str:
        # The three variables come from `aws configure export-credentials --format env`. A header that is empty would be
        # signed and not sent, so without a session there is none; one word, which every shell leaves whole.
        return (
            f'curl --aws-sigv4 "aws:amz:{self.region}:lambda" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
            "${AWS_SESSION_TOKEN:+-Hx-amz-security-token:$AWS_SESSION_TOKEN}"
        )


def _explain(function: lambda_.Function) -> None:
    """Say what is meant so of what cdk-nag and cfn-lint find in a function as the CDK makes it."""
    explain(
        function,
        "AwsSolutions-L1",
        "The context value `runtime` chooses it. The default is a Python that most machines have: it compiles the "
        "layer's modules, which halves the imports' share of a cold start.",
    )
    for policy in ("AWSLambdaBasicExecutionRole", "AWSLambdaVPCAccessExecutionRole"):
        explain(
            function.node.find_child("ServiceRole"),
            f"AwsSolutions-IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/{policy}]",
            "What every function in a VPC needs, as AWS itself keeps it: network interfaces and lines of its log.",
        )
    explain_to_cfn_lint(function, "W3005")  # the CDK lets a function depend on its role, which it refers to anyway
