"""A statement with named parameters as PostgreSQL takes it: with $1, $2, ...

AWS documents `:name` and no more. A name that was supplied and does not occur is ignored. One that was not supplied
stays as it is, since a slice's bound or a JSON value may look like it; where PostgreSQL then stumbles, `missing_name`
tells. `:x IS NULL` gets a number of its own and a cast: in `(:x IS NULL OR id = :x)` PostgreSQL would find no type for
an untyped $1, although any would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from emberpool_proxy.data_endpoint.errors import bad_request
from emberpool_proxy.data_endpoint.sql_tokens import (
    BLOCK_COMMENT,
    IDENTIFIER_PART,
    LINE_COMMENT,
    NAME,
    QUOTED,
    SPACE,
    end_of_comment,
    leading_words,
    separating_colons,
)

_MOST_KEPT = 1000
_LONGEST_KEPT = 8192  # characters: some tens of megabytes in all at worst
# Every alternative begins with a literal: the search then skips all that is none of ' " $ - / : at the speed of C.
_HIDING_OR_NAME = re.compile(
    rf"{QUOTED}|{LINE_COMMENT}|{BLOCK_COMMENT}|::|:=|{NAME}|\$(?<![{IDENTIFIER_PART}]\$)(?P<native>[0-9]+)", re.DOTALL
)
_NAME = re.compile(NAME)
_OF_IDENTIFIERS = re.compile(f"[{IDENTIFIER_PART}]")
_NULL_TEST = re.compile(
    rf"{SPACE}+(?:IS{SPACE}+(?:NOT{SPACE}+)?NULL|ISNULL|NOTNULL)(?![{IDENTIFIER_PART}])", re.IGNORECASE | re.ASCII
)
# IS binds less than most operators: `id = :x IS NULL` tests id = :x.
_BEFORE_NULL_TEST = re.compile(
    rf"(?:[(,]|(?<![{IDENTIFIER_PART}])(?:AND|HAVING|NOT|ON|OR|SELECT|WHEN|WHERE)){SPACE}*\Z", re.IGNORECASE | re.ASCII
)
_MOST_BEFORE = 100  # characters that are looked at


@dataclass(frozen=True, slots=True)
class CompiledSql:
    """`names` are in the order of their numbers, twice where a name has two; `words` are the first, in upper case."""

    text: bytes
    names: tuple[str, ...]
    words: tuple[str, ...]
    source: str = field(repr=False)
    # In characters from 0: where a stretch begins in the text, where in the source, whether it is a copy or a number.
    stretches: tuple[tuple[int, int, bool], ...] = field(repr=False)

    @property
    def first_word(self) -> str:
        """What kind of statement it is, SELECT or COMMIT; empty when it begins with no word."""
        return self.words[0] if self.words else ""

    def position_in_source(self, position: int) -> int:
        """Return where a position of PostgreSQL's, in characters from 1, is in what the user wrote."""
        for in_text, in_source, is_copy in reversed(self.stretches):
            if in_text < position:
                return in_source + (position - in_text if is_copy else 1)
        return position

    def missing_name(self, position: int) -> str:
        """Return the name without a value where PostgreSQL found a syntax error (42601); empty when it was another."""
        found = _NAME.match(self.source, max(0, self.position_in_source(position) - 1))
        return found["name"] if found and found["name"] not in self.names else ""


def compile_sql(sql: str, names: frozenset[str]) -> CompiledSql:
    """Replace these names by numbers, the same name by the same; DataError for what can't be sent to PostgreSQL."""
    return _kept(sql, names) if len(sql) <= _LONGEST_KEPT else _compiled(sql, names)


def _compiled(sql: str, names: frozenset[str]) -> CompiledSql:
    if "\0" in sql:
        raise bad_request("sql has a NUL character, which PostgreSQL does not take: remove it")
    numbers: dict[tuple[str, str], int] = {}
    stretches: list[tuple[int, int, bool]] = []
    pieces: list[str] = []
    copied_to = length = 0
    for start, end in _occurrences(sql, names) if names and ":" in sql else ():
        cast = "::text" if _is_null_test(sql, start, end) else ""
        number = f"${numbers.setdefault((sql[start + 1 : end], cast), len(numbers) + 1)}{cast}"
        if start and _OF_IDENTIFIERS.match(sql, start - 1):
            number = f" {number}"  # select:id must not become select$1, which is a name
        pieces += (sql[copied_to:start], number)
        stretches += ((length, copied_to, True), (length + start - copied_to, start, False))
        length += start - copied_to + len(number)
        copied_to = end
    stretches.append((length, copied_to, True))
    pieces.append(sql[copied_to:])
    return CompiledSql(
        _encoded("".join(pieces)), tuple([name for name, _ in numbers]), leading_words(sql), sql, tuple(stretches)
    )


_kept = lru_cache(maxsize=_MOST_KEPT)(_compiled)


def _occurrences(sql: str, names: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Yield where these names stand, colon included."""
    separators = separating_colons(sql, names)
    position = replaced = 0
    native = ""
    while found := _HIDING_OR_NAME.search(sql, position):
        kind = found.lastgroup
        start, position = found.span()
        if kind == "name":
            if start in separators:
                position = start + 1
            elif found["name"] in names:
                replaced += 1
                yield start, position
        elif kind == "comment":
            position = end_of_comment(sql, start)
        elif kind == "native":
            native = found.group()
    if native and replaced:
        raise bad_request(f"sql has both named parameters and {native}: name that one too, :name")


def _is_null_test(sql: str, start: int, end: int) -> bool:
    """Say whether the parameter is all that is tested, so that its type makes no difference."""
    is_tested = _NULL_TEST.match(sql, end) is not None
    return is_tested and _BEFORE_NULL_TEST.search(sql, max(0, start - _MOST_BEFORE), start) is not None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise bad_request(
            f"sql has half of a surrogate pair at character {error.start + 1}, which is no text: remove it"
        ) from None
