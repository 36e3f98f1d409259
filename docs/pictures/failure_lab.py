"""Draw the README's picture of a run of the failure lab.

`python docs/pictures/failure_lab.py RESULT.json`, where RESULT.json is what `emberpool chaos --json RESULT.json` wrote.
Writes failure-lab.svg beside itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from emberpool_local.errors import LocalStackError
from emberpool_local.lab.picture import write_lab_picture
from emberpool_local.lab.recorded import read_result


def main() -> None:
    """Draw the run that is named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004 (the file)
        sys.exit("usage: python docs/pictures/failure_lab.py RESULT.json")
    picture = Path(__file__).resolve().with_name("failure-lab.svg")
    try:
        write_lab_picture(read_result(Path(sys.argv[1])), picture)
    except LocalStackError as error:
        sys.exit(f"error: {error.problem}\n next: {error.next_step}")
    sys.stdout.write(f"{picture}: {picture.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
