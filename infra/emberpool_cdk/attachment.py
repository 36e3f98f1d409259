"""The functions of a pool: whether one can use it as it is, else what to change; and whether all together wait long."""

from __future__ import annotations

import jsii
from aws_cdk import Annotations, Aspects, IAspect, Token
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, IConstruct

from emberpool.settings import DATABASE_NAME
from emberpool_cdk.layer_build import RUNTIMES
from emberpool_cdk.queue_wait import FunctionLoad, queue_warnings
from emberpool_cdk.warm_connection_layer import PublishedLayer, WarmConnectionLayer

LAMBDAS_TIMEOUT_SECONDS = 3.0  # of a function that says none
IMAGE_RUNTIME = "FROM_IMAGE"
MARK = "EmberpoolDatabase"


class FunctionNotAttachable(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The function cannot use the pool as it is: the message says what to change."""


class AttachedFunctions:
    """Remembers the functions of `pool`, and warns at synth when their clients may wait for longer than they can."""

    def __init__(
        self, pool: Construct, *, server_connections: int, query_wait_seconds: float, transaction_seconds: float
    ) -> None:
        self._functions: list[lambda_.Function] = []
        self._server_connections = server_connections
        self._query_wait_seconds = query_wait_seconds
        self._transaction_seconds = transaction_seconds
        # At synth, when all are attached and have their last settings.
        Aspects.of(pool).add(_AtSynth(pool.node.path, self))

    def add(self, function: lambda_.Function) -> None:
        """Count the function, once."""
        if function.node.path not in (each.node.path for each in self._functions):
            self._functions.append(function)

    def warn(self, pool: IConstruct) -> None:
        """Add the warnings to the pool."""
        warnings = queue_warnings(
            [_load(function) for function in self._functions],
            server_connections=self._server_connections,
            query_wait_seconds=self._query_wait_seconds,
            transaction_seconds=self._transaction_seconds,
        )
        for warning in warnings:
            Annotations.of(pool).add_warning_v2(warning.id, warning.text)


@jsii.implements(IAspect)
class _AtSynth:
    def __init__(self, path: str, functions: AttachedFunctions) -> None:
        self._path = path
        self._functions = functions

    def visit(self, node: IConstruct) -> None:
        if node.node.path == self._path:  # and none of what is in it
            self._functions.warn(node)


def check_attachable(function: lambda_.IFunction) -> None:
    """Raise FunctionNotAttachable for an imported function, one outside of a VPC or of an unknown runtime."""
    path = function.node.path
    if isinstance(function, lambda_.Alias | lambda_.Version):
        raise FunctionNotAttachable(f"{path} is an alias or a version: attach the function itself")
    if not isinstance(function, lambda_.Function):
        raise FunctionNotAttachable(
            f"{path} was imported, so its layers and environment cannot be changed from here, nor is its reserved "
            "concurrency known: give it WarmConnectionLayer and PoolProxy.function_environment() where it is defined; "
            "grant_connect(its role) and connections.allow_default_port_from(its security group) work from here"
        )
    if not function.is_bound_to_vpc:
        raise FunctionNotAttachable(
            f"{path} is outside the VPC and cannot reach the pool: pass vpc= and vpc_subnets= to the function"
        )
    if function.runtime.name == IMAGE_RUNTIME:
        raise FunctionNotAttachable(
            f"{path} is a container image, which takes no layers: install emberpool[layer] in the image, add "
            "PoolProxy.function_environment() to its environment, and let it in by grant_connect(function) and "
            "connections.allow_default_port_from(function)"
        )
    if function.runtime.name not in RUNTIMES:
        raise FunctionNotAttachable(
            f"{path} has the runtime {function.runtime.name}, the layer exists for {', '.join(RUNTIMES)}"
        )


def check_fits(function: lambda_.Function, layer: WarmConnectionLayer | PublishedLayer) -> None:
    """Raise FunctionNotAttachable when the layer is for another architecture or runtime."""
    wanted, built = (function.architecture.name, function.runtime.name), (layer.architecture_name, layer.runtime_name)
    if wanted != built:
        raise FunctionNotAttachable(
            f"{function.node.path} is for {' and '.join(wanted)}, but the layer {layer.node.path} is for "
            f"{' and '.join(built)}: pass another layer, or none to get one that fits"
        )


def remember_attached(function: lambda_.Function, name: str | None) -> bool:
    """Note that the function has a database by this name; return whether it is its first.

    Raises FunctionNotAttachable when it has one by this name: the second would silently win.
    """
    if name is not None and not DATABASE_NAME.fullmatch(name):
        raise FunctionNotAttachable(f"name must match {DATABASE_NAME.pattern}, got {name!r}")
    if function.node.try_find_child(f"{MARK}{(name or '').lower()}") is not None:
        raise FunctionNotAttachable(
            f"{function.node.path} is attached already"
            + (f" under the name {name!r}" if name else ": give the other database a name, attach(function, name=...)")
            + ", by which the handler asks for it: @warm_connection(database=...)"
        )
    is_first = not [child for child in function.node.children if child.node.id.startswith(MARK)]
    Construct(function, f"{MARK}{(name or '').lower()}")  # no resource: it is in the tree only
    return is_first


def _load(function: lambda_.Function) -> FunctionLoad:
    resource = function.node.default_child
    reserved = resource.reserved_concurrent_executions if isinstance(resource, lambda_.CfnFunction) else None
    if reserved is not None and Token.is_unresolved(reserved):
        reserved = None  # known at deploy time only
    timeout = function.timeout.to_seconds() if function.timeout else LAMBDAS_TIMEOUT_SECONDS
    return FunctionLoad(function.node.path, None if reserved is None else round(reserved), timeout)
