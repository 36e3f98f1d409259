"""A fleet of execution environments of one function, as Lambda would run it on this machine.

Owns which environment gets which event: a free warm one first, then a new one, and when there are as many as
allowed, the first that becomes free.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import resource
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from emberpool_local.errors import EventInvalid, HandlerInvalid
from emberpool_local.lambda_runtime.environment import Environment
from emberpool_local.lambda_runtime.fork_server import ForkServer
from emberpool_local.lambda_runtime.handler_reference import runtime_handler
from emberpool_local.lambda_runtime.outcome import LARGEST_REQUEST_BYTES, Outcome
from emberpool_local.lambda_runtime.process import Start, process_starter
from emberpool_local.lambda_runtime.variables import Function

StartMethod = Literal["auto", "process", "fork"]
START_METHODS = ("auto", "process", "fork")

# Real processes are the more faithful, but each takes a core for a good part of a second to start.
MOST_REAL_PROCESSES = 50
# More than one: initialisation also waits, for a connection or a secret. Fewer than all: the machine stays usable.
INITIALISED_AT_ONCE_PER_CORE = 4
# Listening socket, connections (client, extension) and pipe of each environment, and what they need at the start.
FILE_DESCRIPTORS_PER_ENVIRONMENT = 6
FILE_DESCRIPTORS_OF_OTHERS = 256


class Fleet:
    """Runs a handler in up to `max_environments` execution environments with the real runtime client.

    `handler` is `module:function`, `code_folder` its LAMBDA_TASK_ROOT: working folder and on sys.path. `environment`
    holds the function's variables; of this process's own only PATH, LANG, LC_ALL, LC_CTYPE, LD_LIBRARY_PATH,
    PYTHONPATH, TMPDIR and VIRTUAL_ENV are passed on, so that no credential of the developer reaches the handler.
    `start_method` is "process" (a Python each), "fork" (from a template with the common imports done) or "auto":
    processes as long as there are few. Environments are stopped while idle unless `freeze_when_idle` is false.
    With `snapstart` each one waits as a snapshot after its initialisation, and its first invocation restores it.
    With `max_concurrency` above 1 each one takes that many invocations at a time, in a process each, and is never
    stopped: Lambda Managed Instances.
    Unlike on AWS, they share this machine's /tmp, and `memory_mb` is only told to the handler.

    Nothing runs before `async with`, and everything has ended after it. If this process is killed, the
    environments die with it. Raises ValueError for settings out of range and HandlerInvalid for a handler that is
    not `module:function`.
    """

    def __init__(
        self,
        handler: str,
        code_folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float = 30.0,
        memory_mb: int = 512,
        max_environments: int = 1000,
        start_method: StartMethod = "auto",
        freeze_when_idle: bool = True,
        function_name: str = "function",
        init_timeout_seconds: float = 60.0,
        snapstart: bool = False,
        max_concurrency: int = 1,
    ) -> None:
        if max_environments < 1:
            raise ValueError(f"max_environments must be at least 1, got {max_environments}")
        if max_concurrency < 1 or (snapstart and max_concurrency > 1):
            raise ValueError(f"max_concurrency must be at least 1, and 1 with snapstart, got {max_concurrency}")
        if timeout_seconds <= 0 or init_timeout_seconds <= 0:
            raise ValueError(f"timeouts must be above 0, got {timeout_seconds} and {init_timeout_seconds}")
        if start_method not in START_METHODS:
            raise ValueError(f"start_method must be one of {', '.join(START_METHODS)}, got {start_method!r}")
        self._function = Function(
            name=function_name,
            handler=runtime_handler(handler),
            code_folder=Path(code_folder).resolve(),
            environment=dict(environment or {}),
            timeout_seconds=timeout_seconds,
            memory_mb=memory_mb,
            init_timeout_seconds=init_timeout_seconds,
            is_snapstart=snapstart,
            max_concurrency=max_concurrency,
        )
        self._max_environments = max_environments
        self._start_method = start_method
        self._freezes_when_idle = freeze_when_idle and max_concurrency == 1
        self._environments: dict[int, Environment] = {}
        self._last_number = 0
        self._free: list[Environment] = []  # each once for every invocation that it may take
        # Whoever waits gets an environment, or None: there is room for a new one.
        self._waiting: collections.deque[asyncio.Future[Environment | None]] = collections.deque()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._fork_server: ForkServer
        self._start_process: Start
        self._starting: asyncio.Semaphore

    async def __aenter__(self) -> Self:
        """Get ready to start environments; none is started yet.

        Raises HandlerInvalid when the code folder does not exist.
        """
        if not self._function.code_folder.is_dir():
            raise HandlerInvalid(
                f"the handler's folder {self._function.code_folder} does not exist", "name an existing folder"
            )
        self._start_process = process_starter(self._function)
        self._fork_server = ForkServer(self._function)
        self._starting = asyncio.Semaphore(INITIALISED_AT_ONCE_PER_CORE * _cores())
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every environment and release its port; invocations under way come back as crashed."""
        self._is_open = False
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(_closed())
        await asyncio.gather(*(environment.close() for environment in list(self._environments.values())))
        await self._fork_server.close()
        await asyncio.gather(*self._retiring)

    @property
    def environments(self) -> tuple[Environment, ...]:
        """The environments that exist now, the oldest first; those that are being started too."""
        return tuple(self._environments.values())

    async def scale_out(self, count: int, progress: Callable[[int, int], None] | None = None) -> list[Environment]:
        """Start `count` more environments side by side and return them; `progress` is called with (ready, count).

        Raises HandlerInvalid when the handler cannot be loaded: all that were being started are gone then. Raises
        ValueError when there would be more than `max_environments`.
        """
        if len(self._environments) + count > self._max_environments:
            raise ValueError(
                f"at most {self._max_environments} environments are allowed: "
                f"{len(self._environments)} exist, {count} more were asked for"
            )
        method = self._method_for(len(self._environments) + count)
        ready: list[Environment] = []

        async def start(environment: Environment) -> None:
            await self._initialise(environment, method)
            ready.append(environment)
            for _ in range(self._function.max_concurrency):
                self._release(environment)
            if progress is not None:
                progress(len(ready), count)

        await _all_or_first_error([start(self._new_environment()) for _ in range(count)])
        return ready

    async def invoke(self, payload: bytes, environment: Environment | None = None) -> Outcome:
        """Run one invocation in a free environment, a new one, or the first to become free; or in the given one.

        `payload` is the event as JSON. Raises EventInvalid when it is larger than Lambda allows, HandlerInvalid when
        a new environment cannot load the handler, and RuntimeError when the given one is not free.
        """
        if len(payload) > LARGEST_REQUEST_BYTES:
            raise EventInvalid(
                f"the event has {len(payload)} bytes, AWS Lambda takes at most {LARGEST_REQUEST_BYTES}",
                "pass a smaller event, for example the place where the handler finds the data",
            )
        if environment is None:
            environment, is_cold = await self._acquire()
        else:
            self._claim(environment)
            is_cold = False
        try:
            outcome = await environment.invoke(payload)
        finally:
            self._release(environment)
        if is_cold:
            return dataclasses.replace(outcome, is_cold=True, init_ms=environment.init_ms)
        return outcome

    async def _acquire(self) -> tuple[Environment, bool]:
        """Return an environment that is nobody else's, and whether it was started for this."""
        is_first_in_line = False
        while True:
            self._check_open()
            if self._free:
                return self._free.pop(), False  # the one used last: it has waited the shortest
            if len(self._environments) < self._max_environments:
                environment = self._new_environment()
                await self._initialise(environment, self._method_for(len(self._environments)))
                for _ in range(self._function.max_concurrency - 1):
                    self._release(environment)
                return environment, True
            given = await self._wait_in_line(is_first_in_line)
            if given is not None:
                return given, False
            # Somebody else took the room meanwhile: wait again, but do not lose the place in the line.
            is_first_in_line = True

    async def _wait_in_line(self, is_first_in_line: bool) -> Environment | None:
        waiter: asyncio.Future[Environment | None] = asyncio.get_running_loop().create_future()
        if is_first_in_line:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled after it was given something: without this nobody would ever use that again.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(waiter.result())
            raise

    def _claim(self, environment: Environment) -> None:
        if environment not in self._free:
            raise RuntimeError(f"{environment} is not free: it is busy, has ended or is not of this fleet")
        self._free.remove(environment)

    def _release(self, environment: Environment) -> None:
        if not environment.has_ended and self._is_open:
            self._offer(environment)

    def _offer(self, environment: Environment | None) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(environment)
                return
        if environment is not None and not environment.has_ended:
            self._free.append(environment)
            if self._freezes_when_idle:
                environment.freeze()

    def _new_environment(self) -> Environment:
        self._check_open()
        self._last_number += 1
        environment = Environment(self._last_number, self._function, self._retire)
        self._environments[environment.number] = environment
        return environment

    async def _initialise(self, environment: Environment, method: StartMethod) -> None:
        start = self._fork_server.start if method == "fork" else self._start_process
        try:
            _allow_file_descriptors(len(self._environments) * self._function.max_concurrency)
            async with self._starting:
                self._check_open()
                await environment.start(start)
        except BaseException:
            self._remove(environment)
            raise

    def _check_open(self) -> None:
        if not self._is_open:
            raise _closed()

    def _method_for(self, environments: int) -> StartMethod:
        if self._start_method == "auto":
            return "process" if environments <= MOST_REAL_PROCESSES else "fork"
        return self._start_method

    def _retire(self, environment: Environment) -> None:
        """Forget an environment whose process has ended."""
        self._remove(environment)
        task = asyncio.ensure_future(environment.close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _remove(self, environment: Environment) -> None:
        if self._environments.pop(environment.number, None) is not None:
            self._free = [each for each in self._free if each is not environment]
            self._offer(None)


def _closed() -> RuntimeError:
    return RuntimeError("the fleet is closed: use it inside `async with`")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _allow_file_descriptors(environments: int) -> None:
    """Raise this process's soft limit of open files to what so many environments need, as far as allowed."""
    needed = FILE_DESCRIPTORS_OF_OTHERS + FILE_DESCRIPTORS_PER_ENVIRONMENT * environments
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        highest = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))


async def _all_or_first_error(starts: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one fails, cancel the others, wait for their end and raise its error."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            # A second cancellation would interrupt the clean-up that the first one started.
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
