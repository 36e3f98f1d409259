"""A handler that could not be loaded: what the runtime client said, in words that lead to the cause."""

from __future__ import annotations

from emberpool_local.errors import HandlerInvalid
from emberpool_local.lambda_runtime.outcome import ErrorReport
from emberpool_local.lambda_runtime.variables import Function


class HandlerNotLoaded(HandlerInvalid):
    """The handler's module or function is missing, or its module failed while it was imported.

    `error_type` and `error_message` are Lambda's (`Runtime.ImportModuleError`, the name of an exception, ...);
    `stack_trace` and `log` are for those who want to see them.
    """

    def __init__(self, problem: str, next_step: str, report: ErrorReport, log: str) -> None:
        super().__init__(problem, next_step)
        self.error_type = report.error_type
        self.error_message = report.error_message
        self.stack_trace = report.stack_trace
        self.log = log


def failed_to_load(function: Function, report: ErrorReport, log: str) -> HandlerNotLoaded:
    """Return the error for a handler whose loading the runtime client reported as failed."""
    problem = f"the handler {shown(function)} could not be loaded: {report.error_type}: {report.error_message}"
    return HandlerNotLoaded(problem, _next_step(function, report), report, log)


def ended_while_loading(function: Function, exit_code: int, log: str) -> HandlerNotLoaded:
    """Return the error for a process that ended before it asked for its first event."""
    ended = f"exit status {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
    last_line = (log.strip().splitlines() or ["nothing was printed"])[-1]
    report = ErrorReport("Runtime.ExitError", f"Runtime exited with error: {ended}", (), b"")
    return HandlerNotLoaded(
        f"the process ended with {ended} while the handler {shown(function)} was being loaded: {last_line}",
        "look for what ends the process when the module is imported (sys.exit, os._exit, a crashing extension)",
        report,
        log,
    )


def too_slow_to_load(function: Function, log: str) -> HandlerNotLoaded:
    """Return the error for a handler that was not ready in time."""
    seconds = f"{function.init_timeout_seconds:g} seconds"
    report = ErrorReport("Sandbox.Timedout", f"Init phase timed out after {seconds}", (), b"")
    return HandlerNotLoaded(
        f"the handler {shown(function)} was not loaded within {seconds}",
        "look for what waits when the module is imported (a connection without a timeout, a loop); "
        "AWS Lambda allows 10 seconds",
        report,
        log,
    )


def shown(function: Function) -> str:
    """Return the handler as users write it, `module:function`."""
    module, _, name = function.handler.rpartition(".")
    return f"{module}:{name}"


def _next_step(function: Function, report: ErrorReport) -> str:
    module, _, name = function.handler.rpartition(".")
    if report.error_type == "Runtime.HandlerNotFound":
        return f"define {name} in the module {module}, or name a function that is there"
    if report.error_type == "Runtime.UserCodeSyntaxError":
        return f"mend the syntax error in the module {module}"
    if report.error_type == "Runtime.ImportModuleError" and _names_module(_cause(report), module):
        return f"check that the module {module} is in the folder {function.code_folder}"
    if report.error_type == "Runtime.ImportModuleError":
        return "install what the handler imports into the Python that runs this command, or mend the import"
    return f'see the stack trace with: cd {function.code_folder} && python -c "import {module}"'


def _cause(report: ErrorReport) -> str:
    """Return the message behind `Unable to import module 'x': `."""
    return report.error_message.partition(": ")[2]


def _names_module(cause: str, module: str) -> bool:
    """Tell whether the cause is that the handler's own module, or a package above it, is missing."""
    parts = module.split(".")
    return any(f"'{'.'.join(parts[:count])}'" in cause for count in range(1, len(parts) + 1))
