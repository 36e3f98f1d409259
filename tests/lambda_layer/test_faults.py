"""What goes wrong under a handler or between two: one clear error or nothing at all, and it never leaks further."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row, tuple_row

from emberpool import ConnectionUnavailable, commit, declared, opening, warm_connection
from emberpool import settings as names
from emberpool.connection import WarmConnection
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import Context
from .silent_path import RelayPath, SilentPath, silent_path

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]
Connection = psycopg.Connection[Any]


def ledger(admin: Admin) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def warm() -> WarmConnection:
    return declared.shared_connection(names.LayerSettings.from_environment())


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that a connection was tried to be opened."""
    seen: list[object] = []
    original = opening._connect

    def counted(*arguments: Any) -> Any:
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(opening, "_connect", counted)
    return seen


# --- a path that drops packets silently while the environment is frozen


@pytest.fixture
def path(environment: Environment, database: EmbeddedPostgres) -> Iterator[SilentPath]:
    with silent_path((database.host, database.port)) as path:
        environment(
            **{
                names.HOST: path.host,
                names.PORT: str(path.port),
                names.CONNECT_TIMEOUT_SECONDS: "2",
                names.CONNECT_RETRY_SECONDS: "0",
            }
        )
        yield path


def freeze_for_an_hour() -> None:
    warm()._last_used -= 3600


def backend_of(path: SilentPath) -> Callable[[], int]:
    """What calls a decorated handler at the near end of the path, and answers with its backend."""

    @warm_connection
    def handler(event: object, context: object, connection: Connection) -> int:
        return connection.execute("select pg_backend_pid()").fetchone()[0]

    # Without a deadline: the watchdog's thread, which is every test's, would be started in the namespace for good.
    return lambda: path.call(handler, {}, None)


