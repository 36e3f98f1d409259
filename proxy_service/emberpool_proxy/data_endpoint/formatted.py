"""formatRecordsAs=JSON: the records as the text of one JSON array of objects, keys are the columns' labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.calls import ExecuteStatement
from emberpool_proxy.data_endpoint.encoders import Wanted
from emberpool_proxy.data_endpoint.errors import bad_request
from emberpool_proxy.data_endpoint.results import JsonRows
from emberpool_proxy.data_endpoint.types import ColumnType


def formatted_records(
    result: PGresult, columns: Sequence[ColumnType], options: ExecuteStatement, limit_bytes: int
) -> str:
    """Return the answer's `formattedRecords`.

    Raises ResultTooLarge, and DataError when two columns have one label: the service allows no such keys.
    """
    labels = column_labels(result)
    _check_unique(labels)
    wanted = Wanted(options.long_as_text, options.decimal_as_number, plain=True)
    rows = JsonRows(
        columns, wanted, limit_bytes, items=lambda rows: [dict(zip(labels, row, strict=True)) for row in rows]
    )
    rows.add(result)
    return rows.json().decode()


def column_labels(result: PGresult) -> list[str]:
    """Return the columns' names in the result."""
    return [(result.fname(column) or b"").decode("utf-8", "replace") for column in range(result.nfields)]


def _check_unique(labels: Sequence[str]) -> None:
    if len(set(labels)) == len(labels):
        return
    label, times = Counter(labels).most_common(1)[0]
    raise bad_request(
        f'formatRecordsAs JSON needs a different label for each column, "{label}" is that of {times}: '
        "rename them in the statement with AS"
    )
