"""Whatever the statement, parameters are found where PostgreSQL's own scanner and parser see them."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import pq

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import Parameter

from .bound_statements import session, values_of
from .scanned_by_postgres import PIECES, disagreement

FUZZ_RUNS = 20_000
TEXTS = st.text(st.sampled_from(":a'\"\\$/*-;\n\r\t eE0Aé€𝄞") | st.characters(codec="utf-8", exclude_characters="\0"))
NOISE = st.text(st.sampled_from(":a'\"\\$- ;é"), max_size=6)
Item = tuple[str, str, bool]  # its SQL, with {} for a parameter's name; its value; whether it is a parameter


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Iterator[pq.PGconn]:
    with session(postgres) as opened:
        yield opened


def escaped(text: str) -> str:
    return "E'" + "".join({"'": "\\'", "\\": "\\\\", "\n": "\\n"}.get(c, c) for c in text) + "'"


def dollar_quoted(text: str) -> str:
    tag = next(f"$a{n}$" for n in range(9) if f"$a{n}$" not in text and not f"{text}$".endswith(f"$a{n}$"))
    return f"{tag}{text}{tag}"


def unicode_escaped(text: str) -> str:
    return "U&'" + "".join({"'": "''", "\\": "\\\\"}.get(c, c) for c in text) + "'"


def plain(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def in_two_lines(text: str) -> str:
    """A constant that goes on in the next line keeps its kind."""
    half = len(text) // 2
    return f"{escaped(text[:half])} -- it's :a\n {escaped(text[half:])[1:]}"


WRITINGS = st.sampled_from([plain, escaped, dollar_quoted, unicode_escaped, in_two_lines])
CONSTANTS: st.SearchStrategy[Item] = st.builds(lambda write, text: (f"{write(text)}", text, False), WRITINGS, TEXTS)
PARAMETERS: st.SearchStrategy[Item] = st.builds(
    lambda form, text: (form, text, True),
    st.sampled_from([":{}", "(:{})::text", "cast(:{} as text)", ":{} ::text"]),
    TEXTS,
)
GAPS = st.one_of(
    st.sampled_from([" ", "\n", "\t\r", ""]),
    NOISE.map(lambda noise: f"--{noise}\n"),
    NOISE.map(lambda noise: f"/*{noise}/* :a '*/{noise} */"),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(GAPS, CONSTANTS | PARAMETERS, GAPS), min_size=1, max_size=8))
def test_constants_and_parameters_keep_their_values(
    connection: pq.PGconn, columns: list[tuple[str, Item, str]]
) -> None:
    """The server answers with the text of every constant and every parameter, whatever stands in it and around it."""
    names = ["a", "1", "é", "e", "name_5", "b", "t", "Z"]
    parts = [
        f"{before}{item[0].format(name) if item[2] else item[0]}{after}"
        for name, (before, item, after) in zip(names, columns, strict=False)
    ]
    parameters = [
        Parameter(name, {"stringValue": item[1]}) for name, (_, item, _) in zip(names, columns, strict=False) if item[2]
    ]
    assert values_of(connection, f"select {','.join(parts)}", *parameters) == [item[1] for _, item, _ in columns]


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_any_text_is_read_as_postgresql_scans_it(sql: str) -> None:
    """In any soup of tokens every number that we write is a parameter to PostgreSQL, and no other colon was touched."""
    assert not disagreement(sql)


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="atheris has wheels for Linux on x86_64 only"
)
def test_guided_fuzzing_finds_no_text_that_is_read_otherwise(tmp_path: Path) -> None:
    """A bounded run of the fuzzer, which looks for branches of our code that no text has reached, finds nothing."""
    program = Path(__file__).with_name("fuzz_sql_text.py")
    command = [sys.executable, program, f"-runs={FUZZ_RUNS}", "-seed=1", "-max_len=24", "-verbosity=0"]
    command.append("-rss_limit_mb=0")  # it would be that of this process: Linux hands the highest on through exec
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
