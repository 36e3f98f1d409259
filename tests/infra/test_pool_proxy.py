"""PoolProxy in a user's own stack: attaching functions, other databases, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_rds as rds
from aws_cdk.assertions import Annotations, Match
from constructs import Construct
from tests.infra.conftest import PoolInAStack, make_app

from emberpool_cdk import (
    BudgetExceeded,
    FunctionNotAttachable,
    LayerUnsupported,
    PoolDatabase,
    PoolProxy,
    WarmConnectionLayer,
)
from emberpool_proxy.settings import PLAIN_NAME

ARM = lambda_.Architecture.ARM_64
INTEL = lambda_.Architecture.X86_64


def _function(stack: Stack, name: str = "Function", **more: Any) -> lambda_.Function:
    given: dict[str, Any] = {
        "runtime": lambda_.Runtime.PYTHON_3_13,
        "architecture": ARM,
        "handler": "index.handler",
        "code": lambda_.Code.from_inline("def handler(event, context): ..."),
    }
    return lambda_.Function(stack, name, **(given | more))


def _of_kind(template: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]


def test_functions_of_a_stack_share_the_layer_that_fits(tmp_path: Path) -> None:
    """Two arm64 functions share one layer, an x86_64 function gets another."""
    users = PoolInAStack(tmp_path)
    for name, architecture in (("A", ARM), ("B", ARM), ("C", INTEL)):
        users.pool.attach(_function(users.stack, name, vpc=users.vpc, architecture=architecture))
    layers = _of_kind(users.template(), "AWS::Lambda::LayerVersion")
    assert sorted(layer["CompatibleArchitectures"][0] for layer in layers) == ["arm64", "x86_64"]


def test_attaching_opens_the_port_on_both_sides(tmp_path: Path) -> None:
    """A function whose group allows nothing gets the way out, and the load balancer the way in."""
    users = PoolInAStack(tmp_path)
    group = ec2.SecurityGroup(users.stack, "Closed", vpc=users.vpc, allow_all_outbound=False)
    users.pool.attach(_function(users.stack, vpc=users.vpc, security_groups=[group]))
    template = users.template()
    egress = _of_kind(template, "AWS::EC2::SecurityGroupEgress")
    assert any("Closed" in str(rule["GroupId"]) and rule["FromPort"] == 6432 for rule in egress)
    ingress = _of_kind(template, "AWS::EC2::SecurityGroupIngress")
    assert any("Closed" in str(rule["SourceSecurityGroupId"]) and rule["FromPort"] == 6432 for rule in ingress)


def test_function_outside_the_vpc_is_refused(tmp_path: Path) -> None:
    """A function that could not reach the pool fails the synth with the way to mend it."""
    users = PoolInAStack(tmp_path)
    with pytest.raises(FunctionNotAttachable, match=r"Users/Function is outside the VPC .* pass vpc="):
        users.pool.attach(_function(users.stack))


def test_unsupported_runtime_is_refused(tmp_path: Path) -> None:
    """A runtime without wheels fails the synth and the message lists those that work."""
    users = PoolInAStack(tmp_path)
    old = _function(users.stack, vpc=users.vpc, runtime=lambda_.Runtime.PYTHON_3_11)
    with pytest.raises(FunctionNotAttachable, match=r"runtime python3.11, the layer exists for python3.12"):
        users.pool.attach(old)


def test_layer_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """A layer given by hand has to fit the function: Lambda would fail only when it is invoked."""
    users = PoolInAStack(tmp_path)
    layer = WarmConnectionLayer(users.stack, "Layer", architecture=INTEL)
    with pytest.raises(FunctionNotAttachable, match=r"is for arm64 and python3.13, but the layer .* x86_64"):
        users.pool.attach(_function(users.stack, vpc=users.vpc), layer=layer)


def test_imported_function_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """A function imported by ARN cannot be changed from here, and the message says where to change it."""
    users = PoolInAStack(tmp_path)
    arn = "arn:aws:lambda:us-east-1:123456789012:function:theirs"
    imported: Any = lambda_.Function.from_function_arn(users.stack, "Imported", arn)
    with pytest.raises(FunctionNotAttachable, match="was imported"):
        users.pool.attach(imported)


def test_grant_connect_lets_others_log_in(tmp_path: Path) -> None:
    """Anything with a role may be allowed to read the client's password."""
    users = PoolInAStack(tmp_path)
    role = iam.Role(users.stack, "Role", assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"))
    users.pool.grant_connect(role)
    policies = _of_kind(users.template(), "AWS::IAM::Policy")
    assert any("RolePolicy" in str(each["Roles"]) or "Role" in str(each["Roles"]) for each in policies)


def test_pool_is_connectable(tmp_path: Path) -> None:
    """The pool is an IConnectable: others can be let in on its default port."""
    users = PoolInAStack(tmp_path)
    host = ec2.SecurityGroup(users.stack, "Bastion", vpc=users.vpc, allow_all_outbound=False)
    host.connections.allow_to_default_port(users.pool)
    rules = _of_kind(users.template(), "AWS::EC2::SecurityGroupIngress")
    assert any("Bastion" in str(rule["SourceSecurityGroupId"]) and rule["FromPort"] == 6432 for rule in rules)


def test_database_elsewhere_is_reached_by_its_own_port(tmp_path: Path) -> None:
    """Without a security group of the database, the tasks' own group opens the way out to its port."""
    groups = _of_kind(PoolInAStack(tmp_path).template(), "AWS::EC2::SecurityGroup")
    rules = [rule for group in groups for rule in group.get("SecurityGroupEgress", [])]
    assert any((rule.get("FromPort"), rule["CidrIp"]) == (5432, "0.0.0.0/0") for rule in rules)


def test_too_small_a_database_fails_the_synth(tmp_path: Path) -> None:
    """The budget is checked while the app is synthesized, before anything is deployed."""
    with pytest.raises(BudgetExceeded, match="max_connections 20 - reserved 15 = 5"):
        PoolInAStack(tmp_path, max_connections=20)


def _environment(template: dict[str, Any]) -> dict[str, str]:
    (task,) = _of_kind(template, "AWS::ECS::TaskDefinition")
    prefix = "EMBERPOOL_PROXY_"
    listed = task["ContainerDefinitions"][0]["Environment"]
    return {each["Name"].removeprefix(prefix): each["Value"] for each in listed}


def test_tasks_are_told_the_terms_of_their_budget(tmp_path: Path) -> None:
    """Budget, tasks, floor, reserve and whose slots they share: the proxy gets what was proven."""
    users = PoolInAStack(
        tmp_path,
        max_tasks=3,
        reserved_connections=20,
        floor_connections=4,
        budget_name="orders",
        budget_database="postgres",
        other_tasks=6,
    )
    environment = _environment(users.template())
    assert environment["MAX_SERVER_CONNECTIONS"] == "180"
    assert environment["MOST_TASKS_ALIVE"] == "15"  # 3 x (2 + 1) + 6
    assert environment["FLOOR_CONNECTIONS"] == "4"
    assert environment["RESERVED_CONNECTIONS"] == "20"
    assert (environment["BUDGET_NAME"], environment["BUDGET_DATABASE"]) == ("orders", "postgres")


def test_budget_is_named_by_the_pools_own_path(tmp_path: Path) -> None:
    """Two pools that nobody named share nothing, and the long path of a nested one still gives a name that is valid."""
    users = PoolInAStack(tmp_path, reserved_connections=100)
    scope: Construct = users.stack
    for depth in range(5):
        scope = Construct(scope, f"Nested-Deep-Below-{depth}")
    nested = PoolProxy(scope, "Pool", vpc=users.vpc, database=users.database, reserved_connections=100)
    names = [users.pool.budget_name, nested.budget_name]
    assert len(set(names)) == len(names)
    assert all(PLAIN_NAME.fullmatch(name) for name in names)
    assert users.pool.budget_database == "shop"


def test_fleet_that_shares_nothing_is_warned_about(tmp_path: Path) -> None:
    """A budget of floors alone holds, but divides the database statically: the synth says so."""
    users = PoolInAStack(tmp_path, max_connections=12 * 4 + 15)
    assert users.pool.budget.shared_slots == 0
    warnings = Annotations.from_stack(users.stack).find_warning("/Users/Pool", Match.string_like_regexp("no more"))
    assert len(warnings) == 1


@pytest.mark.parametrize("name", ["budget_name", "budget_database"])
def test_budget_of_no_valid_name_is_refused(tmp_path: Path, name: str) -> None:
    """What the proxy would refuse fails the synth."""
    with pytest.raises(ValueError, match=rf"{name} must match .*, got 'my; pool'"):
        PoolInAStack(tmp_path, **{name: "my; pool"})


@pytest.mark.parametrize(("cpu", "memory", "processes"), [(256, 512, "1"), (1024, 2048, "1"), (4096, 8192, "4")])
def test_each_vcpu_gets_a_pgbouncer(tmp_path: Path, cpu: int, memory: int, processes: str) -> None:
    """PgBouncer has one thread: a task of four vCPUs runs four of them."""
    environment = _environment(PoolInAStack(tmp_path, cpu=cpu, memory_limit_mib=memory).template())
    assert environment["PGBOUNCER_PROCESSES"] == processes
    # Two connections each, but one, so that a PgBouncer that crashed can start beside what is left of it.
    assert int(environment["FLOOR_CONNECTIONS"]) == max(2, 2 * int(processes) - 1)


def test_floor_below_what_the_pgbouncers_need_is_refused(tmp_path: Path) -> None:
    """Four PgBouncers cannot do with the floor of one, and the message says how many they need."""
    with pytest.raises(ValueError, match="floor_connections must be at least 7 for the 4 pools of a task"):
        PoolInAStack(tmp_path, cpu=4096, memory_limit_mib=8192, floor_connections=2)


def test_two_pools_of_a_vpc_have_names_of_their_own(tmp_path: Path) -> None:
    """A VPC has each private zone once: the tasks of two pools find their own only."""
    users = PoolInAStack(tmp_path, reserved_connections=100)
    PoolProxy(users.stack, "Second", vpc=users.vpc, database=users.database, reserved_connections=100)
    zones = [each["Name"] for each in _of_kind(users.template(), "AWS::ServiceDiscovery::PrivateDnsNamespace")]
    assert len(set(zones)) == len(zones) == 2


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """The architecture is arm64 or x86_64; the message says so."""
    with pytest.raises(ValueError, match="architecture must be arm64 or x86_64, got 'riscv'"):
        PoolInAStack(tmp_path, architecture="riscv")
    with pytest.raises(LayerUnsupported, match=r"runtime must be one of python3.12"):
        WarmConnectionLayer(PoolInAStack(tmp_path / "b").stack, "Old", runtime=lambda_.Runtime.PYTHON_3_9)


def test_instance_without_secret_is_refused(tmp_path: Path) -> None:
    """An instance whose password nobody can read cannot be pooled."""
    stack = Stack(make_app(tmp_path), "Users")
    vpc = ec2.Vpc(stack, "Vpc")
    instance = rds.DatabaseInstance(
        stack,
        "Db",
        engine=rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9),
        vpc=vpc,
        credentials=rds.Credentials.from_password("owner", _unknown_password()),
    )
    with pytest.raises(ValueError, match="has no secret"):
        PoolDatabase.from_instance(instance, max_connections=100)


def _unknown_password() -> Any:
    from aws_cdk import SecretValue

    return SecretValue.ssm_secure("theirs")


def test_three_lines_are_enough_for_an_instance_of_the_same_app(tmp_path: Path) -> None:
    """A user's instance, a pool and an attached function synthesize; the tasks get its address, name and port."""
    stack = Stack(make_app(tmp_path), "Users")
    vpc = ec2.Vpc(stack, "Vpc")
    instance = rds.DatabaseInstance(
        stack,
        "Db",
        engine=rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9),
        vpc=vpc,
        database_name="shop",
    )
    pool = PoolProxy(stack, "Pool", vpc=vpc, database=PoolDatabase.from_instance(instance, max_connections=100))
    pool.attach(_function(stack, vpc=vpc))
    template = stack.node.root.synth().get_stack_by_name("Users").template  # type: ignore[attr-defined]
    environment = _environment(template)
    assert environment["DATABASE_NAME"] == "shop"
    assert "Endpoint.Port" in str(environment["DATABASE_PORT"])
