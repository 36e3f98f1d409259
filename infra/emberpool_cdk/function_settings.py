"""Which of the layer's settings `attach` writes itself, and which it takes from you."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields

from emberpool.settings import LayerSettings, SettingsInvalid, variable
from emberpool_cdk.chosen_settings import Chosen, chosen_variables

NOT_CHOSEN: Mapping[str, str] = {
    "host": "it is the pool's endpoint",
    "port": "it is the pool's port",
    "database": "it is the pool's, or the entry of the client",
    "user": "it is the pool's, or the client's",
    "secret_arn": "it is the pool's, or the client's",
    "password": "a function's environment holds no secret: the layer reads it from Secrets Manager",
    "sslmode": "functions verify the proxy",
    "sslrootcert": "the secret has the authority's certificate",
    "auth": "the proxy takes passwords; IAM tokens are for functions that connect to RDS itself",
    "data_endpoint": "it is the pool's, where it has one",
    "name": "attach(function, name=...) says it",
}
CHOOSABLE = tuple(f.name for f in fields(LayerSettings) if f.name not in NOT_CHOSEN)
TOKEN = re.compile(r"\$\{Token\[[^\]]*\]\}")  # as the CDK writes what it does not know yet into a text
PLACEHOLDER = "filled-in-at-deployment"  # what only CloudFormation knows


def function_variables(values: Mapping[str, str], settings: Chosen, name: str | None) -> dict[str, str]:
    """Return the function's variables: `values` of the pool, and `settings`, of the database that is called `name`.

    Raises ValueError for a setting that is unknown, not to be chosen, or that the layer would refuse.
    """
    chosen = chosen_variables(settings, CHOOSABLE, NOT_CHOSEN, lambda field: variable(field, name))
    variables = {variable(field, name): value for field, value in values.items()} | chosen
    try:
        LayerSettings.from_environment({each: _shown(value) for each, value in variables.items()}, name)
    except SettingsInvalid as invalid:
        raise ValueError(f"the function would not start: {invalid}") from None
    return variables


def _shown(value: str) -> str:
    return TOKEN.sub(PLACEHOLDER, value)
