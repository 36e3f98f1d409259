"""SCRAM verifiers, against RFC 7677's own example and against what libpq makes."""

from __future__ import annotations

import base64
import hashlib
import hmac

import psycopg
from psycopg import pq

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.scram import RANDOM_SECRET_ITERATIONS, STRETCHED_ITERATIONS, iterations_for, verifier


def test_verifier_accepts_the_proof_of_rfc_7677() -> None:
    """The example conversation of RFC 7677 section 3 verifies against our StoredKey."""
    made = verifier("pencil", salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), iterations=4096)
    stored_key = base64.b64decode(made.split("$")[2].split(":")[0])
    auth_message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(stored_key, auth_message, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key


def test_verifier_has_libpqs_form(postgres: EmbeddedPostgres) -> None:
    """With libpq's own salt and iterations our verifier is libpq's, byte for byte."""
    with psycopg.connect(postgres.conninfo()) as connection:
        theirs = connection.pgconn.encrypt_password(b"a password", b"user", b"scram-sha-256").decode()
    iterations, salt = theirs.split("$")[1].split(":")
    assert verifier("a password", base64.b64decode(salt), int(iterations)) == theirs
    assert pq.version() >= 150000


def test_only_long_secrets_get_few_iterations() -> None:
    """What people choose is stretched; only something as long as a generated secret is not."""
    assert iterations_for("short") == STRETCHED_ITERATIONS
    assert iterations_for("x" * 43) == RANDOM_SECRET_ITERATIONS
