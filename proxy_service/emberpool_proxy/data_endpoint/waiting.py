"""Waits until a socket of libpq's can be read or written, for logins and cancel requests."""

from __future__ import annotations

import asyncio


async def readable(socket: int) -> None:
    """Return once there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(socket, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)


async def writable(socket: int) -> None:
    """Return once there is room to write."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(socket, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(socket)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
