"""The bodies of answers, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from emberpool_proxy.data_endpoint.calls import Caller, ExecuteStatement
from emberpool_proxy.data_endpoint.catalog import Ask, Catalog
from emberpool_proxy.data_endpoint.encoders import Wanted
from emberpool_proxy.data_endpoint.formatted import formatted_records
from emberpool_proxy.data_endpoint.metadata import column_metadata
from emberpool_proxy.data_endpoint.results import JsonRows, generated_fields, has_rows, updated_records
from emberpool_proxy.data_endpoint.steps import Outcome
from emberpool_proxy.data_endpoint.types import ColumnType

COMMITTED = b'{"transactionStatus":"Transaction Committed"}'
ROLLED_BACK = b'{"transactionStatus":"Rollback Complete"}'


async def execute_reply(
    catalog: Catalog, caller: Caller, call: ExecuteStatement, outcome: Outcome, ask: Ask, limit_bytes: int
) -> bytes:
    """Return the answer to ExecuteStatement. Raises ResultTooLarge."""
    last = outcome[-1]
    if not has_rows(last):
        return b'{"generatedFields":[],"numberOfRecordsUpdated":%d}' % updated_records(last)
    columns = await catalog.columns(last, caller, ask)
    metadata = b""
    if call.includes_metadata:
        sources = await catalog.sources(last, caller, ask)
        metadata = b'"columnMetadata":' + column_metadata(last, columns, sources) + b","
    if call.as_json:
        records = b'"formattedRecords":' + orjson.dumps(_formatted(outcome, columns, call, limit_bytes))
    else:
        rows = JsonRows(columns, Wanted(call.long_as_text, call.decimal_as_number), limit_bytes)
        for part in outcome:
            rows.add(part)
        records = b'"records":' + rows.json()
    return b"{" + metadata + b'"numberOfRecordsUpdated":0,' + records + b"}"


async def batch_reply(
    catalog: Catalog, caller: Caller, outcomes: Sequence[Outcome], ask: Ask, limit_bytes: int
) -> bytes:
    """Return the answer to BatchExecuteStatement, whose sets have these outcomes. Raises ResultTooLarge."""
    results = []
    for outcome in outcomes:
        fields = b"[]"
        if has_rows(outcome[-1]):
            columns = await catalog.columns(outcome[-1], caller, ask)
            fields = _joined([generated_fields(part, columns, limit_bytes) for part in outcome])
            limit_bytes -= len(fields)
        results.append(b'{"generatedFields":' + fields + b"}")
    return b'{"updateResults":[' + b",".join(results) + b"]}"


def begun(transaction_id: str) -> bytes:
    """Return the answer to BeginTransaction."""
    return orjson.dumps({"transactionId": transaction_id})


def _formatted(outcome: Outcome, columns: Sequence[ColumnType], call: ExecuteStatement, limit_bytes: int) -> str:
    parts = []
    for part in outcome:
        parts.append(formatted_records(part, columns, call, limit_bytes).encode())
        limit_bytes -= len(parts[-1])
    return _joined(parts).decode()


def _joined(arrays: Sequence[bytes]) -> bytes:
    """Return one JSON array of the elements of all."""
    if len(arrays) == 1:
        return arrays[0]
    return b"[" + b",".join([array[1:-1] for array in arrays if len(array) > len(b"[]")]) + b"]"
