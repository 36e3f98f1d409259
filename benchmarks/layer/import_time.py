"""How long the layer takes to import, with and without compiled .pyc files: a fresh interpreter each time."""

from __future__ import annotations

import compileall
import importlib.util
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.layer.cores import Cores, on

PACKAGES = ("emberpool", "psycopg", "psycopg_binary", "typing_extensions")
LAYER = "from emberpool import warm_connection"
DRIVER = "import psycopg"
TIMED = "import sys, time; sys.path.insert(0, sys.argv[1]); began = time.perf_counter(); exec(sys.argv[2]); \
print((time.perf_counter() - began) * 1000)"
COMPILED, SOURCES, DRIVER_COMPILED = "with .pyc", "without .pyc", "psycopg alone, with .pyc"


def measure(cores: Cores, folder: Path, repetitions: int) -> Mapping[str, list[float]]:
    """Return the milliseconds of each repetition; the copies of the packages go to `folder`."""
    compiled, sources = folder / "compiled", folder / "sources"
    _copy_packages(sources)
    shutil.copytree(sources, compiled)
    compileall.compile_dir(compiled, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    runs = {COMPILED: (compiled, LAYER), SOURCES: (sources, LAYER), DRIVER_COMPILED: (compiled, DRIVER)}
    found: dict[str, list[float]] = {name: [] for name in runs}
    with on(cores.measured):
        for _ in range(repetitions + 1):
            for name, (path, statement) in runs.items():
                found[name].append(_import_ms(path, statement))
    return {name: values[1:] for name, values in found.items()}  # the first reads the files from the disk


def _import_ms(path: Path, statement: str) -> float:
    # -I -S: nothing but the copies and the standard library; -B: no .pyc is written on the way.
    command = [sys.executable, "-I", "-S", "-B", "-c", TIMED, str(path), statement]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _copy_packages(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # typing_extensions is not needed by newer Pythons
        origin = Path(spec.origin)
        if origin.name != "__init__.py":
            shutil.copy(origin, folder)
            continue
        shutil.copytree(origin.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        libraries = origin.parent.with_name(f"{name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name)
