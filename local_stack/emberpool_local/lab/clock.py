"""A clock on the wall that can be moved for the programs of one task; the machine's own is never touched.

A library of ours is preloaded into them (clock_shift.c). Debian's libfaketime does not do: it leaves its shared memory
behind when a program is killed, as the lab does all the time, and it moves the clock up to a second late.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
import platform
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from emberpool_local.host.cache import program_cache_folder
from emberpool_local.pgbouncer.program import PgbouncerProgram

SOURCE = Path(__file__).with_name("clock_shift.c")
SECONDS = struct.Struct("=q")
FILE_VARIABLE = "LAB_CLOCK_FILE"


def clock_library(progress: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the library, compiled once; None on a machine without a C compiler. Raises CacheNotWritable."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = program_cache_folder() / f"clock-{digest}-{platform.machine()}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        progress("This machine has no C compiler: the clocks of the tasks cannot be moved")
        return None
    unfinished = library.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(
            [compiler, "-std=gnu11", "-O2", "-fPIC", "-shared", "-o", unfinished, SOURCE, "-ldl"],
            check=True,
            capture_output=True,
            text=True,
        )
        unfinished.chmod(0o755)
        unfinished.rename(library)  # whoever sees the file sees all of it
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        progress(f"The library that moves the tasks' clocks was not compiled: {said}")
        return None
    finally:
        unfinished.unlink(missing_ok=True)
    return library


class ShiftedClock:
    """The clock of one task. Its two files are made in `folder`, which every user must be able to enter."""

    def __init__(self, library: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self._library = library
        self._folder = folder
        self._file = folder / "shift"
        self._file.write_bytes(SECONDS.pack(0))
        self._file.chmod(0o644)

    @property
    def seconds(self) -> int:
        """How far it is ahead of the machine's."""
        (seconds,) = SECONDS.unpack(self._file.read_bytes())
        return int(seconds)

    def environment(self) -> dict[str, str]:
        """Return the variables that give a program this clock."""
        return {"LD_PRELOAD": str(self._library), FILE_VARIABLE: str(self._file)}

    def pgbouncer_program(self, program: PgbouncerProgram) -> PgbouncerProgram:
        """Return a PgBouncer that has this clock, though its supervisor starts it without any variable."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment().items())
        wrapper = self._folder / "pgbouncer"
        wrapper.write_text(f'#!/bin/sh\n{variables} exec {shlex.quote(str(program.path))} "$@"\n')
        wrapper.chmod(0o755)
        return dataclasses.replace(program, path=wrapper)

    def shift(self, seconds: int) -> None:
        """Let it be so far ahead of the machine's from now on, behind it when negative. It jumps at once."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), SECONDS.size) as memory:
            memory[:] = SECONDS.pack(seconds)  # in one piece: programs read it at any moment
