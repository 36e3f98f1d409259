"""The real `cdk` command on our app, and what a user sees when something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emberpool_local.aws.cdk_command import CDK, check_programs
from emberpool_local.errors import DeployUnavailable

QUIET_NODE = {"JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20", "CDK_DISABLE_CLI_TELEMETRY": "1"}


def _cdk(checkout: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", checkout / CDK, *map(str, arguments), "--no-notices", "--no-color"],
        cwd=checkout,
        env={**os.environ, **QUIET_NODE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_synth_prints_the_budget_and_does_nothing_twice(checkout: Path, tmp_path: Path) -> None:
    """`cdk synth` writes every stack and the budget's table; again it has the same templates and builds no layer."""
    first = _cdk(checkout, "synth", "--quiet", "--output", tmp_path / "cdk.out")
    assert first.returncode == 0, first.stderr
    assert "Connection budget" in first.stdout + first.stderr
    templates = {path.name: path.read_text() for path in (tmp_path / "cdk.out").glob("*.template.json")}
    assert set(templates) == {f"Emberpool{name}.template.json" for name in ("Network", "Database", "Pool", "Example")}
    again = _cdk(checkout, "synth", "--quiet", "--output", tmp_path / "cdk.out")
    assert "Bundling asset" in first.stderr + first.stdout
    assert "Bundling asset" not in again.stderr + again.stdout
    assert templates == {path.name: path.read_text() for path in (tmp_path / "cdk.out").glob("*.template.json")}


def test_wrong_context_is_one_message(checkout: Path, tmp_path: Path) -> None:
    """A wrong value ends `cdk synth` with our message, no stack trace and an exit code."""
    done = _cdk(checkout, "synth", "--output", tmp_path / "cdk.out", "-c", "database=existing")
    assert done.returncode != 0
    assert "emberpool: database=existing needs vpcId" in done.stderr
    assert "Traceback" not in done.stderr
    assert "    at " not in done.stderr


def test_exceeded_budget_is_one_message(checkout: Path, tmp_path: Path) -> None:
    """A budget that does not hold ends `cdk synth` with the sum and the ways out."""
    done = _cdk(checkout, "synth", "--output", tmp_path / "cdk.out", "-c", "maxTasks=60")
    assert done.returncode != 0
    assert "emberpool: the connection budget is exceeded" in done.stderr
    assert "Three ways out" in done.stderr
    assert "Traceback" not in done.stderr


def test_app_without_node_is_one_message(checkout: Path) -> None:
    """The app started by hand on a machine without Node.js says what to install."""
    done = subprocess.run(
        [sys.executable, checkout / "infra" / "app.py"],
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "install Node.js" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_node_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node.js, deploy-local says so before it starts anything."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeployUnavailable) as caught:
        check_programs(checkout)
    assert caught.value.problem.startswith("Node.js is missing")


def test_old_node_is_named(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Node.js that the cdk command does not run on is refused with its version."""
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v16.20.0\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DeployUnavailable) as caught:
        check_programs(checkout)
    assert "v16.20.0" in caught.value.problem


def test_missing_npm_packages_are_named(checkout: Path, tmp_path: Path) -> None:
    """A clone without node_modules is told the command that installs them."""
    shutil.copyfile(checkout / "cdk.json", tmp_path / "cdk.json")
    with pytest.raises(DeployUnavailable) as caught:
        check_programs(tmp_path)
    assert "npm ci" in caught.value.next_step
    with pytest.raises(DeployUnavailable, match=r"no cdk\.json"):
        check_programs(tmp_path / "nowhere")
