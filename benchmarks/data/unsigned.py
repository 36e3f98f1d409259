"""The data endpoint's own parts without a verifier: everybody is the one user of libpq's variables.

`python -m benchmarks.data.unsigned PORT`, with the proxy's settings in the environment: on loopback only, and no
setting leads here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace

from emberpool_proxy.data_endpoint.app import App
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.forwarding import Others
from emberpool_proxy.data_endpoint.process import freeze_what_is_loaded, make_listener, make_parts, new_loop
from emberpool_proxy.settings import ProxySettings

LOOPBACK = "127.0.0.1"


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    settings = replace(ProxySettings.from_environment(), listen_host=LOOPBACK, data_port=port, data_tls_mode="disable")
    anybody = Caller(os.environ["PGUSER"], os.environ["PGDATABASE"], os.environ["PGPASSWORD"])
    app = App(make_parts(settings, None, Others(_nobody, lambda: None, 1.0), None, anybody))
    freeze_what_is_loaded()
    await make_listener(settings, app).run()


async def _nobody() -> frozenset[tuple[str, int]]:
    return frozenset()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
