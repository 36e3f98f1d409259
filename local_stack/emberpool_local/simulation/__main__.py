"""`python -m emberpool_local.simulation`: a large fleet, or many small worlds with faults, in virtual time."""

from __future__ import annotations

import sys

from emberpool_local.simulation.command import main

sys.exit(main())
