"""One execution environment: a process with the real runtime client, from its start to its end.

Owns the life of the environment (start, invoke, freeze, thaw, kill) and measures its invocations. Which
environment gets which event is the fleet's business, how its process starts is the starter's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable

from emberpool_local.lambda_runtime import outcome as ending
from emberpool_local.lambda_runtime.load_failure import (
    ended_while_loading,
    failed_to_load,
    too_slow_to_load,
)
from emberpool_local.lambda_runtime.outcome import Answer, ErrorReport, Outcome
from emberpool_local.lambda_runtime.output import Output
from emberpool_local.lambda_runtime.process import RunningProcess, Start
from emberpool_local.lambda_runtime.runtime_api import Event, RuntimeApi
from emberpool_local.lambda_runtime.variables import Function, environment_variables

# Between SIGTERM and SIGKILL, for a runtime with an internal extension (documented).
SHUTDOWN_SECONDS = 0.5


class Environment:
    """An execution environment: it runs one invocation at a time, or `max_concurrency` of them, each in a worker.

    With several at a time it is as on Lambda Managed Instances: never frozen in the middle of an invocation, ready when
    the first worker is, and not ended at a timeout, where the code runs on. A worker that dies is not replaced, and its
    invocation ends at the timeout. What is printed meanwhile is in the log of all that run.
    """

    def __init__(self, number: int, function: Function, on_end: Callable[[Environment], None]) -> None:
        self.number = number
        self.init_ms: float | None = None
        self._function = function
        self._on_end = on_end
        self._api = RuntimeApi(self)
        self._output = Output()
        self._process: RunningProcess | None = None
        self._is_frozen = False
        self._is_snapshot = False
        self._is_closed = False
        # Held by both: a close in the middle of a start would find nothing to kill yet.
        self._starting_or_closing = asyncio.Lock()
        self._loaded: asyncio.Future[None] | None = None
        self._answers: dict[str, asyncio.Future[tuple[Answer, float]]] = {}  # of what runs, by request id
        self._resting = asyncio.Event()  # waits for an event, or has ended: nothing more comes from it

    def __repr__(self) -> str:
        """Show what tells environments apart."""
        return f"Environment(number={self.number}, pid={self._process.pid if self._process else None})"

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError(f"environment {self.number} was not started")
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process is not None and self._process.exited.done()

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped between invocations."""
        return self._is_frozen and not self.has_ended

    @property
    def log_lines(self) -> list[str]:
        """What it printed so far; only the last part when that is long."""
        self._output.read()
        return self._output.text().splitlines()

    async def start(self, start: Start) -> None:
        """Start the process and wait until the handler is loaded; with SnapStart it is a snapshot then.

        Raises HandlerInvalid when the handler cannot be loaded; the process is gone then.
        """
        started = time.perf_counter()
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            await self._start_process(start)
            async with asyncio.timeout(self._function.init_timeout_seconds):
                await self._loaded
        except TimeoutError:
            await self.close()
            raise too_slow_to_load(self._function, self._output.text()) from None
        except BaseException:
            await self.close()
            raise
        self.init_ms = (time.perf_counter() - started) * 1000

    async def _start_process(self, start: Start) -> None:
        async with self._starting_or_closing:
            if self._is_closed:
                raise self._closed()
            variables = environment_variables(self.number, await self._api.open())
            writing_end = self._output.open()
            try:
                self._process = await start(variables, writing_end)
            finally:
                os.close(writing_end)
            self._process.exited.add_done_callback(self._on_exit)

    async def invoke(self, payload: bytes) -> Outcome:
        """Run one invocation and wait until the environment is ready for the next one, or gone; restore it before.

        At the timeout the process is ended, and killed when the caller is cancelled; not so where it runs several.
        """
        await self.restore()
        self._output.read()
        position = self._output.position
        event = self._event(payload)
        answer = self._answers[event.request_id] = asyncio.get_running_loop().create_future()
        self._resting.clear()
        if self.has_ended:
            self._end_invocations()
        self.thaw()
        started = time.perf_counter()
        self._api.hand_over(event)
        try:
            async with asyncio.timeout(self._function.timeout_seconds):
                await answer
                # The invocation lasts until the client asks for the next event, as on Lambda.
                if not self._function.takes_several:
                    await self._resting.wait()
        except TimeoutError:
            if not self._function.takes_several:
                await self._shut_down()
        except asyncio.CancelledError:
            if not self._function.takes_several:
                await self.kill()
            raise
        finally:
            del self._answers[event.request_id]
            self._api.withdraw(event)
        return self._outcome(answer, started, position)

    def _outcome(self, answered: asyncio.Future[tuple[Answer, float]], started: float, position: int) -> Outcome:
        if answered.done() and not answered.cancelled():
            answer, ended = answered.result()
        else:
            answer, ended = ending.timed_out(self._function.timeout_seconds), time.perf_counter()
        self._output.read()
        return Outcome(
            status=answer.status,
            payload=answer.payload,
            duration_ms=(ended - started) * 1000,
            environment_number=self.number,
            error_type=answer.error_type,
            error_message=answer.error_message,
            stack_trace=answer.stack_trace,
            exit_code=answer.exit_code,
            log=self._output.text(since=position),
        )

    def _event(self, payload: bytes) -> Event:
        now = time.time()
        return Event(
            payload=payload,
            request_id=str(uuid.uuid4()),
            deadline_ms=int((now + self._function.timeout_seconds) * 1000),
            trace_id=f"Root=1-{int(now):x}-{uuid.uuid4().hex[:24]};Parent={uuid.uuid4().hex[:16]};Sampled=0",
            function_arn=self._function.arn,
        )

    def freeze(self) -> None:
        """Stop the process and its children, as Lambda does between invocations; nothing happens while one runs."""
        if self._process is not None and not self._is_frozen and not self._answers:
            self._is_frozen = True
            self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        if self._process is not None and self._is_frozen:
            self._is_frozen = False
            self._process.signal(signal.SIGCONT)

    async def restore(self) -> None:
        """Let a snapshot go on and wait until it is ready for its first invocation, or gone.

        Nothing happens when it is none. When the restore takes longer than the initialisation may, it is killed.
        """
        if not self._is_snapshot or self.has_ended:
            return
        self._is_snapshot = False
        self._resting.clear()
        self.thaw()
        self._api.restore()
        try:
            async with asyncio.timeout(self._function.init_timeout_seconds):
                await self._resting.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            await self.kill()
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _shut_down(self) -> None:
        """End the process as Lambda does: with an extension there, by SIGTERM and a moment before the kill."""
        if self._process is not None and self._api.has_extension:
            self.thaw()
            if self._function.takes_several:
                self._process.terminate_workers()
            else:
                self._process.terminate()
            await asyncio.wait([self._process.exited], timeout=SHUTDOWN_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """Kill the process and its children and wait until it is gone."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            await asyncio.wait([self._process.exited])

    async def close(self) -> None:
        """End the process and release its port and its pipe; may be called again."""
        async with self._starting_or_closing:
            self._is_closed = True
            await self._shut_down()
            await self._api.close()
            self._output.read()
            self._output.close()

    def _closed(self) -> RuntimeError:
        return RuntimeError(f"environment {self.number} was closed while it was being started")

    # What the Runtime API says.

    def on_next(self) -> None:
        """Take the environment for ready."""
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)
        self._resting.set()

    def on_snapshot(self) -> None:
        """Take the environment for a snapshot."""
        self._is_snapshot = True
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    def on_answer(self, request_id: str, answer: Answer) -> bool:
        """Take the answer of an invocation that runs; false for any other."""
        waited_for = self._answers.get(request_id)
        if waited_for is None or waited_for.done():
            return False
        waited_for.set_result((answer, time.perf_counter()))
        return True

    def on_init_error(self, report: ErrorReport) -> None:
        """Fail the start."""
        if self._loaded is not None and not self._loaded.done():
            self._output.read()
            self._loaded.set_exception(failed_to_load(self._function, report, self._output.text()))

    def _on_exit(self, exited: asyncio.Future[int]) -> None:
        assert self._process is not None  # noqa: S101 (its callback)
        self._process.end_children()
        self._output.read()
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(
                self._closed()
                if self._is_closed
                else ended_while_loading(self._function, exited.result(), self._output.text())
            )
            self._loaded.exception()  # read, so that asyncio does not complain when the start was cancelled
        self._end_invocations()
        self._on_end(self)

    def _end_invocations(self) -> None:
        assert self._process is not None  # noqa: S101 (only once it has ended)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result((ending.crashed(self._process.exited.result()), time.perf_counter()))
        self._resting.set()
