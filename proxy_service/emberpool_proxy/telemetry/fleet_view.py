"""Words what the tasks of a fleet said, for people and as JSON: `python -m emberpool_proxy fleet`.

The `emberpool` command shows the same words in colour. Standard library only, for a shell in the container.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from emberpool_proxy.telemetry.fleet_look import FleetLook, TaskAnswer, look
from emberpool_proxy.telemetry.status_view import CLEAR_SCREEN, aligned, budget_warnings

COLUMNS = ("task", "state", "slots", "servers", "busy", "clients", "waiting", "missing", "wait")
NAMES = 2  # the first columns are names, the rest are numbers
SILENT = "no answer"
SHORTEST_BAR, LONGEST_BAR = 8, 32
BLOCKS, PLAIN_BLOCKS = ("█", "░"), ("#", "-")  # in use, may be used
TROUBLE = (SILENT, "lost")
NO_WARNING = {"short_by": 0, "claim_conflict": None, "excess": 0}


@dataclass(frozen=True, slots=True)
class Share:
    """A task's part of `whole`, in server connections: what it may use, and what of that it uses."""

    used: int = 0
    granted: int = 0
    whole: int = 1

    def bar(self, width: int, blocks: tuple[str, str] = BLOCKS) -> str:
        """Return it as a bar; the whole is `width` characters. What is there at all is seen."""
        granted = _characters(max(self.granted, self.used), self.whole, width)
        used = min(_characters(self.used, self.whole, width), granted)
        return blocks[0] * used + blocks[1] * (granted - used)


@dataclass(frozen=True, slots=True)
class FleetPicture:
    """A look in words: a row of COLUMNS for each task and its share, one with the sums, then what to know and mend."""

    rows: list[tuple[str, ...]]
    shares: list[Share]
    sums: tuple[str, ...]
    budget: str
    warnings: list[str]


def picture(seen: FleetLook) -> FleetPicture:
    """Word a look."""
    total = sums(seen)
    whole = max(total["budget"], 1)
    names = _short_names(seen)
    documents = [answer.document for answer in seen.answers]
    return FleetPicture(
        rows=[_row(name, answer.document) for name, answer in zip(names, seen.answers, strict=True)],
        shares=[_share(document, whole) for document in documents],
        sums=_sum_row(total),
        budget=_budget_line(total),
        warnings=_warnings(seen, names, total),
    )


def document(seen: FleetLook) -> dict[str, Any]:
    """Return a look as JSON: `sum`, and of each task what it said or the `problem`."""
    return {
        "at": seen.at.isoformat(timespec="milliseconds"),
        "sum": sums(seen),
        "tasks": [_task(answer) for answer in seen.answers],
    }


def sums(seen: FleetLook) -> dict[str, Any]:
    """Return the sums over the tasks that answered. `slots` and `slots_free` are None while no task knows them."""
    documents = [answer.document for answer in seen.answers if answer.document]
    budgets = [said["budget"] for said in documents]
    shared = [budget for budget in budgets if budget["state"] != "alone"]
    silent = len(seen.answers) - len(documents)
    slots = min((budget["slots"] for budget in shared if budget["slots"] is not None), default=None)
    held = sum(budget["slots_held"] for budget in budgets)
    free = None if slots is None else max(slots - held, 0)
    if silent and slots is not None:  # it may hold some
        free = min(budget["slots_free"] for budget in shared if budget["slots_free"] is not None)
    return {
        "tasks": len(seen.answers),
        "silent": silent,
        "is_shared": bool(shared),
        "budget": min(b["budget"] for b in shared) if shared else sum(b["budget"] for b in budgets),
        "granted": sum(budget["floor"] + budget["slots_held"] for budget in budgets),
        "floors": sum(budget["floor"] for budget in budgets),
        "slots": slots,
        "slots_held": held,
        "slots_free": free,
        **{name: sum(b[name] for b in budgets) for name in ("limit", "servers", "busy", "waiting", "missing")},
        "clients": sum(said["clients"]["connected"] for said in documents),
        "longest_wait_seconds": max((budget["longest_wait_seconds"] for budget in budgets), default=0.0),
    }