def test_silently_dropped_connection_is_replaced_within_the_answer_check(
    path: SilentPath, attempts: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """When only the old flow is lost, the next invocation asks once, gets no answer and uses a new connection."""
    backend = backend_of(path)
    old = backend()
    path.drop_open_connections()
    freeze_for_an_hour()
    with caplog.at_level(logging.INFO):
        assert backend() != old
    assert "connection replaced: no answer" in caplog.text
    assert len(attempts) == 2


def test_path_that_drops_everything_is_one_clear_error_and_recovers(
    path: SilentPath, attempts: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing behind the path, the invocation fails after one bounded attempt; later ones work again."""
    backend = backend_of(path)
    old = backend()
    path.drop_everything()
    freeze_for_an_hour()
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ConnectionUnavailable, match=f"{path.host}:{path.port}.*nothing has run.*timeout"),
    ):
        backend()
    assert "connection replaced: no answer" in caplog.text
    assert len(attempts) == 2
    path.restore()
    assert backend() != old


def test_silent_server_is_noticed_without_a_network_namespace(
    environment: Environment, database: EmbeddedPostgres, attempts: list[object]
) -> None:
    """The same where the peer's kernel still acknowledges, but nobody answers: a stopped proxy, say."""
    path = RelayPath((database.host, database.port))
    try:
        environment(**{names.HOST: path.host, names.PORT: str(path.port)})
        backend = backend_of(path)
        old = backend()
        path.drop_open_connections()
        freeze_for_an_hour()
        assert backend() != old
        assert len(attempts) == 2
    finally:
        path.close()


# --- what a handler leaves half done

KEPT: list[object] = []  # what a careless handler holds on to in a global


def copy_in(connection: Connection) -> None:
    copying = connection.cursor().copy("copy ledger from stdin")
    KEPT.append(copying)
    copying.__enter__().write("half\n")


def copy_out(connection: Connection) -> None:
    copying = connection.cursor().copy("copy (select generate_series(1, 100000)) to stdout")
    KEPT.append(copying)
    next(iter(copying.__enter__()))


def open_pipeline(connection: Connection) -> None:
    pipeline = connection.pipeline()
    KEPT.append(pipeline)
    pipeline.__enter__()
    connection.execute("insert into ledger values ('piped')")


def failed_pipeline(connection: Connection) -> None:
    pipeline = connection.pipeline()
    KEPT.append(pipeline)
    pipeline.__enter__()
    connection.execute("insert into ledger values ('piped')")
    connection.execute("select 1/0")


def idle_pipeline(connection: Connection) -> None:
    connection.commit()
    pipeline = connection.pipeline()
    KEPT.append(pipeline)
    pipeline.__enter__()


def pipeline_in_autocommit(connection: Connection) -> None:
    connection.commit()
    connection.autocommit = True
    open_pipeline(connection)


def server_side_cursor(connection: Connection) -> None:
    connection.commit()
    connection.autocommit = False
    cursor = connection.cursor("named")
    KEPT.append(cursor)
    cursor.execute("select generate_series(1, 1000)").fetchone()


def row_stream(connection: Connection) -> None:
    rows = connection.cursor().stream("select generate_series(1, 100000)")
    KEPT.append(rows)
    next(rows)


def transaction_block(connection: Connection) -> None:
    block = connection.transaction()
    KEPT.append(block)
    block.__enter__()


def transaction_block_ended_by_sql(connection: Connection) -> None:
    transaction_block(connection)
    connection.execute("commit")


def own_begin(connection: Connection) -> None:
    connection.commit()
    connection.autocommit = True
    connection.execute("begin")


def own_commit(connection: Connection) -> None:
    connection.execute("commit")


def own_rollback(connection: Connection) -> None:
    connection.execute("rollback")


def two_phase(connection: Connection) -> None:
    connection.rollback()
    connection.autocommit = False
    connection.tpc_begin("half done")


def attributes(connection: Connection) -> None:
    connection.commit()
    connection.autocommit = True
    connection.isolation_level = IsolationLevel.SERIALIZABLE
    connection.read_only = True
    connection.deferrable = True
    connection.row_factory = dict_row
    connection.prepare_threshold = 0
    connection.prepared_max = 1
    connection.cursor_factory = psycopg.ClientCursor
    connection.server_cursor_factory = psycopg.RawServerCursor
    connection.add_notice_handler(KEPT.append)
    connection.add_notify_handler(KEPT.append)


LEFT_HALF_DONE = [
    copy_in,
    copy_out,
    open_pipeline,
    failed_pipeline,
    idle_pipeline,
    pipeline_in_autocommit,
    server_side_cursor,
    row_stream,
    transaction_block,
    transaction_block_ended_by_sql,
    own_begin,
    own_commit,
    own_rollback,
    two_phase,
    attributes,
]


def by_name(function: Callable[..., Any]) -> str:
    return function.__name__


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets go of what a careless handler kept, after the test; nothing here is worth the layer's patience."""
    monkeypatch.setattr(commit, "COMMIT_PATIENCE_SECONDS", 0.05)
    yield
    with contextlib.suppress(psycopg.Error):
        KEPT.clear()
        gc.collect()


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ending", ["returns", "raises"])
@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "autocommit"])
@pytest.mark.parametrize("leave", LEFT_HALF_DONE, ids=by_name)
def test_next_invocation_gets_a_usable_connection_with_the_defaults(
    environment: Environment, admin: Admin, kept: None, leave: Callable[..., None], transaction: bool, ending: str
) -> None:
    """Whatever a handler leaves half done, the next one's work is committed, on a connection like a new one."""

    @warm_connection(transaction=transaction)
    def careless(event: object, context: object, connection: Connection) -> None:
        leave(connection)
        if ending == "raises":
            raise KeyError("mine")

    with pytest.raises(KeyError) if ending == "raises" else contextlib.suppress(psycopg.Error):
        careless({}, Context())
    before = ledger(admin)

    @warm_connection
    def careful(event: object, context: object, connection: Connection) -> list[dict[str, Any]]:
        seen = [defaults_of(connection)]
        connection.execute("insert into ledger values ('careful')")
        return seen

    [seen] = careful({}, Context())
    with contextlib.closing(opening._connect(warm().settings, warm()._credentials.login())) as fresh:
        assert seen == defaults_of(fresh)
    assert ledger(admin) == sorted([*before, "careful"])


def defaults_of(connection: Connection) -> dict[str, Any]:
    fields = (
        "autocommit",
        "isolation_level",
        "read_only",
        "deferrable",
        "row_factory",
        "prepare_threshold",
        "prepared_max",
        "cursor_factory",
        "server_cursor_factory",
        "_notice_handlers",
        "_notify_handlers",
        "_num_transactions",
        "_pipeline",
    )
    assert connection.execute("show transaction_isolation").fetchone() == ("read committed",)
    return {field: getattr(connection, field) for field in fields}


