"""What came of a pipeline that has ended: nothing, an error of PostgreSQL's, or that it was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, STATEMENT_TIMEOUT, DataError
from emberpool_proxy.data_endpoint.failures import QUERY_CANCELLED, failed, sqlstate
from emberpool_proxy.data_endpoint.runner import CLIENT_HAS_GONE, TIME_IS_UP, TOO_LARGE
from emberpool_proxy.data_endpoint.session import Session
from emberpool_proxy.data_endpoint.steps import Outcome


def error_of(
    session: Session, outcomes: Sequence[Outcome], why: str, seconds: float, most_bytes: int
) -> PGresult | None:
    """Return PostgreSQL's error, None when all is well.

    Raises DataError when the time was up or the result is too large, CancelledError when the client has gone; a
    statement that was done before it could be stopped has done its work.
    """
    error = failed(outcomes)
    if error is None:
        if session.is_overflowing:
            raise _too_large(most_bytes, "the statement has run")
        return None
    if why and sqlstate(error) == QUERY_CANCELLED:
        if why == CLIENT_HAS_GONE:
            raise asyncio.CancelledError
        if why == TIME_IS_UP:
            raise DataError(STATEMENT_TIMEOUT, f"the statement was stopped after {seconds:g} s: it has changed nothing")
        if why == TOO_LARGE:
            raise _too_large(most_bytes, "the statement was stopped and has changed nothing")
    return error


def _too_large(most_bytes: int, what: str) -> DataError:
    return DataError(
        BAD_REQUEST,
        f"Database returned more than the allowed response size limit ({most_bytes} bytes): ask for fewer rows or "
        f"columns at a time; {what}",
    )
