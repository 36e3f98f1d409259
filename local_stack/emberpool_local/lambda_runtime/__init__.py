"""A local Lambda: execution environments with AWS's real runtime client, driven by a Runtime API of ours."""

from emberpool_local.lambda_runtime.environment import Environment
from emberpool_local.lambda_runtime.fleet import Fleet, StartMethod
from emberpool_local.lambda_runtime.handler_reference import HandlerReference, parse_handler_reference
from emberpool_local.lambda_runtime.load_failure import HandlerNotLoaded
from emberpool_local.lambda_runtime.outcome import Outcome

__all__ = [
    "Environment",
    "Fleet",
    "HandlerNotLoaded",
    "HandlerReference",
    "Outcome",
    "StartMethod",
    "parse_handler_reference",
]