@pytest.mark.parametrize("leave", [open_pipeline, failed_pipeline, transaction_block, copy_in, server_side_cursor])
def test_unfinished_work_is_either_committed_or_an_error(
    environment: Environment, admin: Admin, kept: None, leave: Callable[..., None]
) -> None:
    """A handler that returned without an error has its work committed, also when it left something open."""

    @warm_connection
    def handler(event: str, context: object, connection: Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])
        leave(connection)

    try:
        handler("mine", Context())
        acknowledged = True
    except psycopg.Error:
        acknowledged = False
    assert ("mine" in ledger(admin)) is acknowledged


def test_exception_in_the_middle_of_a_stream_reaches_the_caller(environment: Environment, admin: Admin) -> None:
    """A handler that raises inside a stream's loop fails with its own exception: the open stream blocks nothing."""

    @warm_connection
    def handler(event: str, context: object, connection: Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])
        for _ in connection.cursor().stream("select generate_series(1, 100000)"):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        handler("a", Context())
    assert ledger(admin) == []


def test_resolved_commit_works_whatever_rows_the_handler_wants(environment: Environment, admin: Admin) -> None:
    """resolve_commit=True asks for the transaction's id on rows of its own kind."""

    @warm_connection(resolve_commit=True)
    def handler(event: str, context: object, connection: Connection) -> None:
        connection.row_factory = dict_row
        connection.execute("insert into ledger values (%s)", [event])

    handler("a", Context())
    assert ledger(admin) == ["a"]


def test_options_hold_for_a_handlers_own_transactions(environment: Environment) -> None:
    """With transaction=False, read_only and isolation_level hold for each transaction() of the handler's own."""

    @warm_connection(transaction=False, read_only=True, isolation_level=IsolationLevel.SERIALIZABLE)
    def handler(event: object, context: object, connection: Connection) -> list[str]:
        with connection.transaction():
            names = ("transaction_isolation", "transaction_read_only")
            return [connection.execute(f"show {name}").fetchone()[0] for name in names]

    assert handler({}, Context()) == ["serializable", "on"]


def test_row_factory_is_tuples_again(environment: Environment) -> None:
    """A handler that sets row_factory = dict_row does not change what the next handler's rows are."""

    @warm_connection
    def handler(event: bool, context: object, connection: Connection) -> object:
        if event:
            connection.row_factory = dict_row
        return connection.execute("select 1 as one").fetchone()

    assert handler(True, Context()) == {"one": 1}
    assert handler(False, Context()) == (1,)
    assert warm()._connection.row_factory is tuple_row


# --- what cannot work is told at once


def unavailable(attempts: list[object]) -> str:
    """Invoke a handler that must not run; return the one error's text after exactly one attempt."""

    @warm_connection
    def handler(event: object, context: object, connection: Connection) -> None:
        pytest.fail("must not run")

    with pytest.raises(ConnectionUnavailable, match="nothing has run") as caught:
        handler({}, Context())
    assert len(attempts) == 1, "what is permanent is not tried again"
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__
    text = str(error)
    assert warm().settings.password not in text
    return text


def test_unknown_host_is_one_clear_error(environment: Environment, attempts: list[object]) -> None:
    """A name that does not resolve is named in the error; it is not tried again."""
    environment(**{names.HOST: "no-such-host.invalid"})
    assert "no-such-host.invalid" in unavailable(attempts)


def test_server_without_tls_is_refused(environment: Environment, attempts: list[object]) -> None:
    """sslmode=require never falls back to plain text: the server that cannot do TLS is told by one error."""
    environment(**{names.SSLMODE: "require"})
    assert "SSL was required" in unavailable(attempts)


def test_unknown_database_is_one_clear_error(environment: Environment, attempts: list[object]) -> None:
    """A database that does not exist is named; the handler did not run."""
    environment(**{names.DATABASE: "no_such_database"})
    assert 'database "no_such_database" does not exist' in unavailable(attempts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (names.HOST, None),
        (names.USER, None),
        (names.PASSWORD, None),
        (names.PORT, "5432x"),
        (names.SSLMODE, "prefer"),
        (names.DEADLINE_MARGIN_MS, "-1"),
    ],
)
def test_invalid_settings_name_the_variable_when_the_module_is_loaded(
    environment: Environment, name: str, value: str | None
) -> None:
    """A variable that is missing or malformed fails where the decorator is applied, without the password."""
    environment(**{name: value})
    with pytest.raises(names.SettingsInvalid, match=name) as caught:
        warm_connection(lambda event, context, connection: None)
    assert "layer-password-for-tests" not in str(caught.value)
