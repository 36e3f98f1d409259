"""boto3's rds-data client for the pool's data endpoint: SQL over HTTPS, without a driver and without a connection.

The client is boto3's own. What is ours are its credentials (the login of the pool's client secret, read at the first
call, and again when it is refused) and the authority by which it verifies the endpoint. Imports boto3, and no psycopg.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import emberpool
from emberpool import settings as names
from emberpool.credentials import Credentials, Login
from emberpool.settings import URL, LayerSettings, SettingsInvalid

try:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.credentials import Credentials as AwsCredentials
    from botocore.credentials import ReadOnlyCredentials
    from botocore.exceptions import SSLError
except ImportError:
    raise ImportError("emberpool.data_client needs boto3: Lambda's own runtimes have it, add it to an image") from None

SERVICE = "rds-data"
READ_SECONDS = 60  # above the endpoint's statement timeout, whose error says more
ATTEMPTS = 5  # with boto3's pauses about ten seconds: a database that fails over, a task that is replaced
# The endpoint takes any: who calls is known by the signature. Any client of the service has to send them.
RESOURCE_ARN, SECRET_ARN = "arn:aws:rds:::cluster:emberpool", "arn:aws:secretsmanager:::secret:emberpool"
# For a signature only, where nothing says which region this is.
NO_REGION = "us-east-1"
MOST_LOGINS = 4  # that one call is tried with: what was cached, AWSCURRENT, AWSPENDING, one written meanwhile
INVOCATION_ID = "amz-sdk-invocation-id"
REFUSED = "emberpool_refused"


def data_client(database: str | None = None, **options: Any) -> Any:
    """Return boto3's rds-data client for the pool's data endpoint. Make it once, beside the handler.

    `database` is one of several, as the decorator's. `options` are those of boto3's `Session.client` (`config`,
    `region_name` and so on) and win over what is set here. resourceArn and secretArn may be left out of its calls. No
    secret is read before the first call, which may then raise SecretUnavailable. Raises SettingsInvalid.
    """
    settings = _settings(database, options)
    session = botocore.session.Session()
    keys = _Keys(settings)
    session.register_component("credential_provider", keys)
    config = Config(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        tcp_keepalive=True,
    )
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or _region(settings)
    given = {"endpoint_url": settings.data_endpoint, "region_name": region, "verify": keys.verify, **options}
    given["config"] = config.merge(options["config"]) if options.get("config") else config
    boto3_session: Any = boto3.Session(botocore_session=session)
    client = boto3_session.client(SERVICE, **given)
    events = client.meta.events
    events.register(f"provide-client-params.{SERVICE}", _with_arns)
    events.register(f"before-sign.{SERVICE}", _sign_invocation_id)
    # Before boto3's own, which may end the call, or wait, where another login is accepted at once.
    events.register_first(f"needs-retry.{SERVICE}", keys.after_refusal)
    return client


def _settings(database: str | None, options: Mapping[str, Any]) -> LayerSettings:
    """Read the layer's settings as far as they matter without a connection: host and mode may be another's."""
    prefixes = dict.fromkeys((database, None))
    variables = [names.variable("data_endpoint", prefix) for prefix in prefixes]
    given = options.get("endpoint_url") or next(filter(None, map(os.environ.get, variables)), None)
    if not given:
        raise SettingsInvalid(f"{variables[0]} must be set: the URL of the pool's data endpoint")
    environment = {**os.environ, variables[0]: given}
    found = URL.fullmatch(given)
    if not environment.get(names.HOST):
        environment[names.HOST] = found[2] if found else given  # a URL of another form is refused by its own name
    for prefix in prefixes:
        environment.pop(names.variable("auth", prefix), None)  # a token of RDS's is no key
        if given.startswith("http:"):
            environment[names.variable("sslmode", prefix)] = "disable"
    return LayerSettings.from_environment(environment, database)


def _region(settings: LayerSettings) -> str:
    parts = (settings.secret_arn or "").split(":")
    return parts[3] if len(parts) > 4 and parts[3] else NO_REGION  # noqa: PLR2004 (an ARN)


def _with_arns(params: Mapping[str, Any], model: Any, **_: Any) -> Mapping[str, Any]:
    members = model.input_shape.members
    defaults = {"resourceArn": RESOURCE_ARN, "secretArn": SECRET_ARN}
    return {**{name: arn for name, arn in defaults.items() if name in members}, **params}


def _sign_invocation_id(request: Any, **_: Any) -> None:
    """Have the signature cover what the endpoint knows a resend by: a replayed request then cannot pass for another."""
    request.headers[INVOCATION_ID] = request.context["retries"]["invocation-id"]


class _Keys(AwsCredentials):
    """The login as botocore's credentials, and their provider; at a refusal the secret is read again."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__("", "", method="emberpool")
        self._settings = settings
        self._source = Credentials(settings)
        self._login: Login | None = None
        self._lock = threading.Lock()  # the source is not made for several threads
        self._used = threading.local()  # which login this thread's request was signed with
        self._authority: int | None = None
        self.verify: bool | str = settings.sslrootcert or settings.verifies
        if settings.verifies and not settings.sslrootcert:
            # In memory: a function may clean /tmp at any time, and urllib3 reads it for every connection.
            self._authority = os.memfd_create("emberpool-authority")
            weakref.finalize(self, os.close, self._authority)
            self.verify = f"/proc/self/fd/{self._authority}"

    def load_credentials(self) -> _Keys:
        """Be botocore's provider of credentials."""
        return self

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return what to sign a request with. Raises SecretUnavailable."""
        login = self._login
        if login is None:
            with self._lock:
                login = self._login or self._use(self._first())
        self._used.login = login
        return ReadOnlyCredentials(login.user, login.password, None, None)

    def after_refusal(
        self, request_dict: Mapping[str, Any], response: Any = None, caught_exception: Any = None, **_: Any
    ) -> int | None:
        """Return 0, to send the call again at once, when another login or authority may be accepted."""
        if not _is_refusal(response) and not isinstance(caught_exception, SSLError):
            return None
        refused: list[Login] = request_dict["context"].setdefault(REFUSED, [])
        used: Login | None = getattr(self._used, "login", None)
        if used is None or len(refused) >= MOST_LOGINS:
            return None
        refused.append(used)
        with self._lock:
            other = self._other_than(refused)
            self._login = None  # if there is none, the next call begins with what is current
            if other is None:
                return None
            self._use(other)
        return 0

    def _other_than(self, refused: list[Login]) -> Login | None:
        self._source.login()  # a new line of attempts
        other = None
        for login in refused:
            other = self._source.after_refusal(login)
        return other

    def _first(self) -> Login:
        login = self._source.login()
        if self._authority is not None and login.ca_certificate is None:
            login = self._source.after_refusal(login) or login
        return login

    def _use(self, login: Login) -> Login:
        if self._authority is not None:
            if login.ca_certificate is None:
                raise emberpool.SecretUnavailable(
                    f"there is no CA certificate in the secret {self._settings.secret_arn}: the proxy writes it when "
                    "it starts; is it running, and may its role write the secret? "
                    f"{self._settings.variable('sslrootcert')} can name a file instead"
                )
            content = login.ca_certificate.encode()
            os.pwrite(self._authority, content, 0)
            os.ftruncate(self._authority, len(content))
        self._login = login
        return login


def _is_refusal(response: Any) -> bool:
    return response is not None and response[1].get("Error", {}).get("Code") == "AccessDeniedException"
