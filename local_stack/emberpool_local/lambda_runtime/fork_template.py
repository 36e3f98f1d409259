"""The template process of the fork server: a script of its own that imports nothing of ours.

It has imported what every environment needs (the runtime client's parts and psycopg, never the handler and never
`emberpool`), forks when asked on its control socket, and reports who ended. A forked child becomes an environment
as if `python -m awslambdaric HANDLER` had been started. When the control socket closes, or the process that
started it is gone, it kills its children and ends.

One message is one JSON packet: `{"request", "variables"}` with the file descriptor for the output comes in;
`{"is_ready"}`, `{"request", "pid"}` and `{"pid", "exit_code"}` go out.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass

LARGEST_MESSAGE_BYTES = 64 * 1024
PR_SET_PDEATHSIG = 1  # prctl(2)
MAX_CONCURRENCY = "AWS_LAMBDA_MAX_CONCURRENCY"

# Not awslambdaric.bootstrap: its native client reads the Runtime API's address when it is imported.
IMPORTED = (
    "awslambdaric.lambda_context",
    "awslambdaric.lambda_runtime_exception",
    "awslambdaric.lambda_runtime_log_utils",
    "awslambdaric.lambda_runtime_marshaller",
    "http.client",
    "psycopg",
)


@dataclass(frozen=True)
class Birth:
    """What a forked child needs to become an environment."""

    template_pid: int
    variables: dict[str, str]
    output: int


class Template:
    """Forks on request until the control socket closes."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._children: set[int] = set()

    def serve(self) -> Birth | None:
        """Return None in the template when it shall end, and a Birth in each child."""
        self._listen()
        self._tell({"is_ready": True})
        while True:
            ready = {key.fileobj for key, _ in self._selector.select()}
            if self._wakeup in ready:
                if signal.SIGTERM in self._wakeup.recv(4096):
                    return None
                self._reap()
            if self._control in ready:
                packet, descriptors = self._receive()
                if not packet:
                    return None
                birth = self._fork(json.loads(packet), descriptors[0])
                if birth is not None:
                    self._forget_template()
                    return birth

    def kill_children(self) -> None:
        """Kill every child with all that it started."""
        for pid in self._children:
            for kill in (os.killpg, os.kill):
                try:
                    kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _listen(self) -> None:
        self._wakeup_writer.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for readable in (self._control, self._wakeup):
            self._selector.register(readable, selectors.EVENT_READ)

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, LARGEST_MESSAGE_BYTES, 1)
        except OSError:
            return b"", []
        return packet, descriptors

    def _tell(self, message: dict[str, object]) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:
            return  # whoever asked is gone: the next read says so

    def _fork(self, request: dict[str, object], output: int) -> Birth | None:
        template_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            variables = request["variables"]
            assert isinstance(variables, dict)  # noqa: S101 (for the type checker: we wrote the message ourselves)
            return Birth(template_pid, variables, output)
        os.close(output)
        self._children.add(pid)
        self._tell({"request": request["request"], "pid": pid})
        return None

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.discard(pid)
                self._tell({"pid": pid, "exit_code": os.waitstatus_to_exitcode(status)})

    def _forget_template(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for inherited in (self._control, self._wakeup, self._wakeup_writer):
            inherited.close()


def become_environment(birth: Birth, handler: str) -> None:
    """Run the runtime client in this process, as a new Python would."""
    die_with(birth.template_pid)
    os.setsid()
    for standard in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(birth.output, standard)
    os.close(birth.output)
    os.environ.update(birth.variables)
    gc.unfreeze()
    run_client(handler)


def die_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    # Set before looking at the parent: one that died in between would not be noticed otherwise.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def run_client(handler: str) -> None:
    """Run the runtime client as `python -m awslambdaric` does; the workers that it forks end with it."""
    if MAX_CONCURRENCY in os.environ:
        client_pid = os.getpid()
        is_worker = False

        def after_fork() -> None:
            nonlocal is_worker
            if not is_worker:  # what a handler forks is its own business
                is_worker = True
                die_with(client_pid)

        os.register_at_fork(after_in_child=after_fork)
    sys.argv = ["awslambdaric", handler]
    sys.path.insert(0, str(os.getcwd()))  # noqa: PTH109 (pathlib would be one more import in every environment)
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


def import_ahead() -> None:
    """Import what environments need, but for packages that the function brings along itself."""
    for name in IMPORTED:
        if not os.path.exists(name.partition(".")[0]):  # noqa: PTH110 (as above)
            importlib.import_module(name)
    # Collected once here instead of in every child, where it would copy the shared pages.
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve the control socket whose file descriptor is the first argument; the second is the handler.

    With the handler alone this process itself runs the client.
    """
    *descriptors, handler = sys.argv[1:]
    if not descriptors:
        run_client(handler)
        return
    import_ahead()
    template = Template(socket.socket(fileno=int(descriptors[0])))
    birth = template.serve()
    if birth is None:
        template.kill_children()
    else:
        del template
        become_environment(birth, handler)


if __name__ == "__main__":
    main()
