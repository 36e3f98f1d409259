"""`python -m emberpool_local.aws.moto_server`: moto with the CloudFormation types that our app needs.

Writes its port to a file once it listens, then serves until a signal ends it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from emberpool_local.aws.cloudformation import calls, gaps, register_all, repairs, updates
from emberpool_local.host.ports import LOOPBACK


def main() -> int:
    """Serve on a free port of an address until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m emberpool_local.aws.moto_server", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="address of this machine to listen on")
    parser.add_argument("--port-file", type=Path, required=True, help="file that gets the port")
    parser.add_argument("--gaps-file", type=Path, required=True, help="file for what the simulation leaves out")
    arguments = parser.parse_args()
    gaps.write_to(arguments.gaps_file)
    repairs.apply()
    updates.apply()
    register_all()
    server = ThreadedMotoServer(ip_address=arguments.host, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    calls.use_port(port)
    written = arguments.port_file.with_suffix(".new")
    written.write_text(str(port))
    written.rename(arguments.port_file)  # whole or not at all
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    sys.exit(main())
