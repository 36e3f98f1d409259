"""`emberpool invoke`: one event to one handler in a real execution environment, against a running `emberpool up`."""

from __future__ import annotations

import asyncio

from emberpool_local.burst.fire import check_event
from emberpool_local.errors import InvocationFailed, LocalStackError
from emberpool_local.lambda_runtime import Fleet, HandlerReference, Outcome
from emberpool_local.running_stack import find_running


class NotUp(LocalStackError):  # noqa: N818 (named by what is the matter, as all errors of emberpool)
    """No local stack runs that a handler could use."""


def invoke_once(reference: HandlerReference, event: bytes, timeout_seconds: float) -> Outcome:
    """Send `event` to the handler and return the outcome, whatever it is.

    Raises NotUp, EventInvalid, or HandlerInvalid when the handler cannot be loaded.
    """
    check_event(event)
    running = find_running()
    if running is None:
        raise NotUp("no local stack is running", "run `emberpool up` in another terminal, then this again")
    return asyncio.run(_invoke(reference, event, timeout_seconds, dict(running.environment)))


async def _invoke(
    reference: HandlerReference, event: bytes, timeout_seconds: float, environment: dict[str, str]
) -> Outcome:
    async with Fleet(
        handler=reference.handler,
        code_folder=reference.code_folder,
        environment=environment,
        timeout_seconds=timeout_seconds,
        function_name=reference.module.rpartition(".")[2],
    ) as fleet:
        return await fleet.invoke(event)


def printed(outcome: Outcome, with_trace: bool) -> str:
    """Return what the handler printed; the runtime client's own report of an exception only `with_trace`."""
    before, report, _ = outcome.log.rpartition(f"[ERROR] {outcome.error_type}")
    return (before if report and not with_trace else outcome.log).strip()


def check_succeeded(outcome: Outcome) -> None:
    """Raise InvocationFailed unless the handler returned."""
    if outcome.status == "succeeded":
        return
    next_step = {
        "failed": "mend the handler; --trace shows where it raised",
        "timed_out": "give it more time with --timeout-seconds",
        "crashed": "see what the handler printed above",
    }[outcome.status]
    raise InvocationFailed(
        f"the handler {outcome.status.replace('_', ' ')}: {outcome.error_type}: {outcome.error_message}", next_step
    )
