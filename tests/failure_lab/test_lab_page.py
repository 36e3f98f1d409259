"""The lab's page and picture hide nothing: no failure, no connection above the budget, no violated oracle."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from tests.failure_lab.made_up_run import BUDGET, FAULTS, ORACLES, made_up_run
from tests.local_stack.test_report import parsed, words

from emberpool_local.lab import curves
from emberpool_local.lab.command import to_json
from emberpool_local.lab.page import allowed_text, is_broken, lab_page, write_lab_page
from emberpool_local.lab.picture import lab_picture, write_lab_picture
from emberpool_local.lab.recorded import RecordInvalid, read_result
from emberpool_local.lab.results import Bucket, Connections
from emberpool_local.lab.runner import Finished
from emberpool_local.report.document import PageNotWritable

LARGEST_PICTURE_BYTES = 100_000


def test_page_loads_nothing() -> None:
    """No element and no style asks the network for anything; plotly.js is there once."""
    html = lab_page(made_up_run())
    resources = parsed(html)
    assert resources.loaded == ["data:,"]
    assert "@import" not in resources.styles
    assert "url(" not in resources.styles
    assert html.count("plotly.js v") == 1


def test_page_says_what_happened() -> None:
    """Every oracle's sentence, every fault with its promise, seed, command, machine and notes are in the text."""
    result = made_up_run()
    text = words(lab_page(result))
    for _, sentence in ORACLES:
        assert sentence in text
    for _, title, promise, *_ in FAULTS:
        assert title in text
        assert promise in text
    for shown in (
        "8 faults under load",
        "every oracle holds",
        result.command,
        f"{result.succeeded:,} invocations succeeded",
        "a processor, 2 cores",
        "PgBouncer 1.24.1",
        "t4 is registered with the balancer",
        "2026-01-02 at 03:04 UTC",
    ):
        assert shown in text
    assert "violated" not in text


def test_violated_oracle_comes_first() -> None:
    """A violation is in the headline, before every oracle that holds, with its details."""
    text = words(lab_page(made_up_run(violated=("failures", "no orphans"))))
    assert "2 of 8 oracles found a violation" in text
    first = min(text.index(sentence) for name, sentence in ORACLES if name in {"failures", "no orphans"})
    assert first < min(text.index(sentence) for name, sentence in ORACLES if name not in {"failures", "no orphans"})
    assert "at 12.3 s: failures" in text


def test_texts_are_escaped() -> None:
    """A fault's subject, a note or an oracle's detail cannot become part of the page's or the picture's code."""
    attack = "</script><script>alert(1)</script>"
    result = made_up_run(violated=("budget",))
    faults = [replace(fault, title=attack, subject=attack, promise=attack) for fault in result.faults]
    verdicts = [replace(verdict, sentence=attack, details=[attack]) for verdict in result.verdicts]
    looks = [Connections(1.0, {attack: 3}, {}, {attack: 1})]
    attacked = replace(result, faults=faults, verdicts=verdicts, notes=[(1.0, attack)], connections=looks)
    assert "<script>alert" not in lab_page(attacked)
    picture = lab_picture(attacked)
    assert "<script" not in picture
    ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    ("may_fail_seconds", "most", "text"),
    [(None, 0, "none"), (None, None, "none"), (2.0, 0, "none"), (2.0, None, "those under way"), (2.0, 3, "3")],
)
def test_allowed_failures_in_words(may_fail_seconds: float | None, most: int | None, text: str) -> None:
    """A promise of nothing is "none", whatever else stands in the record."""
    fault = replace(made_up_run().faults[0], may_fail_until=may_fail_seconds, most_failures=most)
    assert allowed_text(fault) == text


def test_fault_that_failed_more_than_promised_is_marked() -> None:
    """An unknown outcome counts as a failure; those under way have no number to exceed."""
    fault = replace(made_up_run().faults[0], may_fail_until=3.0, most_failures=2, failed=1, unknown=1)
    assert not is_broken(fault)
    assert is_broken(replace(fault, unknown=2))
    assert is_broken(replace(fault, may_fail_until=None, failed=0))
    assert not is_broken(replace(fault, most_failures=None, failed=99))


def test_no_failure_and_no_second_is_lost_by_merging() -> None:
    """Of a long run fewer points are drawn: their counts are all there, and so is the slowest invocation."""
    buckets = [Bucket(number / 10, 3, number % 50 == 0, number % 70 == 0, float(number)) for number in range(10_007)]
    few = curves.merged(buckets, 1000)
    assert len(few) <= 1000
    for count in ("succeeded", "failed", "unknown"):
        assert sum(getattr(bucket, count) for bucket in few) == sum(getattr(bucket, count) for bucket in buckets)
    assert max(bucket.slowest_ms for bucket in few) == 10_006.0
    assert curves.bucket_seconds(few) == pytest.approx(1.1)


