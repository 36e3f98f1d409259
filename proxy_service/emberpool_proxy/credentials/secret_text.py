"""Reads a login out of a secret's text, in RDS's form: {"username": …, "password": …}.

Its errors name the secret and the keys that were seen, never a value.
"""

from __future__ import annotations

import json

from emberpool_proxy.credentials.snapshot import Login
from emberpool_proxy.errors import SecretUnreadable
from emberpool_proxy.settings import LONGEST_SERVER_PASSWORD_BYTES, PLAIN_NAME, RESERVED_NAMES

SHAPE_CODE = "Shape"


def login_in(text: str, arn: str, default_user: str = "") -> Login:
    """Return the login in a secret. Raises SecretUnreadable when it has another shape."""
    found = _login_or_problem(text, default_user)
    if isinstance(found, Login):
        return found
    # Raised here, where no local variable holds the parsed secret: a traceback would show it.
    raise SecretUnreadable(
        f'the secret {arn} {found}; write {{"username": ..., "password": ...}} into it, as RDS does',
        arn=arn,
        code=SHAPE_CODE,
    )


def _login_or_problem(text: str, default_user: str) -> Login | str:
    if not text.strip():
        return "is empty"
    try:
        secret = json.loads(text)
    except ValueError:
        return "does not hold JSON"
    if not isinstance(secret, dict):
        return f"holds a JSON {type(secret).__name__} in place of an object"
    keys = ", ".join(sorted(map(str, secret))) or "none"
    user, password = secret.get("username") or default_user, secret.get("password")
    if not isinstance(user, str) or not user:
        return f"has no text under the key 'username' (its keys: {keys})"
    if not isinstance(password, str) or not password:
        return f"has no text under the key 'password' (its keys: {keys})"
    return problem_of(Login(user, password)) or Login(user, password)


def problem_of(login: Login) -> str | None:
    """Return why PgBouncer's files cannot carry a login, or None."""
    if not PLAIN_NAME.fullmatch(login.user):
        return f"has a user name that does not match {PLAIN_NAME.pattern}"
    if login.user in RESERVED_NAMES:
        return f"has the user name {login.user}, which is the admin console's"
    if not (login.password.isascii() and login.password.isprintable()):
        return "has a password with other characters than printable ASCII"
    length = len(login.password)
    if length > LONGEST_SERVER_PASSWORD_BYTES:
        return f"has a password of {length} bytes; PgBouncer sends at most {LONGEST_SERVER_PASSWORD_BYTES}"
    return None
