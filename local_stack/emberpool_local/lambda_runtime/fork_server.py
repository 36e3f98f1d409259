"""Environments forked from a template process that has done the common imports: cheap enough for hundreds.

Owns the template (`fork_template`) and the messages with it. Initialisation looks faster here than on AWS, where
every environment imports everything by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from emberpool_local.errors import LocalStackError
from emberpool_local.lambda_runtime.output import Output
from emberpool_local.lambda_runtime.process import TEMPLATE, RunningProcess, dying_with_us
from emberpool_local.lambda_runtime.variables import Function, function_variables

LARGEST_MESSAGE_BYTES = 64 * 1024
END_SECONDS = 5.0


class ForkServer:
    """Starts environments of one function by forking. Opens at the first start; `close` ends it."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._opening = asyncio.Lock()  # or several environments would each start a template
        self._is_closed = False
        self._control: socket.socket | None = None
        self._template: asyncio.subprocess.Process | None = None
        self._output = Output()
        self._ready: asyncio.Future[None] | None = None
        self._requests = itertools.count(1)
        self._births: dict[int, asyncio.Future[RunningProcess]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}

    async def start(self, variables: Mapping[str, str], output: int) -> RunningProcess:
        """Fork an environment with these additional variables and this file descriptor as its output.

        Raises LocalStackError when the template has ended.
        """
        control = await self._opened()
        request = next(self._requests)
        birth: asyncio.Future[RunningProcess] = asyncio.get_running_loop().create_future()
        self._births[request] = birth
        message = json.dumps({"request": request, "variables": dict(variables)})
        try:
            socket.send_fds(control, [message.encode()], [output])
        except OSError as error:
            del self._births[request]
            raise self._ended() from error
        return await birth

    async def close(self) -> None:
        """End the template, and with it whatever it forked."""
        self._is_closed = True
        async with self._opening:
            if self._control is not None:
                asyncio.get_running_loop().remove_reader(self._control)
                self._control.close()
        if self._template is not None:
            try:
                await asyncio.wait_for(self._template.wait(), END_SECONDS)
            except TimeoutError:
                self._template.kill()
                await self._template.wait()
        self._output.close()
        self._forget_children()

    async def _opened(self) -> socket.socket:
        async with self._opening:
            if self._is_closed:
                raise RuntimeError("the fork server is closed")
            if self._control is None:
                self._control = await self._open()
        assert self._ready is not None  # noqa: S101 (set by _open)
        # Shielded: one environment that is cancelled must not take the template from the others.
        await asyncio.shield(self._ready)
        return self._control

    async def _open(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        self._ready = loop.create_future()
        loop.add_reader(control, self._read, control)
        writing_end = self._output.open()
        try:
            self._template = await self._start_template(theirs.fileno(), writing_end)
        except BaseException:
            loop.remove_reader(control)
            control.close()
            self._output.close()
            raise
        finally:
            theirs.close()
            os.close(writing_end)
        return control

    async def _start_template(self, control: int, output: int) -> asyncio.subprocess.Process:
        # -P: the folder of the script is ours and must not be importable by handlers.
        arguments = [sys.executable, "-P", str(TEMPLATE), str(control), self._function.handler]
        return await asyncio.create_subprocess_exec(
            *dying_with_us(arguments, death_signal="TERM"),
            cwd=self._function.code_folder,
            env=function_variables(self._function),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[control],
            start_new_session=True,
        )

    def _read(self, control: socket.socket) -> None:
        while True:
            try:
                packet = control.recv(LARGEST_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                asyncio.get_running_loop().remove_reader(control)
                self._forget_children()
                return
            self._understand(json.loads(packet))

    def _understand(self, message: dict[str, Any]) -> None:
        if "request" in message:
            self._born(message["request"], message["pid"])
        elif "pid" in message:
            exited = self._exits.pop(message["pid"])
            if not exited.done():
                exited.set_result(message["exit_code"])
        elif self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _born(self, request: int, pid: int) -> None:
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[pid] = exited
        process = RunningProcess(pid, exited)
        birth = self._births.pop(request)
        if birth.done():
            process.signal(signal.SIGKILL)  # whoever asked for it was cancelled meanwhile
        else:
            birth.set_result(process)

    def _forget_children(self) -> None:
        """Take all children for dead: the kernel kills them with the template."""
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(-signal.SIGKILL)
        waiting: list[asyncio.Future[Any]] = [*self._births.values()]
        if self._ready is not None:
            waiting.append(self._ready)
        for future in waiting:
            if not future.done():
                future.set_exception(self._ended())
                future.exception()  # read, so that asyncio does not complain when nobody waits any more
        self._exits.clear()
        self._births.clear()

    def _ended(self) -> LocalStackError:
        self._output.read()
        last_lines = self._output.text().strip().splitlines()[-3:]
        said = f": {' / '.join(last_lines)}" if last_lines else ""
        return LocalStackError(
            f"the process that forks Lambda execution environments has ended{said}",
            "check that this Python has awslambdaric and psycopg (pip install 'emberpool[local]') "
            "and that the machine has memory left",
        )
