"""Slices and JSON objects: which of their colons begin a parameter is as PostgreSQL's grammar has it."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parser

from emberpool_proxy.data_endpoint.sql_text import compile_sql

COLUMNS = ("a", "b", "zz", '"a"', "b$c", "É")
NAMES = ("a", "b", "1", "2", "É")
PARAMETER = "\0"  # begins a token that is a parameter; the others stand as they are
Tokens = tuple[str, ...]

GAPS = st.sampled_from(["", "", " ", "\n", "/* :a */", " -- :b\n"])
ATOMS: st.SearchStrategy[Tokens] = st.one_of(
    st.sampled_from(COLUMNS),
    st.sampled_from(["1", "2", "3.5", "':a'", "E'\\':a'", "$$:a$$", "null"]),
    st.sampled_from(NAMES).map(lambda name: PARAMETER + name),
).map(lambda token: (token,))


def joined(*parts: str | Tokens) -> Tokens:
    return tuple(token for part in parts for token in ((part,) if isinstance(part, str) else part))


def is_column_or_parameter(tokens: Tokens) -> bool:
    return len(tokens) == 1 and (tokens[0] in COLUMNS or tokens[0].startswith(PARAMETER))


def sliced(array: Tokens, gaps: list[str], lower: Tokens, upper: Tokens) -> Tokens:
    """A colon that touched a parameter's would make a cast, and one that touches a name without a bound before it
    is the parameter of that name: there a gap is needed.
    """
    needs_gap = upper and (upper[0].startswith(PARAMETER) or (not lower and upper[0] in NAMES))
    after = gaps[2] or " " if needs_gap else gaps[2]
    return joined(array, "[", gaps[0], lower, gaps[1], ":", after, upper, gaps[3], "]")


def larger(inner: st.SearchStrategy[Tokens]) -> st.SearchStrategy[Tokens]:
    operand = inner.map(lambda tokens: joined("(", tokens, ")") if len(tokens) > 1 else tokens)
    array = inner.map(lambda tokens: tokens if is_column_or_parameter(tokens) else joined("(", tokens, ")"))
    bounds = inner | st.just(())
    gaps = st.lists(GAPS, min_size=4, max_size=4)
    return st.one_of(
        st.builds(lambda one, two: joined("array[", one, ",", two, "]"), inner, inner),
        st.builds(lambda array, index: joined(array, "[", index, "]"), array, inner),
        st.builds(sliced, array, gaps, bounds, bounds),
        st.builds(sliced, array, gaps, bounds, bounds),
        st.builds(lambda one, two: joined("f(", one, ", ", two, ")"), inner, inner),
        st.builds(lambda one: joined(one, "::int"), operand),
        st.builds(lambda one, two: joined(one, " and ", two), operand, operand),
        st.builds(lambda one: joined("not ", one), operand),
        st.builds(lambda one, two: joined(one, " like ", two, " escape ", one), operand, operand),
        st.builds(lambda one, two: joined(one, " between ", two, " and ", two), operand, operand),
        st.builds(lambda one, two: joined(one, " is distinct from ", two), operand, operand),
        st.builds(lambda one, two: joined(one, " at time zone ", two), operand, operand),
        st.builds(
            lambda a, b, c: joined("case ", a, " when ", b, " then ", c, " else ", a, " end"), inner, inner, inner
        ),
        st.builds(
            lambda key, gap, value: joined("json_object(", key, ":", gap or " ", value, ")"), operand, GAPS, inner
        ),
        st.builds(lambda key, value: joined("JSON_OBJECT (", key, " value ", value, ")"), operand, inner),
        st.builds(lambda key: joined("json_object('k':a, ", key, ":b, 'l' : ", key, ")"), operand),
    )


@settings(max_examples=300)
@given(st.recursive(ATOMS, larger, max_leaves=12))
def test_colons_between_operands_separate(tokens: Tokens) -> None:
    """In any expression the parameters are replaced and the other colons are kept, and PostgreSQL can parse it."""
    sql = "select " + "".join(tokens).replace(PARAMETER, ":")
    numbers: dict[str, str] = {}
    expected = [
        numbers.setdefault(token, f"${len(numbers) + 1}") if token.startswith(PARAMETER) else token for token in tokens
    ]
    text = compile_sql(sql, frozenset(NAMES)).text.decode()
    assert without_spaces(text) == without_spaces(f"select {''.join(expected)}")
    parser.parse_sql(text)


def without_spaces(sql: str) -> str:
    return re.sub(r"\s", "", sql)
