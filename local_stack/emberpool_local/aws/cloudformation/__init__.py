"""The CloudFormation types that moto skips or breaks on, each made by moto's own API of the service."""

from emberpool_local.aws.cloudformation import (
    container_service,
    database,
    discovery,
    functions,
    load_balancing,
    monitoring,
    network,
    parameters,
    scaling,
    secrets,
    storage,
)


def register_all() -> None:
    """Teach moto every type of this package; call it once, after `repairs.apply()`."""
    for service in (
        secrets,
        network,
        database,
        discovery,
        container_service,
        load_balancing,
        monitoring,
        scaling,
        functions,
        parameters,
        storage,
    ):
        service.register_types()
