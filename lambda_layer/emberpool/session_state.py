"""Which statements leave something behind in the session, where transaction pooling hands it to somebody else.

A look at the text, not a parser: it may miss a statement inside a function or behind a comment, and only warns.
"""

from __future__ import annotations

import functools
import re

# PgBouncer tracks these for each client and sets them again on the next server connection.
TRACKED = (
    r"(?:SESSION\s+)?(?:application_name|TimeZone|TIME\s+ZONE|client_encoding|DateStyle|standard_conforming_strings)\b"
)
HAZARDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("SET", rf"^\s*SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b|{TRACKED})"),
        ("set_config", r"\bset_config\s*\([^)]*,\s*(?:false|'f')"),
        ("LISTEN", r"^\s*LISTEN\b"),
        ("PREPARE", r"^\s*PREPARE\s+(?!TRANSACTION\b)"),
        ("session advisory lock", r"\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\("),
        ("WITH HOLD", r"^\s*DECLARE\b.*\bWITH\s+HOLD\b"),
        (
            "temporary table",
            r"^\s*CREATE\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\s+TABLE\b(?!.*\bON\s+COMMIT\s+DROP\b)",
        ),
    )
)
LONGEST_LOOKED_AT = 2_000  # such statements are short; a bulk insert's text is not worth a search


@functools.lru_cache(maxsize=512)
def hazard_of(statement: str) -> str | None:
    """Return the kind of session state that `statement` leaves behind, None for most statements."""
    text = statement[:LONGEST_LOOKED_AT]
    return next((kind for kind, pattern in HAZARDS if pattern.search(text)), None)
