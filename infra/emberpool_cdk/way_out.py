"""Whether the tasks reach AWS from their subnets, as far as that is known at synth: by a route, or by endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jsii
from aws_cdk import Annotations, Aspects, IAspect
from aws_cdk import aws_ec2 as ec2
from constructs import Construct, IConstruct

from emberpool_cdk.pool_endpoints import ENDPOINTS
from emberpool_cdk.pool_network import select_subnets

ConstructT = TypeVar("ConstructT", bound=IConstruct)

NO_WAY_OUT = "emberpool:no-way-out"
EVERYWHERE = "0.0.0.0/0"
TOKEN = re.compile(r"\$\{Token\[[^]]*\]\}")  # what the CDK fills in later: region, partition's prefix and suffix


def watch_way_out(pool: Construct, vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> None:
    """Warn at synth, when all endpoints of the app are made, that tasks in these subnets could not start."""
    Aspects.of(pool).add(_AtSynth(pool.node.path, vpc, subnets))


def missing_endpoints(vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> tuple[str, ...]:
    """Return the services that tasks in these subnets would not reach: none where there is a way out of the VPC."""
    # The cheap looks first: to go through all of a large app takes time.
    if not _missing(vpc, vpc):
        return ()
    selected = select_subnets(vpc, subnets)
    if selected.is_pending_lookup or all(_has_way_out(vpc, subnet) for subnet in selected.subnets):
        return ()
    return _missing(vpc, vpc.node.root)


@jsii.implements(IAspect)
class _AtSynth:
    def __init__(self, path: str, vpc: ec2.IVpc, subnets: ec2.SubnetSelection) -> None:
        self._path = path
        self._vpc = vpc
        self._subnets = subnets

    def visit(self, node: IConstruct) -> None:
        if node.node.path != self._path:  # once, and not for what is in it
            return
        missing = missing_endpoints(self._vpc, self._subnets)
        if not missing:
            return
        text = (
            "the tasks' subnets have no way out of the VPC (they get no public address, and no route leads to a NAT "
            f"gateway), and this app makes no endpoint in it for {', '.join(missing)}: tasks could not start"
        )
        if isinstance(self._vpc, ec2.Vpc):
            fix = "add_pool_endpoints(vpc, subnets=...) makes all that are needed"
            Annotations.of(node).add_warning_v2(NO_WAY_OUT, f"{text}; {fix}")
        else:
            # What else there is in a VPC that was not made here is not known.
            Annotations.of(node).add_info(f"{text} unless the VPC has them already")


def _has_way_out(vpc: ec2.IVpc, subnet: ec2.ISubnet) -> bool:
    if not isinstance(subnet.node.default_child, ec2.CfnSubnet):
        # Imported or looked up, where its routes gave it its kind.
        return not _is_among(subnet, (*vpc.isolated_subnets, *vpc.public_subnets))
    return not _is_among(subnet, vpc.public_subnets) and any(map(_leads_out, _routes(subnet)))


def _is_among(subnet: ec2.ISubnet, subnets: Iterable[ec2.ISubnet]) -> bool:
    # By path: jsii hands out a new object each time.
    return subnet.node.path in {each.node.path for each in subnets}


def _routes(subnet: ec2.ISubnet) -> Iterator[ec2.CfnRoute]:
    """Yield the routes of the subnet that this app makes, wherever it does."""
    yield from _of_kind(ec2.CfnRoute, subnet)
    table = subnet.route_table.route_table_id
    yield from (each for each in _of_kind(ec2.CfnRoute, subnet.node.root) if each.route_table_id == table)


def _leads_out(route: ec2.CfnRoute) -> bool:
    return route.destination_cidr_block == EVERYWHERE or route.destination_prefix_list_id is not None


def _missing(vpc: ec2.IVpc, scope: IConstruct) -> tuple[str, ...]:
    """Return which of the pool's services have no endpoint of this VPC within `scope`."""
    endpoints = (each for each in _of_kind(ec2.CfnVPCEndpoint, scope) if each.vpc_id == vpc.vpc_id)
    names = tuple(TOKEN.sub("", each.service_name or "") for each in endpoints)
    return tuple(each.service for each in ENDPOINTS if not any(name.endswith(f".{each.service}") for name in names))


def _of_kind(kind: type[ConstructT], scope: IConstruct) -> Iterator[ConstructT]:
    return (each for each in scope.node.find_all() if isinstance(each, kind))
