"""How many connections a database of this app allows: its parameter group says it, or it is estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_cdk import Reference, Stack, Tokenization
from aws_cdk import aws_rds as rds
from constructs import IConstruct

from emberpool_cdk.connection_estimate import (
    MOST_FROM_A_SMALL_MINIMUM,
    SMALL_MINIMUM_UNITS,
    by_capacity,
    by_instance_class,
)

PARAMETER = "max_connections"
SERVERLESS = "db.serverless"


@dataclass(frozen=True)
class FoundLimit:
    """A database's max_connections; `estimated_from` names what an estimate rests on, and is empty for a fact."""

    max_connections: int
    estimated_from: str = ""


def limit_of_instance(resource: rds.CfnDBInstance) -> FoundLimit | None:
    """Return the limit of an RDS instance; None when neither a parameter group nor its class tells."""
    return _given(resource, resource.db_parameter_group_name) or _estimated(*by_class(resource))


def limit_of_cluster(resource: rds.CfnDBCluster, instances: Sequence[rds.CfnDBInstance]) -> FoundLimit | None:
    """Return the lowest limit among the instances of an Aurora cluster: a failover makes any of them the writer."""
    limits = [_limit_of_member(resource, each) for each in instances]
    if not limits or None in limits:
        return None
    return min((each for each in limits if each), key=lambda each: each.max_connections)


def capacity(cluster: rds.CfnDBCluster) -> tuple[float, float] | None:
    """Return the least and the most capacity units of Aurora Serverless v2; None for a cluster without."""
    # By the protected accessor: the public one loses in jsii what the cluster fills in later.
    resolved = Stack.of(cluster).resolve(cluster._cfn_properties).get("serverlessV2ScalingConfiguration")
    if not isinstance(resolved, Mapping):
        return None
    least, most = resolved.get("minCapacity"), resolved.get("maxCapacity")
    if not isinstance(least, int | float) or not isinstance(most, int | float):
        return None
    return least, most


def by_class(resource: rds.CfnDBInstance) -> tuple[int | None, str]:
    """Return the estimate for an instance's class, and the class."""
    name = Stack.of(resource).resolve(resource.db_instance_class)
    return (by_instance_class(name), name) if isinstance(name, str) else (None, "")


def _limit_of_member(cluster: rds.CfnDBCluster, instance: rds.CfnDBInstance) -> FoundLimit | None:
    # The instance's own group wins over the cluster's.
    of_cluster = _given(cluster, cluster.db_cluster_parameter_group_name)
    given = _given(instance, instance.db_parameter_group_name) or of_cluster
    units = capacity(cluster)
    if Stack.of(instance).resolve(instance.db_instance_class) != SERVERLESS or units is None:
        return given or _estimated(*by_class(instance))
    least, most = units
    if given is None:
        return FoundLimit(by_capacity(least, most), f"{most:g} capacity units")
    if least <= SMALL_MINIMUM_UNITS:
        return FoundLimit(min(given.max_connections, MOST_FROM_A_SMALL_MINIMUM))
    return given


def _estimated(number: int | None, source: str) -> FoundLimit | None:
    return None if number is None else FoundLimit(number, source)


def _given(resource: IConstruct, group_name: str | None) -> FoundLimit | None:
    value = str(_parameters(resource, group_name).get(PARAMETER, ""))
    return FoundLimit(int(value)) if value.isdigit() else None  # RDS takes formulas, too


def _parameters(resource: IConstruct, group_name: str | None) -> Mapping[str, Any]:
    if group_name is None:
        return {}
    token = Tokenization.reverse_string(group_name).first_token
    if not isinstance(token, Reference):
        return {}  # the name of a group that is made elsewhere
    group = token.target
    if not isinstance(group, rds.CfnDBParameterGroup | rds.CfnDBClusterParameterGroup):
        return {}
    parameters = Stack.of(resource).resolve(group.parameters)
    return parameters if isinstance(parameters, Mapping) else {}
