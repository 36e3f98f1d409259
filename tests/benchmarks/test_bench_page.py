"""The benchmarks' page needs nothing but itself, hides no goal that was missed, and survives JSON."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import __main__ as command
from benchmarks.lines import Line
from benchmarks.page import bench_page
from benchmarks.parts import PARTS, Part
from benchmarks.plots import COLOURS, Plot, Series, colours, draw, wrapped
from benchmarks.section import Section, sections_from, sections_json
from rich.console import Console
from tests.local_stack.test_report import parsed, words

ROOT = Path(__file__).resolve().parents[2]
LINES = Plot(
    "Transactions",
    "lines",
    "clients",
    "1/s",
    [
        Series("direct", [1, 10, 1000], [4000.0, 9000.0, 3000.0], [3900.0, 8000.0, 2500.0], [4100.0, 9500.0, 3100.0]),
        Series("emberpool", [1, 10, 1000], [3000.0, 8000.0, 8100.0]),
    ],
    log_x=True,
    log_y=True,
    note="Higher is better.",
)
BARS = Plot("Storm", "bars", "", "s", [Series("last row", ["direct", "bare PgBouncer", "emberpool"], [9.0, 3.0, 2.0])])
SECTION = Section(
    "Overhead",
    "What it costs.\nAt least 0.97 is wanted.",
    [Line("transactions/s against bare", "ratio", [0.98, 0.99, 1.0], 3, at_least=0.97), Line("p50", "ms", [1.5], 1)],
    [LINES, BARS],
    "Medians of three blocks.",
    "a processor, 2 cores",
)
MISSED = replace(SECTION, title="Storms", lines=[Line("logins failed", "", [0.0, 3.0, 4.0], 0, at_most=0)])


def test_page_loads_nothing() -> None:
    """No element and no style asks the network for anything; plotly.js is there once."""
    html = bench_page([SECTION, MISSED])
    resources = parsed(html)
    assert resources.loaded == ["data:,"]
    assert "url(" not in resources.styles
    assert html.count("plotly.js v") == 1


def test_page_says_what_was_measured() -> None:
    """Title, claim, every line with goal, median and spread, plots, method, machine and command are in the text."""
    text = words(bench_page([SECTION], command="make bench-proxy", measured_at="2026-01-02T03:04:05+00:00"))
    for shown in (
        "1 of 1 goals are met",
        "Overhead",
        "What it costs.",
        "At least 0.97 is wanted.",
        "at least 0.97",
        "0.990",
        "0.980 to 1.000",
        "1.5",
        "Higher is better.",
        "Medians of three blocks.",
        "a processor, 2 cores",
        "make bench-proxy",
        "2026-01-02 at 03:04 UTC",
    ):
        assert shown in text
    assert "Missed" not in text


def test_missed_goal_stands_on_top() -> None:
    """Nobody has to look for what did not go well."""
    text = words(bench_page([SECTION, MISSED]))
    assert "1 of 2 goals are met." in text
    missed = text.index("Storms: logins failed: 3 , the goal is at most 0")
    assert missed < text.index("What it costs.")


def test_machines_that_differ_are_named_at_their_sections() -> None:
    """Results of two machines on one page are not taken for one machine's."""
    other = replace(MISSED, machine="another processor")
    assert words(bench_page([SECTION, MISSED])).count("a processor, 2 cores") == 1
    text = words(bench_page([SECTION, other]))
    assert text.count("a processor, 2 cores") == 2
    assert text.count("another processor") == 2


def test_texts_are_escaped() -> None:
    """A name cannot become part of the page's code."""
    attack = "</script><script>alert(1)</script>"
    plot = replace(BARS, title=attack, y_title=attack, series=[Series(attack, [attack], [1.0])])
    html = bench_page([replace(SECTION, title=attack, claim=attack, method=attack, plots=[plot])])
    assert "<script>alert" not in html


def test_sections_survive_json() -> None:
    """What is read again is what was written, and is drawn alike."""
    document = json.loads(json.dumps(sections_json([SECTION, MISSED])))
    again = sections_from(document)
    assert sections_json(again) == sections_json([SECTION, MISSED])
    assert bench_page(again, measured_at="2026-01-02T03:04:05+00:00") == bench_page(
        [SECTION, MISSED], measured_at="2026-01-02T03:04:05+00:00"
    )


def test_a_way_has_one_colour_everywhere() -> None:
    """emberpool, direct and PgBouncer look the same in every plot, and no two series of one plot alike."""
    assert colours(["emberpool, TLS", "direct"]) == [COLOURS["emberpool"], COLOURS["direct"]]
    assert colours(["bare PgBouncer"]) == [COLOURS["PgBouncer"]]
    many = [f"way {number}" for number in range(8)]
    assert len(set(colours([*many, "emberpool"]))) == 9


