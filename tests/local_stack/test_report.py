"""The page needs nothing but itself and says what was measured; the terminal says the same."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from emberpool_local.burst.results import ConnectionSample, DemoResult, Machine, WayResult
from emberpool_local.report.page import PageNotWritable, page, terminal_table, write_page
from emberpool_local.report.wording import COLUMNS, failed_share_text, headline

TOO_MANY = "FATAL: sorry, too many clients already"
LOADING = {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href", "formaction"}


def way(name: str, succeeded: int, failures: dict[str, int], handler: str = "handler:handler") -> WayResult:
    return WayResult(
        name=name,
        title={"warm": "warm only"}.get(name, name),
        how=f"how {name} connects",
        handler=handler,
        environments=80,
        invocations=succeeded + sum(failures.values()),
        succeeded=succeeded,
        failures=failures,
        latencies_ms=[20.0 + n for n in range(succeeded)],
        wall_seconds=4.0,
        init_p50_ms=None,
        samples=[ConnectionSample(n / 50, min(n, 30)) for n in range(100)],
        most_server_connections=30,
        connections_opened=succeeded + 7,
        max_connections=40,
    )


@pytest.fixture
def result() -> DemoResult:
    ways = [
        way("naive", 300, {TOO_MANY: 690, "invocation timed out": 10}),
        way("warm", 500, {TOO_MANY: 500}),
        way("emberpool", 1000, {}),
    ]
    machine = Machine("a processor", 2, 3.5, "a system", {"PostgreSQL": "18.6", "PgBouncer": "1.24.1"})
    return DemoResult(ways, machine, "emberpool demo", "2026-01-02T03:04:05+00:00", 40, 20)


class Resources(HTMLParser):
    """Collects the tags, what the page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self._inside: str | None = None
        self.styles = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in LOADING and tag != "a"]
        self._inside = tag if tag in {"script", "style"} else None

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 (the parser's signature)
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        elif self._inside is None:
            self.text.append(data)


def parsed(html: str) -> Resources:
    parser = Resources()
    parser.feed(html)
    return parser


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(parsed(html).text))


def test_page_loads_nothing(result: DemoResult) -> None:
    """No element and no style asks the network for anything; plotly.js is there once."""
    html = page(result)
    resources = parsed(html)
    assert resources.loaded == ["data:,"]
    assert "@import" not in resources.styles
    assert "url(" not in resources.styles
    assert html.count("plotly.js v") == 1
    assert not {"iframe", "img", "object", "embed"} & set(resources.tags)


def test_page_says_what_was_measured(result: DemoResult) -> None:
    """Headline, every figure, every error, the machine, the versions and what next are in the page's text."""
    text = words(page(result))
    assert "700 of 1,000 invocations failed when each opened its own connection. With emberpool, none did." in text
    for shown in (
        *COLUMNS,
        TOO_MANY,
        "invocation timed out",
        "70 % failed",
        "a processor, 2 cores",
        "PgBouncer 1.24.1",
        "nearest rank",
        "npx cdk deploy --all",
        "@warm_connection",
        "2026-01-02 at 03:04 UTC",
    ):
        assert shown in text
    for name in ("connections", "latency", "outcomes"):
        assert f'id="plot-{name}"' in page(result)


def test_broken_promises_stand_on_the_page(result: DemoResult) -> None:
    """A demo that did not show what it should does not look like one that did."""
    assert "did not show what it should" not in words(page(result))
    text = words(page(result, ["the naive way did not fail"]))
    assert "did not show what it should" in text
    assert "the naive way did not fail" in text


def test_texts_of_users_are_escaped(result: DemoResult) -> None:
    """An error text or a handler's name cannot become part of the page's code."""
    attack = "</script><script>alert(1)</script>"
    html = page(replace(result, ways=[way("naive", 1, {attack: 1}), way("emberpool", 1, {}, handler=attack)]))
    assert "<script>alert" not in html
    assert parsed(html).tags.count("script") == parsed(page(result)).tags.count("script")


def test_page_of_one_way(result: DemoResult) -> None:
    """A burst at one's own function has a page with its own headline, also when nothing succeeded."""
    alone = replace(result, ways=[way("emberpool", 0, {"KeyError: 'x'": 80}, handler="app:handler")])
    text = words(page(alone))
    assert "80 invocations of app:handler in 80 environments: 80 failed" in text
    assert "KeyError: 'x'" in text
    assert "100 % failed" in text


def test_page_that_cannot_be_written_is_one_clear_error(result: DemoResult, tmp_path: Path) -> None:
    """A folder that does not exist is named; a file that can be written holds the page."""
    with pytest.raises(PageNotWritable, match="cannot be written"):
        write_page(result, tmp_path / "missing" / "page.html")
    write_page(result, tmp_path / "page.html")
    assert "none did" in (tmp_path / "page.html").read_text()


def test_terminal_table_fits_and_says_the_same(result: DemoResult) -> None:
    """In 80 columns every way, figure and error of the page is there, uncut."""
    output = StringIO()
    Console(file=output, width=80).print(terminal_table(result))
    lines = output.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    text = output.getvalue()
    for shown in ("naive", "warm only", "emberpool", *COLUMNS, TOO_MANY, "invocation timed out"):
        assert shown in text
    assert re.search(r"failed\s+│\s+700\s+│\s+500\s+│\s+0 ", text)
    assert "…" not in text


@pytest.mark.parametrize(
    ("failed", "text"), [(0, "0 %"), (1, "under 1 %"), (250, "25 %"), (999, "over 99 %"), (1000, "100 %")]
)
def test_share_is_never_rounded_to_none_or_all(failed: int, text: str) -> None:
    """0 % means that none failed and 100 % that all did."""
    failures = {TOO_MANY: failed} if failed else {}
    assert failed_share_text(way("naive", 1000 - failed, failures)) == text


def test_headline_tells_when_naive_did_not_fail(result: DemoResult) -> None:
    """The headline follows the figures, not the hope."""
    lucky = replace(result, ways=[way("naive", 10, {}), way("emberpool", 8, {TOO_MANY: 2})])
    assert headline(lucky).startswith("None of 10 invocations failed")
    assert headline(lucky).endswith("With emberpool, 2 did.")
