"""IPv6 beside IPv4: what of a pool has addresses of both kinds, and which rules let them through."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from tests.infra.conftest import Synthesized, Template, make_app

from emberpool_app.deployment import EXAMPLE, NETWORK, POOL, add_stacks
from emberpool_cdk import PoolDatabase, PoolProxy
from emberpool_proxy.settings import EVERY_ADDRESS

ISOLATED = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
EVERYWHERE = {"CidrIp": "0.0.0.0/0"}, {"CidrIpv6": "::/0"}


class Users:
    """A user's stack with a VPC and functions; the pool's database is run elsewhere."""

    def __init__(self, app: App, name: str, *, is_dual: bool = True) -> None:
        self.stack = Stack(app, name)
        self.vpc = ec2.Vpc(
            self.stack,
            "Vpc",
            max_azs=2,
            nat_gateways=0,
            ip_protocol=ec2.IpProtocol.DUAL_STACK if is_dual else ec2.IpProtocol.IPV4_ONLY,
            subnet_configuration=[ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)],
        )

    def pool(self, **more: Any) -> PoolProxy:
        secret = secretsmanager.Secret.from_secret_name_v2(self.stack, "Secret", "theirs")
        database = PoolDatabase(
            host=f"{self.stack.stack_name}.example.com", name="shop", secret=secret, max_connections=200
        )
        return PoolProxy(
            self.stack, "Pool", vpc=self.vpc, vpc_subnets=ISOLATED, database=database, dual_stack=True, **more
        )

    def function(self, name: str, **more: Any) -> lambda_.Function:
        return lambda_.Function(
            self.stack,
            name,
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.ARM_64,
            handler="index.handler",
            code=lambda_.Code.from_inline("def handler(event, context): ..."),
            vpc=self.vpc,
            vpc_subnets=ISOLATED,
            **more,
        )


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """A stack with a pool of each endpoint, and functions with and without IPv6."""
    app = make_app(tmp_path_factory.mktemp("dual"))
    for endpoint in ("nlb", "dns"):
        users = Users(app, endpoint)
        pool = users.pool(endpoint=endpoint)
        pool.attach(users.function("Both", ipv6_allowed_for_dual_stack=True))
        pool.attach(users.function("Old"))
    assembly = app.synth()
    return {name: assembly.get_stack_by_name(name).template for name in ("nlb", "dns")}


def of_kind(template: Template, kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]


def environment(template: Template) -> dict[str, Any]:
    (task,) = of_kind(template, "AWS::ECS::TaskDefinition")
    return {each["Name"]: each["Value"] for each in task["ContainerDefinitions"][0]["Environment"]}


def test_load_balancer_has_addresses_of_both_kinds(templates: dict[str, Template]) -> None:
    """Clients connect to it by either; the tasks are reached by IPv4, which no account's setting takes away."""
    (balancer,) = of_kind(templates["nlb"], "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert balancer["IpAddressType"] == "dualstack"
    (group,) = of_kind(templates["nlb"], "AWS::ElasticLoadBalancingV2::TargetGroup")
    assert group.get("IpAddressType", "ipv4") == "ipv4"


@pytest.mark.parametrize(("endpoint", "kinds"), [("dns", ["A", "AAAA"]), ("nlb", ["A"])])
def test_name_of_the_tasks_has_both_kinds_where_functions_ask_for_it(
    templates: dict[str, Template], endpoint: str, kinds: list[str]
) -> None:
    """Without a load balancer functions find IPv6 addresses by name; behind one only the tasks ask for it."""
    (registry,) = of_kind(templates[endpoint], "AWS::ServiceDiscovery::Service")
    assert [each["Type"] for each in registry["DnsConfig"]["DnsRecords"]] == kinds
    (service,) = of_kind(templates[endpoint], "AWS::ECS::Service")
    assert len(service["ServiceRegistries"]) == 1


@pytest.mark.parametrize("endpoint", ["nlb", "dns"])
def test_tasks_listen_on_every_address(templates: dict[str, Template], endpoint: str) -> None:
    """The container is told to; a default one listens by IPv4."""
    assert environment(templates[endpoint])["EMBERPOOL_PROXY_LISTEN_HOST"] == EVERY_ADDRESS


@pytest.mark.parametrize("endpoint", ["nlb", "dns"])
def test_rules_for_addresses_are_there_for_both_kinds(templates: dict[str, Template], endpoint: str) -> None:
    """The tasks reach AWS and a database without a group by IPv6 wherever they do by IPv4."""
    groups = of_kind(templates[endpoint], "AWS::EC2::SecurityGroup")
    (tasks,) = [each for each in groups if each["GroupDescription"] == "emberpool: proxy tasks"]
    rules = [
        {name: rule[name] for name in ("CidrIp", "CidrIpv6", "FromPort") if name in rule}
        for rule in tasks["SecurityGroupEgress"]
    ]
    for port in (443, 5432):
        for anywhere in EVERYWHERE:
            assert {**anywhere, "FromPort": port} in rules
    assert len(rules) == 4


@pytest.mark.parametrize("endpoint", ["nlb", "dns"])
def test_function_with_ipv6_may_use_it_to_the_pool(templates: dict[str, Template], endpoint: str) -> None:
    """ "All outbound" of a function's group is IPv4 alone: the one with IPv6 gets a rule, the other needs none."""
    egress = [
        json.dumps(each["GroupId"])
        for each in of_kind(templates[endpoint], "AWS::EC2::SecurityGroupEgress")
        if each["FromPort"] == 6432 and "TaskSecurityGroup" not in json.dumps(each["GroupId"])
    ]
    ours = [each for each in egress if "BalancerSecurityGroup" not in each]
    assert len(ours) == 1
    assert "BothSecurityGroup" in ours[0]


def test_subnets_without_ipv6_are_refused(tmp_path: Path) -> None:
    """What could never get an address fails the synth, and the message says how the VPC is made."""
    users = Users(make_app(tmp_path), "Old", is_dual=False)
    with pytest.raises(ValueError, match=r"dual_stack needs subnets with IPv6 .* Old/Vpc/PrivateSubnet1 .*DUAL_STACK"):
        users.pool()


def test_imported_subnets_are_taken_at_the_users_word(tmp_path: Path) -> None:
    """Of a VPC that was not made here nothing is known, and nothing is refused."""
    stack = Stack(make_app(tmp_path), "Imported")
    ids: Any = {"private_subnet_ids": ["subnet-1", "subnet-2"], "availability_zones": ["us-east-1a", "us-east-1b"]}
    vpc = ec2.Vpc.from_vpc_attributes(stack, "Vpc", vpc_id="vpc-1", **ids)
    secret = secretsmanager.Secret.from_secret_name_v2(stack, "Secret", "theirs")
    database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=200)
    assert PoolProxy(stack, "Pool", vpc=vpc, database=database, dual_stack=True).load_balancer is not None


