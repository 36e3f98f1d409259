"""`MODULE:HANDLER`: what is understood, and what is said when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emberpool_local.errors import HandlerInvalid
from emberpool_local.lambda_runtime import HandlerReference, parse_handler_reference
from emberpool_local.lambda_runtime.handler_reference import runtime_handler

SOURCE = """
import os
from functools import partial as made
try:
    import fast as engine
except ImportError:
    engine = None
if os.environ.get("X"):
    def in_a_branch(event, context): ...
else:
    other, in_a_tuple = print, print
def handler(event, context): ...
handle_orders = made(handler)
async def later(event, context): ...
typed: object = handler
raise SystemExit("this module must not be imported by us")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a module, a package and a broken module."""
    (tmp_path / "app.py").write_text(SOURCE)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("from shop.orders import *")
    (tmp_path / "shop" / "orders.py").write_text("def create(event, context): ...")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "fn.py").write_text("def __getattr__(name): ...")
    (tmp_path / "broken.py").write_text("x = 1\ndef handler(:\n")
    (tmp_path / "not-a-name.py").write_text("def handler(event, context): ...")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "code_folder", "handler"),
    [
        ("app:handler", ".", "app:handler"),
        (" app:handler ", ".", "app:handler"),
        ("app:handle_orders", ".", "app:handle_orders"),
        ("app:in_a_branch", ".", "app:in_a_branch"),
        ("app:in_a_tuple", ".", "app:in_a_tuple"),
        ("app:engine", ".", "app:engine"),
        ("app:typed", ".", "app:typed"),
        ("shop.orders:create", ".", "shop.orders:create"),
        ("shop:whatever_the_star_brings", ".", "shop:whatever_the_star_brings"),
        ("plain.fn:made_on_demand", ".", "plain.fn:made_on_demand"),
        ("app.py:handler", ".", "app:handler"),
        ("./plain/fn.py:handler", "plain", "fn:handler"),
        ("shop/orders.py:create", ".", "shop.orders:create"),
        ("shop/__init__.py:x", ".", "shop:x"),
    ],
)
def test_reference_is_found_without_being_imported(
    folder: Path, reference: str, code_folder: str, handler: str
) -> None:
    """Modules, packages and files are found, with the folder that goes onto sys.path; nothing is imported."""
    before = set(sys.modules)
    found = parse_handler_reference(reference, folder)
    assert found.code_folder == (folder / code_folder).resolve()
    assert found.handler == handler
    assert not {"app", "shop", "fn", "plain"} & (set(sys.modules) - before)


def test_absolute_path_and_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path needs no folder; a module is looked up in the current one by default."""
    expected = HandlerReference(folder.resolve(), "app", "handler")
    assert parse_handler_reference(f"{folder}/app.py:handler", Path("/")) == expected
    monkeypatch.chdir(folder)
    assert parse_handler_reference("app:handler") == expected


@pytest.mark.parametrize(
    ("reference", "problem", "next_step"),
    [
        ("", "'' is not a handler", "write MODULE:HANDLER"),
        ("app", "'app' is not a handler", "write MODULE:HANDLER"),
        ("app:", "'app:' is not a handler", "write MODULE:HANDLER"),
        (":handler", "':handler' is not a handler", "write MODULE:HANDLER"),
        ("app:my handler", "is not a handler", "write MODULE:HANDLER"),
        ("app:Class.method", "is not a handler", "write MODULE:HANDLER"),
        ("..app:handler", "is not a handler", "write MODULE:HANDLER"),
        ("app.handler", "'app.handler' is not a handler", "app:handler"),
        ("src/app.py", "'src/app.py' is not a handler", "src/app.py:handler"),
        ("appp:handler", "module appp, which is not in", "did you mean app?"),
        ("shop.order:create", "module shop.order, which is not in", "did you mean shop.orders?"),
        ("zzz.zzz:create", "module zzz.zzz, which is not in", "run the command in the folder"),
        ("aps.py:handler", "does not exist", "did you mean app.py?"),
        ("nowhere/app.py:handler", "does not exist", "write MODULE:HANDLER"),
        ("app:handle_order", "names handle_order", "did you mean handle_orders"),
        ("shop.orders:zzz", "names zzz", "there is create"),
        ("app:later", "is an async function", "plain function"),
        ("broken:handler", "line 2 is not Python", "mend the syntax error"),
        ("not-a-name.py:handler", "'not-a-name' is not a module's name", "rename it"),
    ],
)
def test_invalid_reference_says_what_was_seen_and_what_comes_closest(
    folder: Path, reference: str, problem: str, next_step: str
) -> None:
    """Each way to get it wrong is one clear error with the next step."""
    with pytest.raises(HandlerInvalid) as caught:
        parse_handler_reference(reference, folder)
    assert problem in caught.value.problem
    assert next_step in caught.value.next_step
    assert "\n" not in caught.value.problem + caught.value.next_step


def test_runtime_clients_form_has_dots_only() -> None:
    """awslambdaric takes module and function with a dot between them."""
    assert runtime_handler("shop.orders:create") == "shop.orders.create"
    with pytest.raises(HandlerInvalid, match="is not a handler"):
        runtime_handler("shop.orders.create")