def text_of(shown: FleetPicture, width: int | None = None, blocks: tuple[str, str] = BLOCKS) -> str:
    """Return a picture as plain text; with a `width` that has room for it each task's share is a bar."""
    lines = aligned([COLUMNS, *shown.rows, shown.sums], NAMES)
    table = len(lines[0])
    room = min((width or 0) - table - 2, LONGEST_BAR)
    if room >= SHORTEST_BAR:
        bars = ["share", *(share.bar(room, blocks) for share in shown.shares), ""]
        lines = [f"{line:<{table}}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True)]
    return "\n".join([*lines, "", shown.budget, *(f"! {warning}" for warning in shown.warnings)])


def show(url: str, as_json: bool = False, watch_seconds: float | None = None) -> None:
    """Print the fleet that the task at `url` belongs to, again and again with `watch_seconds`.

    Raises StatusUnavailable when nobody answers.
    """
    others: tuple[str, ...] = ()
    while True:
        seen = look(url, others)
        others = seen.urls
        if as_json:
            print(json.dumps(document(seen), indent=None if watch_seconds else 2), flush=True)  # noqa: T201 (the output)
        else:
            screen = CLEAR_SCREEN if watch_seconds else ""
            print(screen + text_of(picture(seen), *_terminal()), flush=True)  # noqa: T201 (the output)
        if not watch_seconds:
            return
        time.sleep(watch_seconds)


def _terminal() -> tuple[int | None, tuple[str, str]]:
    """Return the width, None when it is no terminal, and the blocks that it can show."""
    try:
        "".join(BLOCKS).encode(sys.stdout.encoding or "ascii")
        blocks = BLOCKS
    except UnicodeEncodeError:
        blocks = PLAIN_BLOCKS
    return (shutil.get_terminal_size().columns if sys.stdout.isatty() else None), blocks


def _row(name: str, said: dict[str, Any] | None) -> tuple[str, ...]:
    if said is None:
        return (name, SILENT, *[""] * (len(COLUMNS) - 2))
    budget = said["budget"]
    return (
        name,
        "draining" if said["draining"] else budget["state"],
        "" if budget["state"] == "alone" else str(budget["slots_held"]),
        f"{budget['servers']}/{budget['limit']}",
        str(budget["busy"]),
        str(said["clients"]["connected"]),
        str(budget["waiting"]),
        str(budget["missing"]),
        _seconds(budget["longest_wait_seconds"]),
    )


def _sum_row(total: dict[str, Any]) -> tuple[str, ...]:
    slots = f"{total['slots_held']}/{total['slots']}" if total["slots"] is not None else str(total["slots_held"])
    return (
        "sum",
        f"{total['tasks']} task" + "s" * (total["tasks"] != 1),
        slots if total["is_shared"] else "",
        f"{total['servers']}/{total['limit']}",
        *(str(total[name]) for name in ("busy", "clients", "waiting", "missing")),
        _seconds(total["longest_wait_seconds"]),
    )


def _budget_line(total: dict[str, Any]) -> str:
    if not total["is_shared"]:
        return f"no shared budget: {total['servers']} of at most {total['budget']} server connections"
    free = "" if total["slots_free"] is None else f", {total['slots_free']} slots free"
    return (
        f"budget {total['budget']}: {total['servers']} server connections in use, {total['granted']} granted "
        f"(floors {total['floors']} + slots {total['slots_held']}){free}"
    )


def _warnings(seen: FleetLook, names: list[str], total: dict[str, Any]) -> list[str]:
    warnings: list[str] = []
    for name, answer in zip(names, seen.answers, strict=True):
        if answer.document is None:
            warnings.append(f"{name}: {answer.problem}")
        elif answer.document["budget"]["state"] == "lost":
            warnings.append(f"{name} has no control connection: it serves with its floor")
    budgets = [answer.document["budget"] for answer in seen.answers if answer.document]
    # One line each, the worst: the tasks looked at different moments.
    for name, worst in (("short_by", max), ("claim_conflict", min), ("excess", max)):
        seen_by = [budget for budget in budgets if budget[name] is not None]
        if seen_by:
            told = worst(seen_by, key=lambda budget: int(budget[name]))
            warnings += budget_warnings({**NO_WARNING, "slots_promised": told["slots_promised"], name: told[name]})
    counted = max([total["servers"], *(budget["pool_connections"] or 0 for budget in budgets)])
    if total["is_shared"] and counted > total["budget"]:
        warnings.append(f"{counted} server connections are more than the budget of {total['budget']}")
    awake = sum(budget["is_connected"] for budget in budgets)
    unknown = max((budget["tasks"] or 0 for budget in budgets), default=0) - awake - total["silent"]
    if unknown > 0:
        warnings.append(
            f"{unknown} more with a control connection: of another deployment that shares this budget, or just gone"
        )
    return warnings


def _task(answer: TaskAnswer) -> dict[str, Any]:
    said = {name: value for name, value in (answer.document or {}).items() if name != "fleet"}
    return {"url": answer.name, "problem": answer.problem or None, **said}


def _short_names(seen: FleetLook) -> list[str]:
    """Return each task's host; with the port where several have the same host."""
    places = [urlsplit(answer.name) for answer in seen.answers]
    hosts = [place.hostname or place.netloc for place in places]
    return [place.netloc if hosts.count(host) > 1 else host for host, place in zip(hosts, places, strict=True)]


def _share(said: dict[str, Any] | None, whole: int) -> Share:
    if said is None:
        return Share(whole=whole)
    budget = said["budget"]
    return Share(budget["servers"], budget["floor"] + budget["slots_held"], whole)


def _characters(part: int, whole: int, width: int) -> int:
    return min(max(round(part / whole * width), int(part > 0)), width)


def _seconds(value: float) -> str:
    return f"{value:.1f} s"
