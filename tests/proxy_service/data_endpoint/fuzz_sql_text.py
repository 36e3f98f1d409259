"""Coverage-guided search for text that we read otherwise than PostgreSQL: python fuzz_sql_text.py -runs=1000000."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["emberpool_proxy.data_endpoint"]):
    import emberpool_proxy.data_endpoint.sql_text  # noqa: F401 - to be instrumented before the oracle imports it

from scanned_by_postgres import PIECES, disagreement


def test_one_input(data: bytes) -> None:
    sql = "".join(PIECES[byte % len(PIECES)] for byte in data)
    difference = disagreement(sql)
    if difference:
        raise AssertionError(f"{sql!r}: {difference}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
