"""`python -m benchmarks.layer.secrets_extension`: stands in for AWS's secrets extension, on two ports.

One answers as the extension does in a new environment, whose cache is empty: it asks Secrets Manager itself, by a
client that is ready. The other refuses, as the extension does while the environment initialises. It prints both ports
and ends when its standard input is closed.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit


@contextmanager
def running_extension(environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Run it with the AWS variables in `environment`; the port that answers and the port that refuses."""
    command = [sys.executable, "-m", "benchmarks.layer.secrets_extension"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        assert process.stdout is not None
        answering, refusing = process.stdout.readline().split()
        yield int(answering), int(refusing)


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(400, b"not ready to serve traffic, please wait")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        del format, args


def _answering() -> type[_Refusing]:
    import boto3  # noqa: PLC0415 (the process that starts this one does not need it)

    client = boto3.client("secretsmanager")

    class Answering(_Refusing):
        def do_GET(self) -> None:
            secret_arn = parse_qs(urlsplit(self.path).query)["secretId"][0]
            text = client.get_secret_value(SecretId=secret_arn)["SecretString"]
            self._answer(200, json.dumps({"SecretString": text}).encode())

    return Answering


def main() -> None:
    """Serve until standard input is closed."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_answering(), _Refusing)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(*(server.server_port for server in servers), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
