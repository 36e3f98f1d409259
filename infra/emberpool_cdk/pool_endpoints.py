"""What a VPC without NAT needs, so that the tasks and the functions reach AWS: endpoints, and what they cost."""

from __future__ import annotations

from aws_cdk import aws_ec2 as ec2

# What Fargate and the functions need from AWS. About 7.30 USD a month each and zone, 58 USD for four in two zones:
# less than two NAT gateways (66 USD and their traffic), and nothing in the VPC can send data out. S3's is free.
INTERFACE_ENDPOINTS: dict[str, ec2.InterfaceVpcEndpointAwsService] = {
    "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,  # metrics, too: they are lines of the log
    "SecretsManager": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
}


def add_pool_endpoints(vpc: ec2.IVpc, *, subnets: ec2.SubnetSelection) -> None:
    """Add the endpoints that pool and functions in these subnets need, to a VPC that has none of them yet."""
    # Image layers come from S3.
    vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3, subnets=[subnets])
    for name, service in INTERFACE_ENDPOINTS.items():
        vpc.add_interface_endpoint(name, service=service, subnets=subnets)
