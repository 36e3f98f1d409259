"""The documents say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_generated_tables_are_current(generate: ModuleType, page: Path) -> None:
    """Each table of settings in docs/ is what `make docs` would write now."""
    assert generate.page_with_tables(page.read_text()) == page.read_text(), "run `make docs`"


def test_every_setting_is_documented(generate: ModuleType) -> None:
    """Each generated table has its place in a page."""
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for name, table in generate.generated().items():
        assert f"<!-- generated: {name} -->" in text
        assert table in text


def test_links_and_pictures_exist() -> None:
    """No relative link in README, CONTRIBUTING or docs/ is dead."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_tests_named_in_the_design_exist() -> None:
    """Each test that the design's failure table names is there."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", (DOCS / "design.md").read_text()):
        assert f"def {name}(" in tests, name


def test_make_help_lists_every_command_of_the_readme() -> None:
    """Each `make …` that README and CONTRIBUTING name is a target with a help text."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", pages, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets
