"""PostgreSQL's lexical rules, as far as they tell which colons begin a parameter's name.

After scan.l of PostgreSQL with standard_conforming_strings on. What is not terminated goes on to the end of the
text: PostgreSQL says what is wrong with it. Each pattern consumes what it has looked at, so that all is linear in time.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

IDENTIFIER_START = r"A-Za-z_\x80-\U0010ffff"
IDENTIFIER_PART = rf"{IDENTIFIER_START}0-9$"
# Drizzle's names are numbers. Before a quote it is none: in [1:e'x'] the e belongs to the constant.
NAME = rf":(?P<name>[{IDENTIFIER_START}0-9][{IDENTIFIER_PART}]*)(?![{IDENTIFIER_PART}'])"
SPACE = r"[ \t\n\r\f\v]"
LINE_COMMENT = r"--[^\n\r]*"

# A constant goes on after a line break; one that began with E keeps its escapes there.
_ESCAPED = r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z)"
_GOES_ON = rf"[ \t\f\v]*(?:{LINE_COMMENT})?[\n\r](?:{SPACE}|{LINE_COMMENT}[\n\r])*'"
ESCAPED_CONSTANT = rf"'(?<=(?<![{IDENTIFIER_PART}])[eE]'){_ESCAPED}(?:{_GOES_ON}{_ESCAPED})*"
# A doubled quote is as good as the next constant: nothing stands between the two.
CONSTANT = r"'[^']*(?:'|\Z)"
QUOTED_IDENTIFIER = r'"[^"]*(?:"|\Z)'
DOLLAR_QUOTED = (
    rf"\$(?<![{IDENTIFIER_PART}]\$)(?P<tag>(?:[{IDENTIFIER_START}][{IDENTIFIER_START}0-9]*)?)\$"
    r"[^$]*(?:\$(?!(?P=tag)\$)[^$]*)*(?:\$(?P=tag)\$|\Z)"
)
WORD = rf"[{IDENTIFIER_START}][{IDENTIFIER_PART}]*"
BLOCK_COMMENT = r"/\*(?P<comment>)"  # only its beginning: they nest
QUOTED = f"{ESCAPED_CONSTANT}|{CONSTANT}|{QUOTED_IDENTIFIER}|{DOLLAR_QUOTED}"

_COMMENT_EDGE = re.compile(r"/\*|\*/")
_LEADING = re.compile(rf"{SPACE}+|{LINE_COMMENT}|{BLOCK_COMMENT}|(?P<word>{WORD})|(?P<mark>[;(])")
_TOKEN = re.compile(
    rf"(?:(?P<word>{WORD})|(?P<open>[\[(])|(?P<close>[\])])|(?P<operand>{QUOTED}|\$?[0-9]+)"
    rf"|{LINE_COMMENT}|{BLOCK_COMMENT}|{NAME}|(?P<other>::|:=|[^ \t\n\r\f\v])|){SPACE}*",
    re.DOTALL,
)
_MAY_HAVE_SEPARATORS = re.compile(r"\[|json_object", re.IGNORECASE)
_WITH_KEYS = frozenset({"JSON_OBJECT", "JSON_OBJECTAGG"})
# Before an operand, directly inside of the brackets; a column of such a name would touch its colon.
_EXPECT_OPERAND = frozenset(
    {"AND", "ASYMMETRIC", "BETWEEN", "CASE", "ELSE", "ESCAPE", "FROM", "ILIKE", "LIKE", "NOT", "OR", "SYMMETRIC"}
    | {"THEN", "TO", "VALUE", "WHEN", "ZONE"}
)
MOST_WORDS = 4  # ROLLBACK WORK TO SAVEPOINT


def end_of_comment(sql: str, start: int) -> int:
    """Return the end of the block comment that begins at `start`, with those inside of it."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def leading_words(sql: str) -> tuple[str, ...]:
    """Return the first words in upper case, without the comments and empty statements that PostgreSQL skips."""
    words: list[str] = []
    position = 0
    while len(words) < MOST_WORDS and (found := _LEADING.match(sql, position)):
        kind = found.lastgroup
        position = end_of_comment(sql, position) if kind == "comment" else found.end()
        if kind == "word":
            words.append(found.group().upper())
        elif kind == "mark" and words:
            break
    return tuple(words)


def separating_colons(sql: str, names: AbstractSet[str]) -> AbstractSet[int]:
    """Return where a colon before a name stands between two operands: `a[1:n]`, `JSON_OBJECT('k':n)`.

    A parameter is an operand itself and can't follow one. Elsewhere nothing but a parameter begins with a colon.
    """
    return _separating_colons(sql, names) if _MAY_HAVE_SEPARATORS.search(sql) else frozenset()


def _separating_colons(sql: str, names: AbstractSet[str]) -> AbstractSet[int]:
    separators = set()
    separates = [False]  # whether colons do, for each bracket that is open
    follows_operand = False
    word, word_end = "", 0  # when it is the last token
    position = 0
    while position < len(sql) and (found := _TOKEN.match(sql, position)):
        kind = found.lastgroup
        start, position = found.span()
        if kind == "name":
            is_after_keyword = word in _EXPECT_OPERAND and word_end < start
            if separates[-1] and follows_operand and not is_after_keyword:
                separators.add(start)
            follows_operand = start not in separators and found["name"] in names
            if not follows_operand:
                position = start + 1
            word = ""
        elif kind == "comment":
            position = end_of_comment(sql, start)
        elif kind:
            if kind == "open":
                separates.append(found.group(kind) == "[" or word in _WITH_KEYS)
            elif kind == "close" and len(separates) > 1:
                separates.pop()
            word, word_end = (found.group(kind).upper(), found.end(kind)) if kind == "word" else ("", 0)
            follows_operand = kind not in ("open", "other")
    return separators