def test_default_pool_is_as_before(synthesized: Synthesized) -> None:
    """Nothing of IPv6 is there unless it is asked for."""
    for name, template in synthesized.templates.items():
        text = json.dumps(template)
        assert "Ipv6" not in text, name
        assert "dualstack" not in text, name
    (task,) = synthesized.resources(POOL, "AWS::ECS::TaskDefinition")
    listed = task["Properties"]["ContainerDefinitions"][0]["Environment"]
    assert {"Name": "EMBERPOOL_PROXY_LISTEN_HOST", "Value": "0.0.0.0"} in listed


def test_our_app_is_dual_stack_by_its_context(tmp_path: Path) -> None:
    """With dualStack=true its VPC, its load balancer and its example have IPv6, and still no way out."""
    app = make_app(tmp_path, dualStack="true")
    add_stacks(app)
    assembly = app.synth()
    network, pool, example = (assembly.get_stack_by_name(name).template for name in (NETWORK, POOL, EXAMPLE))
    assert all(each["AssignIpv6AddressOnCreation"] for each in of_kind(network, "AWS::EC2::Subnet"))
    assert not of_kind(network, "AWS::EC2::Route")
    (balancer,) = of_kind(pool, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert balancer["IpAddressType"] == "dualstack"
    (function,) = of_kind(example, "AWS::Lambda::Function")
    assert function["VpcConfig"]["Ipv6AllowedForDualStack"] is True


def test_rules_have_descriptions_that_ec2_takes(synthesized: Synthesized, templates: dict[str, Template]) -> None:
    """EC2 refuses others, an apostrophe for example, and then the deployment fails."""
    taken = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
    for name, template in {**synthesized.templates, **templates}.items():
        for group in of_kind(template, "AWS::EC2::SecurityGroup"):
            rules = [*group.get("SecurityGroupIngress", []), *group.get("SecurityGroupEgress", [])]
            said = [group["GroupDescription"], *(rule.get("Description", "") for rule in rules)]
            assert [each for each in said if isinstance(each, str) and not taken.fullmatch(each)] == [], name
        for kind in ("Ingress", "Egress"):
            for rule in of_kind(template, f"AWS::EC2::SecurityGroup{kind}"):
                assert taken.fullmatch(rule.get("Description", "")), (name, rule)