def figure(html: str) -> dict[str, list[dict[str, object]]]:
    """The data that a fragment hands to plotly."""
    data, _ = json.JSONDecoder().raw_decode(html[re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*', html).end() :])
    return {"data": data}


def test_spread_is_drawn_about_the_median() -> None:
    """The error bars end at the least and the greatest; a series without them has none."""
    direct, ours = figure(draw(LINES, "lines"))["data"]
    assert direct["error_y"]["array"] == [100.0, 500.0, 100.0]
    assert direct["error_y"]["arrayminus"] == [100.0, 1000.0, 500.0]
    assert "error_y" not in ours


def test_long_names_lie_down() -> None:
    """Bars with names that would not fit below them lie, with the names broken where they have spaces."""
    name = "psycopg_pool, with the check that people add to it"
    (bars,) = figure(draw(replace(BARS, series=[Series("x", [name, "raw"], [1.0, 2.0])]), "bars"))["data"]
    assert bars["orientation"] == "h"
    assert bars["x"] == [1.0, 2.0]
    assert bars["y"][0].replace("<br>", " ") == name
    assert all(len(line) <= 32 for line in wrapped(name).split("<br>"))


def test_series_of_unequal_lengths_is_refused() -> None:
    """A point without its value is an error that names the series, and so is half a spread."""
    with pytest.raises(ValueError, match="series direct: 1 values in y for 2 in x"):
        Series("direct", [1, 2], [1.0])
    with pytest.raises(ValueError, match="low and high belong together"):
        Series("direct", [1], [1.0], low=[0.5])


def test_run_of_a_part_writes_both_files(tmp_path: Path) -> None:
    """`python -m benchmarks` writes JSON and page of the parts, and draws the same page from the JSON again."""
    output, page, again = tmp_path / "b.json", tmp_path / "b.html", tmp_path / "again.html"
    run = [sys.executable, "-m", "benchmarks", "--only", "cost"]
    done = subprocess.run(
        [*run, "--output", output, "--page", page], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "every goal is met" in done.stdout
    redraw = subprocess.run(
        [*run, "--redraw", output, "--page", again], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert redraw.returncode == 0, redraw.stderr
    assert again.read_text() == page.read_text()
    assert "RDS Proxy, provisioned" in words(page.read_text())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def test_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured, the page has them, and the exit code tells."""
    monkeypatch.setitem(PARTS, "cost", PARTS["cost"])
    monkeypatch.setitem(PARTS, "data", Part("benchmarks.no_such_part", ()))
    page = tmp_path / "b.html"
    assert run(monkeypatch, "--only", "data", "--only", "cost", "--page", page, "--output", tmp_path / "b.json") == 1
    assert "failed: data" in capsys.readouterr().out
    assert "RDS Proxy, provisioned" in words(page.read_text())


@pytest.mark.parametrize("text", ["", "{}", '{"parts": {"cost": {}}}', "[1]"])
def test_wrong_file_to_redraw_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """The file is named with the next step, without a stack trace."""
    wrong = tmp_path / "wrong.json"
    wrong.write_text(text)
    assert re.fullmatch(
        rf"error: {wrong} holds no results of `make bench`: .*\n next: .*",
        str(run(monkeypatch, "--redraw", wrong, "--page", tmp_path / "b.html")),
    )


def test_page_that_cannot_be_written_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path and the next step, and no stack trace."""
    missing = tmp_path / "missing" / "b.html"
    said = run(monkeypatch, "--only", "cost", "--page", missing, "--output", tmp_path / "b.json")
    assert str(said).startswith(f"error: {missing} cannot be written")


def test_every_part_takes_its_short_form_and_has_a_make_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make bench --quick` would not end in the usage of a part, and each part can be run alone."""
    makefile = (ROOT / "Makefile").read_text()
    for name, part in PARTS.items():
        assert f"\nbench-{name}: dev ## " in makefile
        assert f"-m {part.module} $(ARGS)" in makefile
        outputs = ("--output", str(tmp_path / "a.json"), "--page", str(tmp_path / "a.html"))
        monkeypatch.setattr(sys, "argv", [name, *part.quick, *outputs])
        options = importlib.import_module(f"{part.module}.__main__")._options()
        assert (options.output.name, options.page.name) == ("a.json", "a.html")


@pytest.mark.parametrize(
    ("is_quick", "failed", "exit_code"), [(False, [], 1), (True, [], 0), (True, ["data"], 1), (False, ["data"], 1)]
)
def test_short_run_fails_by_its_parts_only(is_quick: bool, failed: list[str], exit_code: int) -> None:
    """The missed goal is told either way."""
    console = Console(record=True, width=200)
    assert command.say_outcome(console, [SECTION, MISSED], failed, is_quick) == exit_code
    said = console.export_text()
    assert "missed: Storms: logins failed: the goal is at most 0" in said
    assert ("failed: data" in said) is bool(failed)
