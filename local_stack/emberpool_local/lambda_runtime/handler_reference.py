"""`MODULE:HANDLER` as users write it: where its code is and whether it is there.

Reads the user's source without importing it: the module runs in execution environments only, never in our process.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.errors import HandlerInvalid

EXPECTED = "write MODULE:HANDLER or path/to/file.py:HANDLER, for example app:handler"
MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
MOST_NAMES_SHOWN = 5


@dataclass(frozen=True)
class HandlerReference:
    """A handler: `code_folder` is what goes onto sys.path, `module` may have dots."""

    code_folder: Path
    module: str
    function: str

    @property
    def handler(self) -> str:
        """The handler as `module:function`."""
        return f"{self.module}:{self.function}"


def parse_handler_reference(reference: str, folder: Path | None = None) -> HandlerReference:
    """Find the handler that `reference` names; modules and relative paths are looked up in `folder` (default: here).

    Raises HandlerInvalid when the reference is malformed, the module or file is missing, its source is not
    Python, or it defines no such name; what comes closest is in the error.
    """
    folder = (folder or Path.cwd()).resolve()
    place, colon, function = reference.strip().rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise _malformed(reference)
    if place.endswith(".py"):
        code_folder, module, source = _from_path(reference, folder / Path(place).expanduser())
    elif MODULE_NAME.fullmatch(place):
        code_folder, module, source = folder, place, _source_of(reference, place, folder)
    else:
        raise _malformed(reference)
    _check_defined(reference, source, function)
    return HandlerReference(code_folder, module, function)


def runtime_handler(handler: str) -> str:
    """Return `module:function` in the runtime client's form, `module.function`.

    Raises HandlerInvalid when it is not `module:function`. Does not look for the module.
    """
    module, _, function = handler.partition(":")
    if not MODULE_NAME.fullmatch(module) or not function.isidentifier():
        raise _malformed(handler)
    return f"{module}.{function}"


def _malformed(reference: str) -> HandlerInvalid:
    next_step = EXPECTED
    stem, dot, last = reference.strip().rpartition(".")
    if ":" not in reference and dot and last == "py":
        next_step = f"add the function's name: {reference.strip()}:handler"
    elif ":" not in reference and dot and MODULE_NAME.fullmatch(reference.strip()):
        next_step = f"write a colon before the function: {stem}:{last}"
    return HandlerInvalid(f"{reference!r} is not a handler", next_step)


def _from_path(reference: str, path: Path) -> tuple[Path, str, Path]:
    """Return the code folder, module and source of a file; inside packages the folder is the one above them."""
    path = path.resolve()
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise HandlerInvalid(
            f"the handler {reference!r} names the file {path}, which does not exist",
            _nearest(path.name, there) or EXPECTED,
        )
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(parts)
    if not MODULE_NAME.fullmatch(module):
        raise HandlerInvalid(
            f"the file {path} cannot be imported: {module!r} is not a module's name",
            "rename it to letters, digits and underscores",
        )
    return folder, module, path


def _source_of(reference: str, module: str, folder: Path) -> Path:
    stem = folder.joinpath(*module.split("."))
    for source in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
        if source.is_file():
            return source
    raise HandlerInvalid(
        f"the handler {reference!r} names the module {module}, which is not in {folder}",
        _nearest(module, _modules_in(stem.parent, folder))
        or f"run the command in the folder of the module, or {EXPECTED.partition(',')[0]}",
    )


def _modules_in(parent: Path, folder: Path) -> list[str]:
    if not parent.is_dir():
        return []
    prefix = "".join(f"{part}." for part in parent.relative_to(folder).parts)
    names = [p.stem for p in parent.glob("*.py") if p.name != "__init__.py"]
    names += [p.parent.name for p in parent.glob("*/__init__.py")]
    return sorted(prefix + name for name in names)


def _check_defined(reference: str, source: Path, function: str) -> None:
    try:
        tree = ast.parse(source.read_bytes(), filename=str(source))
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise HandlerInvalid(
            f"{source}{line} is not Python: {getattr(error, 'msg', error)}", "mend the syntax error"
        ) from None
    except OSError as error:
        raise HandlerInvalid(f"{source} cannot be read: {error.strerror}", "make the file readable") from None
    names = list(_names(tree.body))
    if function in names:
        _check_callable(reference, tree, function)
    elif "*" not in names and "__getattr__" not in names:  # these two may define any name
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        raise HandlerInvalid(
            f"the handler {reference!r} names {function}, which {source} does not define",
            _nearest(function, names) or _nearest("handler", functions) or f"define {function} in {source.name}",
        )


def _check_callable(reference: str, tree: ast.Module, function: str) -> None:
    for node in tree.body:
        is_async = isinstance(node, ast.AsyncFunctionDef) and not node.decorator_list
        if is_async and getattr(node, "name", None) == function:
            raise HandlerInvalid(
                f"the handler {reference!r} is an async function: Lambda's Python runtime does not await it",
                f"make {function} a plain function, for example one that calls asyncio.run",
            )


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements at the top of a module define; "*" for a star import."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        else:
            yield from _stored_names(node)
            for field in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, field, []))
            for branch in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                yield from _names(branch.body)


def _stored_names(node: ast.stmt) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _nearest(name: str, there: list[str]) -> str | None:
    """Return a sentence with the existing names that come closest, or else all when they are few."""
    near = difflib.get_close_matches(name, there, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if 0 < len(there) <= MOST_NAMES_SHOWN:
        return f"there is {', '.join(there)}"
    return None
