"""Whether a function can use the pool as it is; else what to change, told at synth."""

from __future__ import annotations

from aws_cdk import aws_lambda as lambda_

from emberpool_cdk.layer_build import RUNTIMES
from emberpool_cdk.warm_connection_layer import WarmConnectionLayer


class FunctionNotAttachable(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The function cannot use the pool as it is: the message says what to change."""


def check_attachable(function: lambda_.Function) -> None:
    """Raise FunctionNotAttachable for an imported function, one outside of a VPC or of an unknown runtime."""
    path = function.node.path
    if not isinstance(function, lambda_.Function):
        raise FunctionNotAttachable(
            f"{path} was imported, so its layers and environment cannot be changed from here: give it "
            "WarmConnectionLayer and PoolProxy.function_environment() where it is defined"
        )
    if not function.is_bound_to_vpc:
        raise FunctionNotAttachable(
            f"{path} is outside the VPC and cannot reach the pool: pass vpc= and vpc_subnets= to the function"
        )
    if function.runtime.name not in RUNTIMES:
        raise FunctionNotAttachable(
            f"{path} has the runtime {function.runtime.name}, the layer exists for {', '.join(RUNTIMES)}"
        )


def check_fits(function: lambda_.Function, layer: WarmConnectionLayer) -> None:
    """Raise FunctionNotAttachable when the layer is for another architecture or runtime."""
    wanted, built = (function.architecture.name, function.runtime.name), (layer.architecture_name, layer.runtime_name)
    if wanted != built:
        raise FunctionNotAttachable(
            f"{function.node.path} is for {' and '.join(wanted)}, but the layer {layer.node.path} is for "
            f"{' and '.join(built)}: pass another layer, or none to get one that fits"
        )
