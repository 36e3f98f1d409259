"""PgBouncer's own log lines, taken apart, and what of them the agent must know.

Proven with the lines that PgBouncer 1.24 and 1.25 write; they are the same in both. Standard library only: the
supervisor reads the lines. Whose connection a line is about is said by its prefix:

    2026-01-31 12:00:00.123 UTC [42] WARNING C-0x55…: database/user@10.0.0.1:4711 pooler error: …
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

LINE = re.compile(r"\S+ \S+ \S+ \[(?P<process_id>\d+)\] (?P<level>[A-Z]+) (?P<message>.*)", re.DOTALL)
SIDE = re.compile(r"(?P<side>[CS])-(?:0x[0-9a-f]+|\(nil\)): ")
# A name may hold anything, also what looks like this; the address is an IP, `unix(pid)` or `(bad-af)`.
ADDRESS = re.compile(r"@(?P<address>\[[^]\s]*]|[^@\s\[\]]*):(?P<port>\d+) ")
# After these comes text that the client chose.
FREE_TEXT = ("no such user: ", "pooler error: no such database: ", "closing because: no such database: ")
NAMELESS = ("(nodb)", "(nouser)")

ERROR_PREFIX = "pooler error: "
CLOSING = re.compile(r"closing because: (?P<reason>.*) \(age=\d+s\)")
CACHED_ERROR = "server login has been failing, cached error: "
QUOTED_ROLE = re.compile(r'\b(?:user|role) "(?P<name>[^"]*)"')
QUOTED_DATABASE = re.compile(r'\bdatabase "(?P<name>[^"]*)"')


class Side(StrEnum):
    """Whose connection a line is about: functions are clients, the database is the server."""

    CLIENT = "client"
    SERVER = "server"
    NONE = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of PgBouncer's. Names that PgBouncer did not know yet are empty, as is what the line is not about.

    A client that chooses a name in the form of PgBouncer's own prefix can confuse `database`, `user` and `address` of
    its own lines; it cannot forge a line.
    """

    level: str
    message: str
    process_id: int = 0
    side: Side = Side.NONE
    database: str = ""
    user: str = ""
    address: str = ""
    port: int = 0


Cause = Literal["credentials", "not_allowed", "limit", "tls", "protocol"]

# What PgBouncer tells a client that it refuses before or during the login, by the beginning of its words.
REFUSALS: tuple[tuple[str, Cause], ...] = (
    ("SASL authentication failed", "credentials"),
    ("password authentication failed", "credentials"),
    ("certificate authentication failed", "credentials"),
    ("unix socket login rejected", "credentials"),
    ("empty password returned by client", "credentials"),
    ("client selected an invalid SASL authentication mechanism", "credentials"),
    ("no such user", "credentials"),
    ("no authentication method is found", "not_allowed"),
    ("login rejected", "not_allowed"),
    ("no such database", "not_allowed"),
    ("not allowed", "not_allowed"),
    ("SSL required", "not_allowed"),
    ('"trust" authentication failed', "not_allowed"),
    ("database ", "not_allowed"),  # "... does not allow connections", "... is disabled"
    ("no more connections allowed", "limit"),
    ("client connections exceeded", "limit"),
    ("client_login_timeout", "protocol"),
    ("unsupported startup parameter", "protocol"),
    ("unsupported options startup parameter", "protocol"),
    ("bad packet", "protocol"),
    ("no username supplied", "protocol"),
    ("invalid startup packet layout", "protocol"),
    ("username too long", "protocol"),
    ("password too long", "protocol"),
    ("old V2 protocol not supported", "protocol"),
    ("client re-sent startup pkt", "protocol"),
    ("client password pkt before startup packet", "protocol"),
)
# What the database answers when a password, token or role no longer holds: asking for credentials again may mend it.
REFUSED_CREDENTIALS = re.compile(
    r'(?:\S+ authentication failed for user "|role ".*" (?:does not exist|is not permitted to log in))'
)
UNREACHABLE = (
    "connect failed",
    "connect timeout",
    "server DNS lookup failed",
    "server refused SSL",
    "TLS startup failed",
    "bad sslreq answer",
    "received unencrypted data after SSL response",
    "sslreq processing failed",
    "startup pkt failed",
)
LOST = ("server conn crashed?", "bad pkt header", "unknown pkt from server")
WAITED_IN_VAIN = ("query_wait_timeout", "client_login_timeout (server down)")
TLS_ERROR = "TLS handshake error: "  # PgBouncer does not say whose
# Only the database's certificate is verified.
SERVER_TLS_ERROR = re.compile(r"certificate verify failed|not present in server certificate|certificate has expired")
SAID_GOODBYE = "from server when not linked"  # the database ended an idle connection and said so


@dataclass(frozen=True, slots=True)
class ServerLoginFailed:
    """The database refused the pool's login. PgBouncer says whose only in the database's own words, if at all."""

    database: str
    user: str
    address: str
    reason: str

    @property
    def is_about_credentials(self) -> bool:
        """Whether another password might do; not so for "too many clients" or "starting up"."""
        return REFUSED_CREDENTIALS.match(self.reason) is not None


