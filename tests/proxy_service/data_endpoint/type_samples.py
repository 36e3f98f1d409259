"""A value of each of PostgreSQL's types, as SQL."""

from __future__ import annotations

# Literals, cast to the type in the test.
LITERALS = {
    "bool": "true",
    "bytea": r"\xdeadbeef00",
    "char": "x",
    "name": "a name",
    "int8": "-9223372036854775808",
    "int2": "-32768",
    "int4": "2147483647",
    "int2vector": "1 2 3",
    "oidvector": "1 2 3",
    "regproc": "pg_catalog.now",
    "text": 'a "text" with \\, {braces}, and Öl',
    "oid": "4294967295",
    "tid": "(1,2)",
    "xid": "4000000000",
    "cid": "1",
    "json": '{ "a" : [1, "x y"] }',
    "xml": "<a>b c</a>",
    "point": "(1,2.5)",
    "lseg": "[(1,2),(3,4)]",
    "path": "[(1,2),(3,4)]",
    "box": "(3,4),(1,2)",
    "polygon": "((1,2),(3,4),(5,6))",
    "line": "{1,2,3}",
    "float4": "1.5",
    "float8": "-2.25",
    "circle": "<(1,2),3>",
    "money": "12.34",
    "macaddr": "08:00:2b:01:02:03",
    "inet": "192.168.0.1/24",
    "cidr": "10.0.0.0/8",
    "macaddr8": "08:00:2b:01:02:03:04:05",
    "aclitem": "postgres=r/postgres",
    "bpchar": "padded  ",
    "varchar": "varying",
    "date": "2026-11-22",
    "time": "12:34:56.789012",
    "timestamp": "2026-11-22 12:34:56.789012",
    "timestamptz": "2026-11-22 12:34:56.789012+02",
    "interval": "1 year -2 days 03:04:05.678",
    "timetz": "12:34:56+02",
    "bit": "1",
    "varbit": "10101",
    "numeric": "-12345678901234567890.123456789",
    "refcursor": "a cursor",
    "regprocedure": "pg_catalog.now()",
    "regoper": "pg_catalog.||/",
    "regoperator": "pg_catalog.+(integer,integer)",
    "regclass": "pg_catalog.pg_class",
    "regtype": "timestamp with time zone",
    "regrole": "postgres",
    "regnamespace": "pg_catalog",
    "regcollation": '"C"',
    "regconfig": "english",
    "regdictionary": "english_stem",
    "regdatabase": "postgres",
    "uuid": "c0ffee00-0000-4000-8000-000000000000",
    "pg_lsn": "16/B374D848",
    "tsvector": "'a':1 'fat cat':2",
    "tsquery": "'a' & 'b c'",
    "jsonb": '{"a": [1, "x y"], "b": {"c": null}}',
    "jsonpath": '$."a"[*] ? (@ > 1)',
    "txid_snapshot": "10:20:10,14",
    "int4range": "[1,10)",
    "numrange": "(1.5,2.5]",
    "tsrange": '["2026-01-01 00:00:00","2026-01-02 00:00:00")',
    "tstzrange": '["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")',
    "daterange": "[2026-01-01,2026-02-01)",
    "int8range": "[1,)",
    "int4multirange": "{[1,3),[5,7)}",
    "nummultirange": "{[1.5,2.5]}",
    "tsmultirange": '{["2026-01-01 00:00:00","2026-01-02 00:00:00")}',
    "tstzmultirange": '{["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")}',
    "datemultirange": "{[2026-01-01,2026-02-01)}",
    "int8multirange": "{}",
    "pg_snapshot": "10:20:10,14",
    "xid8": "18446744073709551615",
}
# Types that take no literal: an expression, or None where a user can have no value but NULL.
EXPRESSIONS = {
    "pg_node_tree": "(SELECT ev_action FROM pg_rewrite LIMIT 1)",
    "record": "ROW(1, 'a b', NULL)",
    "cstring": "textout('a text')",
    "void": "pg_advisory_unlock_all()",
    "anyarray": "(SELECT most_common_vals FROM pg_stats WHERE most_common_vals IS NOT NULL LIMIT 1)",
    "gtsvector": None,
    "pg_ndistinct": None,
    "pg_dependencies": None,
    "pg_mcv_list": None,
    "pg_brin_bloom_summary": None,
    "pg_brin_minmax_multi_summary": None,
}


def literal(text: str) -> str:
    """SQL's literal of a text."""
    return "'" + text.replace("'", "''") + "'"


def value_of(name: str) -> str | None:
    """An expression of the type, None where there is none. KeyError: the type is new, give it a sample."""
    if name in EXPRESSIONS:
        return EXPRESSIONS[name]
    return f'{literal(LITERALS[name])}::pg_catalog."{name}"'
