"""PostgreSQL's own types: how a value of each goes to the client, and what JDBC calls the type.

The OIDs below 10,000 are the same in every PostgreSQL. Those of users' types, and of what initdb makes, are asked for
in catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Kind(Enum):
    """How a value goes to the client. TEXT, as PostgreSQL writes it, is right for every type."""

    TEXT = "text"
    LONG = "long"
    DOUBLE = "double"
    BOOLEAN = "boolean"
    BLOB = "blob"
    DECIMAL = "decimal"
    JSON = "json"
    MOMENT = "moment"  # a timestamptz: in UTC, the offset left out
    ARRAY = "array"


class Jdbc:
    """Codes of java.sql.Types, which is what the service calls the type of a column."""

    BIT, SMALLINT, INTEGER, BIGINT = -7, 5, 4, -5
    REAL, DOUBLE, NUMERIC = 7, 8, 2
    CHAR, VARCHAR, BINARY = 1, 12, -2
    DATE, TIME, TIMESTAMP = 91, 92, 93
    OTHER, STRUCT, ARRAY, SQLXML, REF_CURSOR = 1111, 2002, 2003, 2009, 2012


@dataclass(
    frozen=True, slots=True, eq=False
)  # eq=False: compared and hashed by identity, there are few and they live long
class ColumnType:
    """The type of a column. `element` and `delimiter` are of arrays."""

    oid: int
    name: str
    kind: Kind = Kind.TEXT
    jdbc: int = Jdbc.OTHER
    element: ColumnType | None = None
    delimiter: str = ","


def array_of(element: ColumnType, oid: int, name: str, delimiter: str = ",") -> ColumnType:
    """Return the type of arrays of `element`, of any depth."""
    return ColumnType(oid, name, Kind.ARRAY, Jdbc.ARRAY, element, delimiter)


# Name, OID, OID of the array (0: there is none).
_NUMBERS = (
    (Kind.LONG, Jdbc.SMALLINT, "int2 21 1005"),
    (Kind.LONG, Jdbc.INTEGER, "int4 23 1007"),
    (Kind.LONG, Jdbc.BIGINT, "int8 20 1016, oid 26 1028"),
    (Kind.DOUBLE, Jdbc.REAL, "float4 700 1021"),
    (Kind.DOUBLE, Jdbc.DOUBLE, "float8 701 1022"),
    (Kind.DECIMAL, Jdbc.NUMERIC, "numeric 1700 1231"),
    (Kind.TEXT, Jdbc.DOUBLE, "money 790 791"),  # the text carries the currency
)
_TEXTS = (
    (Kind.TEXT, Jdbc.CHAR, "char 18 1002, bpchar 1042 1014"),
    (Kind.TEXT, Jdbc.VARCHAR, "text 25 1009, varchar 1043 1015, name 19 1003"),
    (Kind.TEXT, Jdbc.DATE, "date 1082 1182"),
    (Kind.TEXT, Jdbc.TIME, "time 1083 1183, timetz 1266 1270"),
    (Kind.TEXT, Jdbc.TIMESTAMP, "timestamp 1114 1115"),
    (Kind.MOMENT, Jdbc.TIMESTAMP, "timestamptz 1184 1185"),
    (Kind.JSON, Jdbc.OTHER, "json 114 199, jsonb 3802 3807"),
    (Kind.TEXT, Jdbc.SQLXML, "xml 142 143"),
    (Kind.TEXT, Jdbc.REF_CURSOR, "refcursor 1790 2201"),
)
_OTHERS = (
    (Kind.BOOLEAN, Jdbc.BIT, "bool 16 1000"),
    (Kind.TEXT, Jdbc.BIT, "bit 1560 1561"),
    (Kind.BLOB, Jdbc.BINARY, "bytea 17 1001"),
    (Kind.TEXT, Jdbc.OTHER, "uuid 2950 2951, interval 1186 1187, varbit 1562 1563, inet 869 1041, cidr 650 651"),
    (Kind.TEXT, Jdbc.OTHER, "macaddr 829 1040, macaddr8 774 775, point 600 1017, lseg 601 1018, path 602 1019"),
    (Kind.TEXT, Jdbc.OTHER, "box 603 1020, polygon 604 1027, line 628 629, circle 718 719"),
    (Kind.TEXT, Jdbc.OTHER, "int4range 3904 3905, numrange 3906 3907, tsrange 3908 3909, tstzrange 3910 3911"),
    (Kind.TEXT, Jdbc.OTHER, "daterange 3912 3913, int8range 3926 3927, int4multirange 4451 6150"),
    (Kind.TEXT, Jdbc.OTHER, "nummultirange 4532 6151, tsmultirange 4533 6152, tstzmultirange 4534 6153"),
    (Kind.TEXT, Jdbc.OTHER, "datemultirange 4535 6155, int8multirange 4536 6157"),
    (Kind.TEXT, Jdbc.OTHER, "tsvector 3614 3643, tsquery 3615 3645, gtsvector 3642 3644, jsonpath 4072 4073"),
    (Kind.TEXT, Jdbc.OTHER, "regproc 24 1008, regprocedure 2202 2207, regoper 2203 2208, regoperator 2204 2209"),
    (Kind.TEXT, Jdbc.OTHER, "regclass 2205 2210, regtype 2206 2211, regconfig 3734 3735, regdictionary 3769 3770"),
    (Kind.TEXT, Jdbc.OTHER, "regnamespace 4089 4090, regrole 4096 4097, regcollation 4191 4192"),
    (Kind.TEXT, Jdbc.OTHER, "tid 27 1010, xid 28 1011, cid 29 1012, xid8 5069 271, pg_lsn 3220 3221"),
    (Kind.TEXT, Jdbc.OTHER, "txid_snapshot 2970 2949, pg_snapshot 5038 5039, aclitem 1033 1034"),
    (Kind.TEXT, Jdbc.OTHER, "int2vector 22 1006, oidvector 30 1013, pg_node_tree 194 0"),
    (Kind.TEXT, Jdbc.OTHER, "pg_ndistinct 3361 0, pg_dependencies 3402 0, pg_mcv_list 5017 0"),
    (Kind.TEXT, Jdbc.OTHER, "unknown 705 0, void 2278 0, cstring 2275 1263, anyarray 2277 0"),
    (Kind.TEXT, Jdbc.STRUCT, "record 2249 2287"),
)
_SEMICOLONS = frozenset({"box"})  # their own text has commas


def _table() -> dict[int, ColumnType]:
    types: dict[int, ColumnType] = {}
    for kind, jdbc, listed in (*_NUMBERS, *_TEXTS, *_OTHERS):
        for name, oid, array_oid in (line.split() for line in listed.split(",")):
            element = types[int(oid)] = ColumnType(int(oid), name, kind, jdbc)
            if int(array_oid):
                delimiter = ";" if name in _SEMICOLONS else ","
                types[int(array_oid)] = array_of(element, int(array_oid), f"_{name}", delimiter)
    return types


BUILT_IN: Mapping[int, ColumnType] = MappingProxyType(_table())

# Where the catalog could not be asked: the value is still right, as text.
UNKNOWN = BUILT_IN[705]
