"""What a function needs that is defined elsewhere: three commands with everything in them but its own names."""

from __future__ import annotations

import json

from emberpool_cdk import PoolProxy, WarmConnectionLayer

FUNCTION, ROLE, SECURITY_GROUP = "YOUR_FUNCTION", "ITS_ROLE", "ITS_SECURITY_GROUP"
DESCRIPTION = (
    "For a function of your own in the pool's VPC: fill in its name, role and security group. The first command "
    "replaces the layers and variables that it has, so add those to it"
)


def three_lines(pool: PoolProxy, layer: WarmConnectionLayer) -> str:
    """Return the commands: layer and environment, the right to read the password, the way through the network."""
    environment = json.dumps({"Variables": pool.function_environment()})
    statement = {
        "Effect": "Allow",
        "Action": "secretsmanager:GetSecretValue",
        "Resource": pool.client_secret.secret_arn,
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    (group,) = pool.connections.security_groups
    change = f"--function-name {FUNCTION} --layers {layer.layer_version_arn} --environment '{environment}'"
    grant = f"--role-name {ROLE} --policy-name emberpool --policy-document '{policy}'"
    rule = f"--group-id {group.security_group_id} --protocol tcp --port {pool.client_port}"
    commands = (
        f"aws lambda update-function-configuration {change}",
        f"aws iam put-role-policy {grant}",
        f"aws ec2 authorize-security-group-ingress {rule} --source-group {SECURITY_GROUP}",
    )
    return "\n".join(commands)
