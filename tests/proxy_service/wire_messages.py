"""Messages of PostgreSQL's protocol as a careless or hostile client sends them, from a seeded generator."""

from __future__ import annotations

import random
import struct

PROTOCOL_3 = 196608
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSS_REQUEST = struct.pack("!II", 8, 80877104)
CANCEL_CODE = 80877102
LENGTHS = (0, 1, 3, 4, 5, 8, 100, 10_000, 2**31 - 1, 2**31, 2**32 - 1)
TYPES = b"QPBDECHSFXdcfpvRZ\x00\xff"


def startup(*pairs: tuple[str, str], protocol: int = PROTOCOL_3) -> bytes:
    """A startup packet; `pairs` may repeat names."""
    body = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in pairs)
    return framed(b"", struct.pack("!I", protocol) + body + b"\0")


def framed(kind: bytes, body: bytes, length: int | None = None) -> bytes:
    """A message of that kind; `length` is what it says of itself in place of the truth."""
    return kind + struct.pack("!I", len(body) + 4 if length is None else length) + body


def login_message(seed: int, user: str, database: str) -> bytes:
    """What may come before a login: startup packets that are wrong, cut off, oversized, repeated or not at all."""
    chance = random.Random(seed)
    good = startup(("user", user), ("database", database))
    made = [
        chance.randbytes(chance.choice((1, 7, 8, 9, 64, 5000))),
        good[: chance.randrange(1, len(good))],
        struct.pack("!I", chance.choice(LENGTHS)) + good[4:],
        startup(("user", user), protocol=chance.choice((0, 1 << 16, 2 << 16, 3 << 16 | 99, 2**32 - 1))),
        startup(("user", user), ("user", "other"), ("database", database), ("database", "")),
        startup(("user", "x" * chance.choice((64, 2000, 20_000))), ("database", database)),
        startup(("user", user), ("database", database), ("options", "-c " + "x" * chance.randrange(900)))
        + framed(b"Q", b"select 1\0"),
        startup(("user", user), ("database", database), ("replication", "true")),
        startup(("database", database)),
        startup(),
        framed(b"", struct.pack("!III", CANCEL_CODE, chance.randrange(2**32), chance.randrange(2**32))),
        framed(b"", struct.pack("!I", CANCEL_CODE) + chance.randbytes(chance.randrange(9))),
        good + framed(b"p", chance.choice((b"SCRAM-SHA-256\0", b"MD5\0", chance.randbytes(3000)))),
        good + framed(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", chance.choice(LENGTHS)) + b"n,,n=,r=" + b"x" * 40),
        good + good,
        good + framed(bytes([chance.choice(TYPES)]), b"", chance.choice(LENGTHS)),
        GSS_REQUEST + GSS_REQUEST + good,
        SSL_REQUEST + good,
    ]
    return made[seed % len(made)]


def session_message(seed: int) -> bytes:
    """What may come after a login: a few messages in no sensible order, some of them broken."""
    chance = random.Random(seed)
    return b"".join(_message(chance) for _ in range(chance.randrange(1, 6)))


def _message(chance: random.Random) -> bytes:
    kind = bytes([chance.choice(TYPES)])
    name = chance.choice((b"", b"a", b"PGBOUNCER_1", b"x" * 300)) + b"\0"
    return chance.choice(
        (
            framed(kind, chance.randbytes(chance.choice((0, 1, 5, 40, 5000)))),
            framed(kind, b"x", chance.choice(LENGTHS)),
            framed(b"Q", chance.choice((b"select 1\0", b"select 1", b"\0", b"begin\0", b"select 1;" * 500 + b"\0"))),
            framed(b"P", name + b"select $1::int\0" + struct.pack("!H", chance.choice((0, 1, 9, 65535)))),
            framed(b"B", b"\0" + name + struct.pack("!HHH", 0, 0, 0)),
            framed(chance.choice((b"C", b"D")), chance.choice((b"S", b"P", b"?", b"")) + name),
            framed(b"E", name + struct.pack("!I", 0)) + framed(b"S", b""),
            framed(b"S", b"") * chance.choice((1, 50)),
            framed(b"d", b"1\n") + framed(b"c", b""),
            startup(("user", "again")),
            framed(b"X", b"") + framed(b"Q", b"select 1\0"),
        )
    )
