"""What a user chooses of the runtimes' settings arrives where it is read; what they would refuse fails the synth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import PoolInAStack, Template
from tests.infra.test_attachment import _function

from emberpool_cdk import FunctionNotAttachable, PoolProxy
from emberpool_cdk.task_settings import task_variables
from emberpool_proxy.settings import PREFIX


def _task_environment(template: Template) -> dict[str, Any]:
    (task,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::ECS::TaskDefinition"]
    (container,) = task["Properties"]["ContainerDefinitions"]
    return {each["Name"].removeprefix(PREFIX).lower(): each["Value"] for each in container["Environment"]}


def _function_environment(template: Template) -> dict[str, Any]:
    (function,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::Lambda::Function"]
    variables: dict[str, Any] = function["Properties"]["Environment"]["Variables"]
    return variables


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PoolProxy:
    """A pool that is asked for environments only."""
    return PoolInAStack(tmp_path_factory.mktemp("pool")).pool


def test_chosen_settings_arrive_in_the_task(tmp_path: Path) -> None:
    """Text, whole numbers and fractions are written as the proxy reads them, beside what the construct writes."""
    chosen = {"reset_policy": "always", "idle_transaction_seconds": 30, "agent_tick_seconds": 0.5}
    chosen |= {"server_tls_mode": "require", "server_tls_unverified": "accepted"}
    environment = _task_environment(PoolInAStack(tmp_path, settings=chosen).template())
    assert {name: environment[name] for name in chosen} == {
        "reset_policy": "always",
        "idle_transaction_seconds": "30",
        "agent_tick_seconds": "0.5",
        "server_tls_mode": "require",
        "server_tls_unverified": "accepted",
    }
    assert environment["client_port"] == "6432"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reset_polcy": "always"}, "unknown name 'reset_polcy': did you mean reset_policy?"),
        ({"database_password": "hush"}, "settings must not have database_password: a task definition holds no secret"),
        ({"max_server_connections": 500}, "it follows from the budget"),
    ],
)
def test_name_that_is_not_to_be_chosen_is_refused(settings: dict[str, Any], message: str) -> None:
    """The message says what writes the setting, or which one was meant; a secret in it is not shown."""
    with pytest.raises(ValueError, match=".") as caught:
        task_variables(settings)
    assert message in str(caught.value)
    assert "hush" not in str(caught.value)


def test_setting_that_the_proxy_would_refuse_fails_the_synth(tmp_path: Path) -> None:
    """The message is the proxy's own."""
    with pytest.raises(ValueError, match="would not start: EMBERPOOL_PROXY_DRAIN_SECONDS must be between 0 and 110"):
        PoolInAStack(tmp_path, settings={"drain_seconds": 1000})


def test_chosen_settings_arrive_in_the_function(tmp_path: Path) -> None:
    """They are written for the database that the function calls so, beside the pool's."""
    users = PoolInAStack(tmp_path)
    users.pool.attach(_function(users), settings={"deadline_margin_ms": 500}, name="orders")
    variables = _function_environment(users.template())
    assert variables["EMBERPOOL_ORDERS_DEADLINE_MARGIN_MS"] == "500"
    assert variables["EMBERPOOL_ORDERS_PORT"] == "6432"
    assert "EMBERPOOL_HOST" not in variables


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline_margin": 500}, "did you mean deadline_margin_ms?"),
        ({"password": "hush"}, "settings must not have password: a function's environment holds no secret"),
        ({"deadline_margin_ms": -1}, "EMBERPOOL_DEADLINE_MARGIN_MS must be between 0 and 60000, got -1"),
    ],
)
def test_setting_that_the_layer_would_refuse_fails_the_synth(
    pool: PoolProxy, settings: dict[str, Any], message: str
) -> None:
    """The message is the layer's own, or says what writes the setting."""
    with pytest.raises(ValueError, match=".") as caught:
        pool.function_environment(settings=settings)
    assert message in str(caught.value)
    assert "hush" not in str(caught.value)


def test_function_with_two_databases_has_both(tmp_path: Path) -> None:
    """A second database has variables of its own name, one layer is enough, and the function counts once."""
    users = PoolInAStack(tmp_path)
    function = _function(users)
    users.pool.attach(function)
    users.pool.attach(function, client=users.pool.add_client("reporting"), name="reports")
    template = users.template()
    variables = _function_environment(template)
    assert variables["EMBERPOOL_USER"] == "emberpool"
    assert variables["EMBERPOOL_REPORTS_USER"] == "reporting"
    assert variables["EMBERPOOL_SECRET_ARN"] != variables["EMBERPOOL_REPORTS_SECRET_ARN"]
    (found,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::Lambda::Function"]
    assert len(found["Properties"]["Layers"]) == 1


def test_second_database_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """The second would silently win: the message says how to have both. Case is none: variables are upper case."""
    users = PoolInAStack(tmp_path)
    function = _function(users)
    for first, second in ((None, None), ("orders", "Orders")):
        users.pool.attach(function, name=first)
        with pytest.raises(FunctionNotAttachable, match=r"is attached already.*@warm_connection\(database=\.\.\.\)"):
            users.pool.attach(function, name=second)


def test_name_that_is_none_is_refused(pool: PoolProxy) -> None:
    """It becomes part of a variable's name."""
    with pytest.raises(ValueError, match="names are letters, digits and underscores"):
        pool.function_environment(name="my-orders")
