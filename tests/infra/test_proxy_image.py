"""The image's build context and Dockerfile, and how `make image` calls docker.

The image itself is NOT built here, as there may be no docker daemon: `make image` builds it and tries it out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_image
from emberpool_app.image.container import ImageContainer
from emberpool_cdk import ProxyContext, proxy_image
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER
from emberpool_cdk.source_files import content_hash, source_files

from .docker_stand_in import StandIn

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


def test_every_kind_of_file_that_the_package_has_gets_into_the_context() -> None:
    """A data file that the code begins to read is not forgotten: PACKAGE_FILES has to name its kind."""
    package = proxy_image.package_folder("emberpool_proxy")
    with ProxyContext() as context:
        copied = {path.relative_to(context / "emberpool_proxy") for path in source_files(context / "emberpool_proxy")}
    beside = {Path(name) for name in proxy_image.BESIDE_THE_PACKAGE}
    assert {path.relative_to(package) for path in source_files(package)} - beside == copied


def test_context_takes_nothing_but_the_packages_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a dump, a test or an editor's copy that lies in the package's folder does not get into the image."""
    package = tmp_path / "emberpool_proxy"
    shutil.copytree(proxy_image.package_folder("emberpool_proxy"), package)
    strays = (".env", "id_rsa", "server.key", "ca.pem", "dump.sql", "agent/notes.txt", "agent/loop.py~", ".git/config")
    for stray in (*strays, "tests/test_agent.py", "agent/test_loop.py", "conftest.py", ".ssh/key.py"):
        path = package / stray
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    monkeypatch.setattr(proxy_image, "package_folder", lambda _: package)
    with ProxyContext() as context:
        files = [path for path in context.rglob("*") if path.is_file()]
        assert not [path for path in files if path.read_bytes() == b"secret"]
        names = {path.relative_to(context).as_posix() for path in files}
    in_the_package = {name for name in names if name.startswith("emberpool_proxy/")}
    assert {Path(name).suffix for name in in_the_package} == {".py", ".typed"}
    assert names - in_the_package == {"Dockerfile", ".dockerignore", "requirements.txt"}


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
    """pip and venv are installed in a stage of their own only; the last one copies the result."""
    base, build, runtime, last = instructions[1:]
    assert base[0][1].endswith("AS base")
    assert runtime[0] == ("FROM", "base AS runtime")
    middle = " ".join(rest for name, rest in build if name == "RUN")
    for option in ("--require-hashes", "--only-binary=:all:", "python3-venv"):
        assert option in middle
    for stage in (base, runtime, last):
        commands = " ".join(rest for name, rest in stage if name == "RUN")
        assert not re.search(r"\b(pip|venv|gcc|build-essential|curl|wget)\b", commands)
    (installed,) = (rest for name, rest in base if name == "RUN" and "apt-get install" in rest)
    for package in ("pgbouncer", "ca-certificates", "python3"):
        assert f" {package} " in installed


def test_what_was_removed_lies_in_no_layer(instructions: list[list[Instruction]]) -> None:
    """The last stage begins with nothing: from the base, it would still have the files that a later step removes."""
    runtime, last = instructions[3:]
    (purge,) = (rest for name, rest in runtime if name == "RUN")
    for package in ("apt", "perl-base"):
        assert f" {package} " in purge
    assert last[:2] == [("FROM", "scratch"), ("COPY", "--from=runtime / /")]


def test_pgbouncer_alone_comes_from_the_next_debian(instructions: list[list[Instruction]]) -> None:
    """Of the other release one package may be installed, from the base's own mirror, and no trace of it stays."""
    (installed,) = (rest for name, rest in instructions[1] if name == "RUN" and "apt-get install" in rest)
    assert 'pgbouncer "$PGBOUNCER_SUITE" 990 \'*\' "$PGBOUNCER_SUITE" -1' in installed
    assert "$(apt-get indextargets" in installed
    assert not re.search(r"https?://", installed)
    removed = installed[installed.index("rm -rf") :]
    for path in ("/etc/apt/sources.list.d/pgbouncer.list", "/etc/apt/preferences.d/pgbouncer", "/var/lib/apt/lists/*"):
        assert f" {path} " in removed


