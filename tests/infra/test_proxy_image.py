"""The image's build context and Dockerfile. The image itself is NOT built here: there may be no docker daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from emberpool_cdk import ProxyContext
from emberpool_cdk.source_files import content_hash

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def instructions(checkout: Path) -> list[list[Instruction]]:
    """The Dockerfile's instructions, one list per stage; the first list is what comes before any FROM."""
    text = (checkout / "proxy_service" / "emberpool_proxy" / "Dockerfile").read_text()
    text = re.sub(r"(?m)^\s*#.*\n", "", text)
    stages: list[list[Instruction]] = [[]]
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


def test_context_has_the_package_the_lock_and_the_dockerfile() -> None:
    """The context holds what the Dockerfile copies, no caches, and is the same each time."""
    with ProxyContext() as context:
        names = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
        first = content_hash((), context)
    assert {"Dockerfile", ".dockerignore", "requirements.txt", "emberpool_proxy/__main__.py"} <= names
    assert not [name for name in names if "__pycache__" in name]
    with ProxyContext() as context:
        assert content_hash((), context) == first
    assert not context.exists()


def test_everything_copied_from_the_context_is_in_it(instructions: list[list[Instruction]]) -> None:
    """Each COPY without --from names something that the context has."""
    sources = [
        part
        for stage in instructions
        for name, rest in stage
        if name == "COPY" and not rest.startswith("--from=")
        for part in rest.split()[:-1]
    ]
    assert sources
    with ProxyContext() as context:
        assert all((context / source).exists() for source in sources)


def test_last_stage_has_no_build_tools(instructions: list[list[Instruction]]) -> None:
    """pip and venv are installed in the middle stage only; the last one copies the result."""
    base, build, last = instructions[1], instructions[2], instructions[3]
    assert base[0][1].endswith("AS base")
    assert last[0] == ("FROM", "base")
    middle = " ".join(rest for name, rest in build if name == "RUN")
    for option in ("--require-hashes", "--only-binary=:all:", "python3-venv"):
        assert option in middle
    for stage in (base, last):
        commands = " ".join(rest for name, rest in stage if name == "RUN")
        assert not re.search(r"\b(pip|venv|gcc|build-essential|curl|wget)\b", commands)
    assert "pgbouncer" in base[1][1]
    assert "ca-certificates" in base[1][1]


def test_image_runs_as_a_user_without_rights(instructions: list[list[Instruction]]) -> None:
    """The last USER is not root, and the entry point is the agent as an exec form, so that it gets SIGTERM."""
    last = dict(instructions[-1])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["ENTRYPOINT"] == '["python", "-m", "emberpool_proxy"]'
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["HEALTHCHECK"] == "NONE"


def test_run_folder_belongs_to_that_user_before_it_becomes_a_volume(instructions: list[list[Instruction]]) -> None:
    """The folder gets its owner, then VOLUME: ECS copies owner and mode only in this order."""
    last = instructions[-1]
    made = next(index for index, (name, rest) in enumerate(last) if name == "RUN" and "/run/emberpool" in rest)
    volume = last.index(("VOLUME", '["/run/emberpool"]'))
    assert made < volume
    user = dict(last)["USER"].split(":")[0]
    assert f"--owner={user} " in last[made][1]


def test_make_image_without_docker_says_so(checkout: Path, tmp_path: Path) -> None:
    """Without a docker daemon the build script ends with one message and exit code 1."""
    stand_in = tmp_path / "docker"
    stand_in.write_text("#!/bin/sh\nexit 1\n")
    stand_in.chmod(0o755)
    for docker, message in ((str(stand_in), "finds no docker daemon"), ("no-such-docker", "is not installed")):
        done = subprocess.run(
            [sys.executable, checkout / "infra" / "build_image.py", "--docker", docker],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
