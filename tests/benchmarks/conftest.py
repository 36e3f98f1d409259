"""The benchmarks are in no wheel: they are imported from the repository's root, where `make bench` runs them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
