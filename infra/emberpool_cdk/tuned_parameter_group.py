"""The parameter group of a database behind the pool: RDS instance or Aurora cluster."""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import aws_rds as rds
from constructs import Construct

from emberpool_cdk.tuned_parameters import (
    IDLE_IN_TRANSACTION_SECONDS,
    IDLE_SESSION_SECONDS,
    as_group,
    tuned_parameters,
)

ENGINES = ("postgres", "aurora-postgresql")


class TunedParameterGroup(rds.ParameterGroup):
    """Parameters for serverless clients; pass it as `parameter_group` of an instance or of a cluster.

    `PoolDatabase.from_instance` and `from_cluster` find `max_connections` in it; without, RDS computes it from the
    memory. Some take effect with a restart only (max_connections, shared_preload_libraries), which you do. 0 turns a
    timeout off. `parameters` are further ones, or other values.

    Raises ValueError for an engine other than PostgreSQL's, a value out of range, or a timeout that would end the
    pool's own sessions.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        engine: rds.IEngine,
        max_connections: int | None = None,
        idle_session_seconds: float = IDLE_SESSION_SECONDS,
        idle_in_transaction_seconds: float = IDLE_IN_TRANSACTION_SECONDS,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        if engine.engine_type not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine.engine_type}")
        tuned = tuned_parameters(
            max_connections=max_connections,
            idle_session_seconds=idle_session_seconds,
            idle_in_transaction_seconds=idle_in_transaction_seconds,
        )
        super().__init__(
            scope,
            construct_id,
            engine=engine,
            description="emberpool: for clients that come in crowds and vanish",
            parameters=as_group(tuned, major_version=_major_version(engine), overrides=parameters or {}),
        )


def _major_version(engine: rds.IEngine) -> int | None:
    version = engine.engine_version
    number = (version.major_version if version else "").split(".")[0]
    return int(number) if number.isdigit() else None
