"""What PostgreSQL's own scanner (in pglast) makes of a statement, against where named parameters were found in it."""

from __future__ import annotations

from itertools import pairwise

from pglast import parser

from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.sql_text import CompiledSql, compile_sql

NAMES = frozenset({"a", "b", "1", "2", "é", "e"})
PIECES = (
    *("'", "''", "\\", "\\'", "E'", "e'", "U&'", "B'", "x'", "N'", '"', '""', 'U&"'),
    *("$", "$$", "$a$", "$b$", "$é$", "$1", "$2", "/*", "*/", "--", "\n", "\r", "\f", "\v", "\t", " "),
    *(":a", ":b", ":1", ":2", ":é", ":e", ":zz", ":", ":=", "::", "[", "]", "(", ")", ",", ";"),
    *("a", "b", "E", "é", "_", "a$", " 1", " 1.5", " 0x1F", "\u00a0", "and ", "json_object("),
    *("@>", "?|", "->>", "=", "-", "/", "*", ".", "#", "\\:"),
)
_CONSTANTS = {"ICONST", "FCONST", "SCONST", "BCONST", "XCONST", "USCONST", "PARAM"}


def disagreement(sql: str) -> str:
    """Return how our reading differs from PostgreSQL's; empty when it does not, or when no statement is like that."""
    try:
        compiled = compile_sql(sql, NAMES)
    except DataError as refused:
        return "" if "both named parameters and" in refused.message else f"refused: {refused.message}"
    tokens = scanned(sql)
    if tokens is None or _is_hopeless(sql, tokens):
        return ""
    text = compiled.text.decode()
    rewritten = scanned(text)
    if rewritten is None:
        return f"{text!r} can't be scanned any more"
    numbers = _numbers(compiled, text)
    if numbers and numbers != [token.start for token in rewritten if token.name == "PARAM"]:
        return f"of the numbers at {numbers} in {text!r} not all, or not only those, are parameters to PostgreSQL"
    expected = _expected(sql, tokens)
    found = [source for _, source, is_copy in compiled.stretches if not is_copy]
    if not set(found) <= set(expected) or (found != expected and not {"[", "json_object"} & _words(sql, tokens)):
        return f"names at {found} were replaced, PostgreSQL has colons and names at {expected}"
    return ""


def scanned(sql: str) -> list[parser.Token] | None:
    """Return PostgreSQL's tokens, None when it can't even scan it."""
    try:
        return list(parser.scan(sql))
    except parser.ParseError:
        return None


def _is_hopeless(sql: str, tokens: list[parser.Token]) -> bool:
    """Say whether a constant touches a $: no grammar allows it, and our search would need all tokens to tell."""
    return any(token.name == "ASCII_36" for token in tokens) or any(
        one.name in _CONSTANTS and one.end + 1 == next_one.start and sql[next_one.start] == "$"
        for one, next_one in pairwise(tokens)
    )


def _numbers(compiled: CompiledSql, text: str) -> list[int]:
    return [text.index("$", start) for start, _, is_copy in compiled.stretches if not is_copy]


def _expected(sql: str, tokens: list[parser.Token]) -> list[int]:
    """Return each colon that touches a name which was supplied; `:1.` is the name 1 to us, `1.` to PostgreSQL."""
    found = []
    for one, next_one in pairwise(tokens):
        name = sql[next_one.start : next_one.end + 1].partition(".")[0]
        is_name = name in NAMES and not sql.startswith("'", next_one.start + len(name))
        if one.name == "ASCII_58" and one.end + 1 == next_one.start and is_name:
            found.append(one.start)
    return found


def _words(sql: str, tokens: list[parser.Token]) -> set[str]:
    return {sql[token.start : token.end + 1].lower() for token in tokens}
