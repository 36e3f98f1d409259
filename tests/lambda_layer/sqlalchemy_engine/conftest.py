"""An engine on the warm connection of a real PostgreSQL, and a mapped table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from emberpool.sqlalchemy import engine as engine_on

from ..conftest import Environment


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "ledger"
    id: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine(environment: Environment) -> Iterator[sqlalchemy.Engine]:
    made = engine_on()
    yield made
    made.dispose()


def pid_of(engine: sqlalchemy.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("select pg_backend_pid()"))
