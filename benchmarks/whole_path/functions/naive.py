"""A connection of its own for each invocation: how it is mostly written."""

from __future__ import annotations

import os

import psycopg
from benchmarks.whole_path.functions.work import visit


def handler(event: dict[str, int], context: object) -> str:
    del context
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        return visit(connection, event["page"])
