"""The layer's table of EMBERPOOL_ variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emberpool import settings as names
from emberpool.settings import LayerSettings, SettingsInvalid

VALID = {
    names.HOST: "proxy.internal",
    names.USER: "function",
    names.SECRET_ARN: "arn:aws:secretsmanager:eu-west-1:123456789012:secret:client",
    names.SSLMODE: "require",
}


def test_defaults_are_complete() -> None:
    """Four variables are enough; the rest has defaults."""
    settings = LayerSettings.from_environment(VALID)
    assert (settings.host, settings.port, settings.sslmode) == ("proxy.internal", 6432, "require")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({names.HOST: ""}, "EMBERPOOL_HOST must be set"),
        ({names.USER: ""}, "EMBERPOOL_USER must be set"),
        ({names.PORT: "fast"}, "EMBERPOOL_PORT must be a whole number, got 'fast'"),
        ({names.PORT: "70000"}, "EMBERPOOL_PORT must be between 1 and 65535, got 70000"),
        ({names.CONNECT_TIMEOUT_SECONDS: "1"}, "must be between 2 and 60, got 1"),
        ({names.DEADLINE_MARGIN_MS: "-1"}, "must be between 0 and 60000, got -1"),
        ({names.SSLMODE: "prefer"}, "EMBERPOOL_SSLMODE must be one of .*, got 'prefer'"),
        ({names.SSLMODE: "verify-full", names.AUTH: "iam"}, "EMBERPOOL_SSLROOTCERT must name the CA's file"),
        ({names.SECRET_ARN: ""}, "exactly one of EMBERPOOL_SECRET_ARN .* and EMBERPOOL_PASSWORD .*, got neither"),
        ({names.PASSWORD: "hush"}, "got both"),
    ],
)
def test_wrong_value_is_named(changed: dict[str, str], message: str) -> None:
    """Each wrong value gives one error that names the variable, the value and what is allowed."""
    with pytest.raises(SettingsInvalid, match=message) as caught:
        LayerSettings.from_environment({**VALID, **changed})
    assert "hush" not in str(caught.value)


def test_repr_hides_the_password() -> None:
    """Settings may be logged."""
    settings = LayerSettings(host="h", user="u", password="hush", sslmode="require")
    assert "hush" not in repr(settings)


def test_reading_the_settings_needs_no_driver() -> None:
    """infra imports the settings at synth, where psycopg is not installed."""
    code = "import sys; from emberpool import settings; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