@dataclass(frozen=True, slots=True)
class ServerUnreachable:
    """No connection to the database came about: its name, its port or TLS."""

    database: str
    user: str
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerConnectionLost:
    """A connection to the database ended by itself. One loss may be told by several lines."""

    database: str
    user: str
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClientLoginFailed:
    """A client was refused; `cause` is for counting, `reason` is what the client was told."""

    database: str
    user: str
    address: str
    reason: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class ClientGaveUpWaiting:
    """A client got no server connection in time and was told so: the pool is too small or the database is away."""

    database: str
    user: str
    address: str
    reason: str


Event = ServerLoginFailed | ServerUnreachable | ServerConnectionLost | ClientLoginFailed | ClientGaveUpWaiting


def parse(line: str) -> LogLine:
    """Take one line apart. What is not in PgBouncer's form is the message of a LOG line: nothing is lost."""
    match = LINE.fullmatch(line)
    if not match:
        return LogLine("LOG", line)
    level, rest, process_id = match["level"], match["message"], int(match["process_id"])
    side = SIDE.match(rest)
    connection = _connection(rest[side.end() :]) if side else None
    if not (side and connection):
        return LogLine(level, rest, process_id)
    names, address, port, message = connection
    database, _, user = names.partition("/")
    return LogLine(
        level=level,
        message=message,
        process_id=process_id,
        side=Side.CLIENT if side["side"] == "C" else Side.SERVER,
        database="" if database in NAMELESS else database,
        user="" if user in NAMELESS else user,
        address=address,
        port=port,
    )


def event_of(line: LogLine | str) -> Event | None:
    """Return what the line means for the agent, or None."""
    line = parse(line) if isinstance(line, str) else line
    if line.side is Side.CLIENT:
        return _client_event(line)
    if line.side is Side.SERVER:
        return _server_event(line)
    return _nameless_event(line.message)


def _connection(rest: str) -> tuple[str, str, int, str] | None:
    """Split `names@address:port message`; None when there is no address."""
    found = None
    for found in ADDRESS.finditer(rest):
        if rest.startswith(FREE_TEXT, found.end()):
            break
    if found is None:
        return None
    return rest[: found.start()], found["address"].strip("[]"), int(found["port"]), rest[found.end() :]


def _client_event(line: LogLine) -> Event | None:
    # Its twin "closing because: ..." is there or not, depending on log_disconnections: this one always is.
    if not line.message.startswith(ERROR_PREFIX):
        return None
    reason = line.message.removeprefix(ERROR_PREFIX)
    about = (line.database, line.user, line.address, reason)
    if reason in WAITED_IN_VAIN:
        return ClientGaveUpWaiting(*about)
    if reason.startswith(LOST):
        return ServerConnectionLost(line.database, "", "", reason)
    if reason.startswith(CACHED_ERROR):
        cached = reason.removeprefix(CACHED_ERROR).removesuffix(" (server_login_retry)")
        return ServerUnreachable(line.database, "", "", cached) if cached.startswith(UNREACHABLE) else None
    cause = _refusal_cause(reason)
    return ClientLoginFailed(*about, cause) if cause else None


def _refusal_cause(reason: str) -> Cause | None:
    # The database's own words, passed on to clients that waited for its login, are told by a line of their own.
    if REFUSED_CREDENTIALS.match(reason) or QUOTED_DATABASE.match(reason):
        return None
    return next((cause for beginning, cause in REFUSALS if reason.startswith(beginning)), None)


def _server_event(line: LogLine) -> Event | None:
    about = (line.database, line.user, line.address)
    if line.message.endswith(SAID_GOODBYE):
        return ServerConnectionLost(*about, "ended by the database")
    closing = CLOSING.fullmatch(line.message)
    if not closing:
        return None
    if closing["reason"].startswith(UNREACHABLE):
        return ServerUnreachable(*about, closing["reason"])
    return ServerConnectionLost(*about, closing["reason"]) if closing["reason"].startswith(LOST) else None


def _nameless_event(message: str) -> Event | None:
    if message.startswith("server login failed"):
        reason = message.removeprefix("server login failed").removeprefix(": ")
        reason = reason.removeprefix("FATAL ").removeprefix("ERROR ")
        user, database = QUOTED_ROLE.search(reason), QUOTED_DATABASE.search(reason)
        return ServerLoginFailed(database["name"] if database else "", user["name"] if user else "", "", reason)
    if message.startswith("DNS lookup failed: "):
        host = message.removeprefix("DNS lookup failed: ").rpartition(": ")[0]
        return ServerUnreachable("", "", host, "server DNS lookup failed")
    if message.startswith(TLS_ERROR):
        reason = message.removeprefix(TLS_ERROR)
        if SERVER_TLS_ERROR.search(reason):
            return ServerUnreachable("", "", "", message)
        return ClientLoginFailed("", "", "", message, "tls")
    return None