def test_no_secret_is_asked_for_while_the_image_is_built(instructions: list[list[Instruction]]) -> None:
    """Build arguments stay in an image's history: none of them is a password, a token or a key."""
    arguments = {rest.partition("=")[0] for stage in instructions for name, rest in stage if name == "ARG"}
    assert arguments == {"BASE_IMAGE", "DEBIAN_FRONTEND", "PGBOUNCER_SUITE", "RDS_CA_BUNDLE_URL"}


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


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """A docker program with a daemon, for how docker is called: what it builds is not looked at."""
    return StandIn(tmp_path)


def test_make_image_without_docker_says_so(checkout: Path, tmp_path: Path) -> None:
    """Without docker, and without its daemon, the build script ends with one message and exit code 1."""
    without_daemon = tmp_path / "docker"
    without_daemon.write_text("#!/bin/sh\nexit 1\n")
    without_daemon.chmod(0o755)
    for docker, message in ((str(without_daemon), "finds no docker daemon"), ("no-such-docker", "is not installed")):
        done = subprocess.run(
            [sys.executable, checkout / "infra" / "build_image.py", "--docker", docker],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_build_options_reach_docker(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """Build arguments, network, platform and tag are docker's; an image for another machine is not run here."""
    options = ["--build-arg", "BASE_IMAGE=registry/debian:1", "--build-arg", "RDS_CA_BUNDLE_URL=http://a/?b=c"]
    options += ["--network", "host", "--platform", "linux/riscv64", "--tag", "ours:1"]
    options += ["--output", str(stand_in.folder / "dist")]
    assert build_image.main(["--docker", stand_in.make().program, *options]) == 0
    (built,) = stand_in.calls("build")
    for option in (
        "--build-arg BASE_IMAGE=registry/debian:1",
        "--build-arg RDS_CA_BUNDLE_URL=http://a/?b=c",
        "--network host",
        "--platform linux/riscv64",
        "--tag ours:1",
    ):
        assert f" {option} " in built
    assert not stand_in.calls("run")
    printed = capsys.readouterr().out
    assert "ours:1 is built for linux/riscv64: 160 MB of at most 200" in printed
    assert "not tried out" in printed


def test_malformed_build_argument_is_refused_before_docker_is_asked(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--build-arg` without a name or a value is an error of usage that shows what was given."""
    docker = stand_in.make()
    for wrong in ("BASE_IMAGE", "=value"):
        with pytest.raises(SystemExit) as ended:
            build_image.main(["--docker", docker.program, "--build-arg", wrong])
        assert ended.value.code == 2
        assert f"--build-arg must be NAME=VALUE, got '{wrong}'" in capsys.readouterr().err
    assert not stand_in.calls_path.exists()


def test_failed_build_is_one_message(stand_in: StandIn) -> None:
    """When docker cannot build the image, the script says so and the image is not run."""
    with pytest.raises(SystemExit, match="docker build failed with exit code 7"):
        build_image.main(["--docker", stand_in.make(exit_code=7).program])
    assert not stand_in.calls("run")


def test_image_that_is_too_large_fails_with_the_figures(stand_in: StandIn, tmp_path: Path) -> None:
    """For this machine and for another, tried out or not: 201 MB are too many."""
    docker = stand_in.make(size=201_000_000)
    for options in ([], ["--no-smoke-test"], ["--platform", "linux/arm64"]):
        with pytest.raises(SystemExit, match="the image has 201 MB, more than 200; `docker history"):
            build_image.main(["--docker", docker.program, "--output", str(tmp_path / "dist"), *options])
    assert not (tmp_path / "dist").exists()


def test_container_runs_as_its_task_definition_says(stand_in: StandIn, tmp_path: Path) -> None:
    """The smoke test's container has a read-only root, the image's user, no rights, and no secret in its command."""
    settings = {"client_password": "not-to-be-seen", "client_port": "6432"}
    authorities = tmp_path / "authorities.pem"
    with ImageContainer(stand_in.make(exit_code=2), "ours:1", settings, authorities, tmp_path) as container:
        assert container.wait_until_ended() == 2
    (run,) = stand_in.calls("run")
    for option in (
        "--rm",
        "--read-only",
        f"--user {CONTAINER_USER}",
        "--cap-drop ALL",
        "--env EMBERPOOL_PROXY_CLIENT_PASSWORD",
        f"--volume {authorities}:{CA_FILE}:ro",
    ):
        assert f" {option} " in run
    assert "not-to-be-seen" not in run
    assert run.endswith(" ours:1")
