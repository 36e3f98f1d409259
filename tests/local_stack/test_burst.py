"""A burst over a real fleet: every invocation is counted once, failures by error, bad input is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberpool_local.burst.fire import Burst, BurstInvalid, BurstProgress, WatchedDatabase, Way, run_burst
from emberpool_local.burst.target import SqlFileInvalid, check_limits, run_sql_file
from emberpool_local.errors import EventInvalid, HandlerInvalid
from emberpool_local.postgres.server import EmbeddedPostgres

HANDLER = """
import os

def handler(event, context):
    if event["n"] == 1:
        raise KeyError("no such order")
    if event["n"] == 2:
        os._exit(3)
    return event["n"]
"""


@pytest.fixture
def watched(postgres: EmbeddedPostgres) -> WatchedDatabase:
    return WatchedDatabase(postgres.conninfo(), postgres.log_path, postgres.max_connections)


def way_of(folder: Path, code: str, handler: str = "app:handler") -> Way:
    (folder / "app.py").write_text(code)
    return Way("own", "own", "nowhere", handler, folder, {})


def test_every_invocation_is_counted_once(tmp_path: Path, watched: WatchedDatabase) -> None:
    """Four events in turn: half of them succeed, a quarter raises and a quarter loses its environment."""
    seen: list[BurstProgress] = []
    burst = Burst(3, 20, [b'{"n": 0}', b'{"n": 1}', b'{"n": 2}', b'{"n": 3}'])

    result = run_burst(burst, way_of(tmp_path, HANDLER), watched, seen.append)

    assert result.succeeded == len(result.latencies_ms) == 10
    assert result.failures == {"KeyError: 'no such order'": 5, "invocation crashed": 5}
    assert result.invocations == 20
    assert result.init_p50_ms is not None
    assert result.samples
    assert result.wall_seconds > 0
    assert (seen[0].is_starting, seen[0].done, seen[0].total) == (True, 0, 3)
    assert (seen[-1].is_starting, seen[-1].done, seen[-1].total, seen[-1].failures) == (False, 20, 20, 10)


def test_all_environments_start_together_and_stay_busy(tmp_path: Path, watched: WatchedDatabase) -> None:
    """The first invocations are in flight at the same time: each waits for the others, and none waits in vain."""
    code = f"""
import pathlib, time, uuid

def handler(event, context):
    folder = pathlib.Path({str(tmp_path)!r}) / "arrived"
    folder.mkdir(exist_ok=True)
    (folder / uuid.uuid4().hex).touch()
    while len(list(folder.iterdir())) < 4:
        time.sleep(0.01)
"""
    result = run_burst(Burst(4, 8, [b"{}"], timeout_seconds=20), way_of(tmp_path, code), watched)
    assert (result.succeeded, result.failed) == (8, 0)


def test_unknown_handler_is_one_clear_error(tmp_path: Path, watched: WatchedDatabase) -> None:
    """A handler that does not exist ends the burst before anything is fired."""
    way = way_of(tmp_path, "", handler="app:missing")
    with pytest.raises(HandlerInvalid, match="missing"):
        run_burst(Burst(2, 4, [b"{}"]), way, watched)


@pytest.mark.parametrize(
    ("environments", "invocations", "words"),
    [
        (0, 10, "environments must be at least 1, got 0"),
        (-3, 10, "environments must be at least 1, got -3"),
        (1, 0, "invocations must be at least 1, got 0"),
        (10, 9, "9 invocations cannot keep 10 environments busy"),
    ],
)
def test_impossible_bursts_are_refused(environments: int, invocations: int, words: str) -> None:
    """The numbers are checked before anything starts; the message shows them and the next step."""
    with pytest.raises(BurstInvalid, match=words) as refused:
        Burst(environments, invocations, [b"{}"])
    assert refused.value.next_step


@pytest.mark.parametrize("event", [b"", b"{", b"{'n': 1}", b"\xff"])
def test_event_that_is_no_json_is_refused(event: bytes) -> None:
    """An event that Lambda would refuse is refused before anything starts."""
    with pytest.raises(EventInvalid, match="not JSON"):
        Burst(1, 1, [event])


@pytest.mark.parametrize(("max_connections", "max_server_connections"), [(40, 38), (3, 1), (40, 0)])
def test_pool_that_does_not_fit_is_refused(max_connections: int, max_server_connections: int) -> None:
    """The proxy's connections and the reserved ones must fit into max_connections."""
    with pytest.raises(BurstInvalid, match="do not fit"):
        check_limits(max_connections, max_server_connections)
    check_limits(40, 37)


def test_sql_file_problems_are_named(tmp_path: Path, postgres: EmbeddedPostgres) -> None:
    """A missing file and a wrong statement are errors that name the file and what is wrong with it."""
    wrong = tmp_path / "wrong.sql"
    wrong.write_text("create table half (id int); create tabel other ()")
    with pytest.raises(SqlFileInvalid, match=r"wrong\.sql: .*syntax error"):
        run_sql_file(postgres.conninfo(), wrong)
    with pytest.raises(SqlFileInvalid, match="cannot be read"):
        run_sql_file(postgres.conninfo(), tmp_path / "missing.sql")


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    """The repr of a way and of a database can be logged."""
    way = Way("own", "own", "nowhere", "app:handler", tmp_path, {"DATABASE_URL": "password=hunter2"})
    database = WatchedDatabase("password=hunter2", tmp_path, 40)
    assert "hunter2" not in f"{way!r} {database!r}"
