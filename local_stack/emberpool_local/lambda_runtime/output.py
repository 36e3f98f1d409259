"""What one environment prints: a pipe that is read as it fills, and its last part in memory."""

from __future__ import annotations

import asyncio
import os

# Enough for a stack trace of any length that is read; a thousand environments keep at most this much each.
LONGEST_OUTPUT_BYTES = 256 * 1024
READ_BYTES = 64 * 1024

# Lines of the runtime client that are advice about AWS's service, not the handler's output.
NOISE = ("LAMBDA_WARNING:",)


class Output:
    """The standard output and error of one environment, in the order written."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._dropped_bytes = 0
        self._reading_end: int | None = None

    def open(self) -> int:
        """Open the pipe and return its writing end, which the caller closes once the environment has it."""
        self._reading_end, writing_end = os.pipe()
        os.set_blocking(self._reading_end, False)
        asyncio.get_running_loop().add_reader(self._reading_end, self.read)
        return writing_end

    def read(self) -> None:
        """Take over whatever is in the pipe, without waiting."""
        while self._reading_end is not None:
            try:
                data = os.read(self._reading_end, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            self._kept += data
            excess = len(self._kept) - LONGEST_OUTPUT_BYTES
            if excess > 0:
                del self._kept[:excess]
                self._dropped_bytes += excess

    def close(self) -> None:
        """Stop reading; what was read stays."""
        if self._reading_end is not None:
            asyncio.get_running_loop().remove_reader(self._reading_end)
            os.close(self._reading_end)
            self._reading_end = None

    @property
    def position(self) -> int:
        """How many bytes were printed so far."""
        return self._dropped_bytes + len(self._kept)

    def text(self, since: int = 0) -> str:
        """Return what was printed after `since` (a former `position`), as far as it is kept."""
        kept = self._kept[max(0, since - self._dropped_bytes) :].decode(errors="replace")
        # The client joins the lines of an error with carriage returns and indents them with no-break spaces.
        text = kept.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
        lines = text.splitlines(keepends=True)
        return "".join(line for line in lines if not any(noise in line for noise in NOISE))