def test_single_look_above_the_budget_is_drawn() -> None:
    """One hundredth of a second above the budget in a long run is seen in the picture of it."""
    result = made_up_run(seconds=120)
    above = Connections(61.23, {"t1": BUDGET, "t2": 7}, {"t1": 1}, {})
    looks = sorted([*result.connections, above], key=lambda look: look.at)
    layers = curves.connection_layers(replace(result, connections=looks), 400)
    assert len(layers.at) <= 400
    assert max(layers.totals) == BUDGET + 8
    assert layers.at[layers.totals.index(BUDGET + 8)] == 61.23


def test_layers_have_a_value_at_each_moment() -> None:
    """A task that is gone has none left; the sum of the layers is what the database had."""
    result = made_up_run(seconds=30)
    layers = curves.connection_layers(result, 10**9)
    assert len(layers.at) == len(result.connections)
    sums = [sum(look.pool.values()) + sum(look.agents.values()) for look in result.connections]
    assert layers.totals == sums
    assert len(layers.values) > result.tasks  # some came while it ran


def test_numbers_of_faults_do_not_lie_on_each_other() -> None:
    """Faults close together have their numbers in different lanes; those far from each other in the first."""
    result = made_up_run(seconds=60)
    assert set(curves.lanes(result.faults, 0, 60)) == {0}
    crowded = [replace(fault, begun=10 + at / 10, ended=10 + at / 10) for at, fault in enumerate(result.faults)]
    lanes = curves.lanes(crowded, 0, 60)
    assert len(set(lanes)) == len(lanes)


def test_picture_is_small_and_always_the_same() -> None:
    """A long run's picture is well-formed, loads and runs nothing, and is what a repository can hold."""
    result = made_up_run(seconds=400, faults=40)
    picture = lab_picture(result)
    assert picture == lab_picture(result)
    assert len(picture.encode()) < LARGEST_PICTURE_BYTES
    root = ElementTree.fromstring(picture)
    tags = {element.tag.split("}")[1] for element in root.iter()}
    assert not tags & {"script", "image", "use", "foreignObject", "a"}
    assert not re.search(r"url\(|@import|href", picture)
    assert "prefers-color-scheme: dark" in picture


def test_picture_shows_budget_faults_and_outcome() -> None:
    """Headline, budget and every fault are texts of the picture; a violation turns the headline red."""
    texts = " ".join(ElementTree.fromstring(lab_picture(made_up_run())).itertext())
    assert "every oracle holds" in texts
    assert f"budget: {BUDGET}" in texts
    for _, title, *_ in FAULTS:
        assert title in texts
    assert 'class="head violated"' not in lab_picture(made_up_run())
    assert 'class="head violated"' in lab_picture(made_up_run(violated=("budget",)))


def test_picture_keeps_to_its_frame() -> None:
    """Nothing is drawn beyond the edges, the connections above the budget included."""
    result = made_up_run(seconds=40)
    looks = [*result.connections, Connections(39.999, {"t1": 3 * BUDGET}, {}, {})]
    root = ElementTree.fromstring(lab_picture(replace(result, connections=looks)))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            if element.get(name):
                assert 0 <= float(element.get(name, 0)) <= most
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
        assert min(numbers) >= 0
        assert max(numbers) <= width


def test_run_without_anything_is_drawn() -> None:
    """A run that ended before its first fault has a page and a picture, too."""
    empty = replace(
        made_up_run(seconds=1, faults=0), buckets=[], connections=[], notes=[], succeeded=0, invocations=0, seconds=0.5
    )
    assert "0 faults under load, 0 invocations" in words(lab_page(empty))
    ElementTree.fromstring(lab_picture(empty))


def test_run_is_read_again_from_its_json(tmp_path: Path) -> None:
    """What the command wrote as JSON is drawn alike; another file is one clear error."""
    result = made_up_run(seconds=8, faults=2, violated=("budget",))
    without_invocations = SimpleNamespace(invocations=[])
    (tmp_path / "run.json").write_text(to_json(Finished(result, without_invocations, ())))
    again = read_result(tmp_path / "run.json")
    assert lab_picture(again) == lab_picture(result)
    assert lab_page(again) == lab_page(result)
    for text in ("", "{}", "[]", '{"seed": 1}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(RecordInvalid, match="holds no run of the failure lab"):
            read_result(tmp_path / "other.json")
    with pytest.raises(RecordInvalid, match="cannot be read"):
        read_result(tmp_path / "missing.json")


def test_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """A folder that does not exist is named; files that can be written hold page and picture."""
    result = made_up_run(seconds=5, faults=1)
    for write in (write_lab_page, write_lab_picture):
        with pytest.raises(PageNotWritable, match="cannot be written"):
            write(result, tmp_path / "missing" / "file")
        write(result, tmp_path / "file")
        assert "every oracle holds" in (tmp_path / "file").read_text()
