"""Asks a running proxy for its status and words it for people: `python -m emberpool_proxy status`.

The `emberpool` command shows the same words in colour. Standard library only, for a shell in the container.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from emberpool_proxy.errors import ProxyError
from emberpool_proxy.settings import HEALTH_PORT

DEFAULT_URL = f"http://127.0.0.1:{HEALTH_PORT}"
STATUS_PATH = "/status"
ANSWER_SECONDS = 3.0
LONGEST_DOCUMENT_BYTES = 10_000_000
CLEAR_SCREEN = "\x1b[2J\x1b[H"
COLUMNS = (
    "#",
    "database",
    "user",
    "clients",
    "idle",
    "waiting",
    "servers",
    "idle",
    "login",
    "wait",
    "tx/s",
    "tx ms",
)
# Parts that have words of their own; what else is in the document is shown as it is.
WORDED = {
    "task",
    "ready",
    "reason",
    "draining",
    "database",
    "limits",
    "clients",
    "budget",
    "fleet",
    "pgbouncer",
    "restarts",
    "processes",
}
NAMES = 3  # the first columns are names, the rest are numbers
# An HTTP proxy that the environment names must not be asked: the proxy is on this machine or near it.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StatusUnavailable(ProxyError):  # noqa: N818 (named by what is the matter, as all errors of emberpool)
    """No proxy answers there: name the right --url or start the proxy."""


@dataclass(frozen=True, slots=True)
class StatusView:
    """A status in words: facts by name, one row of COLUMNS for each pool (# is the process), whether it is ready."""

    facts: list[tuple[str, str]]
    rows: list[tuple[str, ...]]
    is_ready: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One answer and when it came (monotonic seconds): two of them make a rate."""

    document: dict[str, Any]
    at: float


def fetch(url: str) -> Look:
    """Ask the proxy whose health endpoint is `url` (`http://host:port`). Raises StatusUnavailable."""
    if not url.startswith(("http://", "https://")):
        raise StatusUnavailable(f"the proxy's address must begin with http:// or https://, got {url!r}")
    try:
        with _DIRECT.open(url.rstrip("/") + STATUS_PATH, timeout=ANSWER_SECONDS) as answer:
            document = json.loads(answer.read(LONGEST_DOCUMENT_BYTES))
    except urllib.error.HTTPError as error:
        raise StatusUnavailable(f"{url} answers {error.code} to {STATUS_PATH}: it is no proxy of emberpool") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise StatusUnavailable(f"no proxy answers at {url}: {reason}; start it or name another with --url") from error
    except ValueError as error:
        raise StatusUnavailable(f"what {url} answers is not the status of a proxy") from error
    if not isinstance(document, dict) or "processes" not in document:
        raise StatusUnavailable(f"what {url} answers is not the status of a proxy")
    return Look(document, time.monotonic())


def view(look: Look, before: Look | None = None) -> StatusView:
    """Word a status; rates are of the time since `before`, else the average that PgBouncer keeps."""
    document = look.document
    rows = [_row(process, pool, look, before) for process in document["processes"] for pool in process["pools"]]
    return StatusView(_facts(document), rows, bool(document["ready"]))


def text_of(shown: StatusView) -> str:
    """Return a view as aligned plain text."""
    widest = max(len(name) for name, _ in shown.facts)
    lines = [f"{name:<{widest}}  {value}" for name, value in shown.facts]
    if shown.rows:
        lines += ["", *aligned([COLUMNS, *shown.rows], NAMES)]
    return "\n".join(lines)


def aligned(rows: list[tuple[str, ...]], names: int) -> list[str]:
    """Return rows as lines of text: the first `names` columns to the left, the others, numbers, to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def budget_warnings(budget: dict[str, Any]) -> list[str]:
    """Return what is wrong with the budget that a task describes, each with what to do."""
    warnings = []
    if short_by := budget["short_by"]:
        warnings.append(
            f"the database has room for {short_by} connections fewer than promised: raise its max_connections or lower "
            "max_server_connections"
        )
    if (claim := budget["claim_conflict"]) is not None:
        warnings.append(
            f"another deployment with this budget's name promises {claim} slots and this one "
            f"{budget['slots_promised']}: the smaller number counts; give both the same settings, or one another "
            "budget_name"
        )
    if excess := budget["excess"]:
        warnings.append(
            f"{excess} server connections more than the tasks may have: of a task that is gone, or of a program with "
            "the pool's role"
        )
    return warnings


def show(url: str, as_json: bool = False, watch_seconds: float | None = None) -> None:
    """Print the status of the proxy at `url`, again and again with `watch_seconds`. Raises StatusUnavailable."""
    before: Look | None = None
    while True:
        look = fetch(url)
        if as_json:
            print(json.dumps(look.document, indent=None if watch_seconds else 2), flush=True)  # noqa: T201 (the output)
        else:
            screen = CLEAR_SCREEN if watch_seconds else ""
            print(screen + text_of(view(look, before)), flush=True)  # noqa: T201 (the output)
        if not watch_seconds:
            return
        before = look
        time.sleep(watch_seconds)


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    database, limits, restarts = document["database"], document["limits"], document["restarts"]
    pools = [pool for process in document["processes"] for pool in process["pools"]]
    clients = sum(sum(pool["clients"].values()) for pool in pools)
    servers = sum(sum(pool["servers"].values()) for pool in pools)
    budget = document.get("budget")  # a proxy of an earlier version has none
    may_have = budget["floor"] + budget["slots_held"] if budget else limits["max_server_connections"]
    return [
        ("proxy", f"{document['task']}: {'ready' if document['ready'] else 'not ready: ' + document['reason']}"),
        (
            "database",
            f"{database['name']} on {database['host']}:{database['port']}: {database['state']}"
            + (", asleep" if database["asleep"] else ""),
        ),
        ("clients", f"{clients} of at most {limits['max_client_connections']}"),
        ("servers", f"{servers} of at most {may_have}"),
        *(("budget", line) for line in (_budget_lines(budget) if budget else ())),
        *_pgbouncer(document.get("pgbouncer")),  # a proxy of an earlier version tells none
        ("restarts", f"pgbouncer {restarts['pgbouncer']}, agent {restarts['agent']}"),
        *((name, _in_words(part)) for name, part in document.items() if name not in WORDED),
    ]


def _pgbouncer(installed: dict[str, Any] | None) -> list[tuple[str, str]]:
    if installed is None:
        return []
    lines = [installed["package"] or installed["version"], installed["warning"]]
    return [("pgbouncer", line) for line in lines if line]


def _budget_lines(budget: dict[str, Any]) -> list[str]:
    floor, held = budget["floor"], budget["slots_held"]
    match budget["state"]:
        case "alone":
            return []
        case "asleep":
            words = f"asleep, nobody works: it holds no slot of {budget['slots_promised']}, and no control connection"
        case "lost":
            words = f"no control connection: it serves with its floor of {floor}"
        case _:
            words = f"{floor + held} of {budget['budget']}: floor {floor} + {held} slots"
            if budget["slots"] is not None:
                words += f"; {budget['slots_free']} of {budget['slots']} slots free, {budget['tasks']} tasks"
            if budget["missing"]:
                words += f"; could use {budget['missing']} more"
    return [words, *budget_warnings(budget)]


def _row(process: dict[str, Any], pool: dict[str, Any], look: Look, before: Look | None) -> tuple[str, ...]:
    clients, servers = pool["clients"], pool["servers"]
    totals = _totals(look.document, process["process"], pool["database"])
    rate = float(totals.get("transactions_per_second", 0))
    if before:
        earlier = _totals(before.document, process["process"], pool["database"])
        grown = totals.get("transactions", 0) - earlier.get("transactions", 0)
        rate = max(grown, 0) / max(look.at - before.at, 0.001)
    numbers = (
        clients["active"],
        clients["idle"],
        clients["waiting"],
        *(servers[s] for s in ("active", "idle", "login")),
    )
    return (
        str(process["process"]),
        pool["database"],
        pool["user"],
        *map(str, numbers),
        f"{pool['longest_wait_seconds']:.1f} s",
        f"{rate:.0f}",
        f"{totals.get('average_transaction_ms', 0):.1f}",
    )


def _totals(document: dict[str, Any], process: int, database: str) -> dict[str, Any]:
    for shown in document["processes"]:
        if shown["process"] == process:
            return next((row for row in shown["databases"] if row["database"] == database), {})
    return {}


def _in_words(part: Any) -> str:
    if isinstance(part, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in part.items())
    if isinstance(part, list):
        return "; ".join(_in_words(item) for item in part) or "none"
    return "none" if part is None else str(part)
