"""What a function imports for its own work, the same on both sides: `OWN_IMPORTS` says how much."""

import os

from aws_lambda_powertools import Logger, Metrics

logger = Logger(service="orders")
metrics = Metrics(namespace="Orders", service="orders")

if os.environ["OWN_IMPORTS"] == "boto3":
    import boto3

    queue = boto3.client("sqs")
