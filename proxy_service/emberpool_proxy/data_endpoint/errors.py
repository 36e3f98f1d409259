"""The errors of the data endpoint: each is one of the service's own, so that every client library knows its type."""

from __future__ import annotations

ACCESS_DENIED = "AccessDeniedException"
BAD_REQUEST = "BadRequestException"
DATABASE_ERROR = "DatabaseErrorException"
DATABASE_NOT_FOUND = "DatabaseNotFoundException"
DATABASE_UNAVAILABLE = "DatabaseUnavailableException"
FORBIDDEN = "ForbiddenException"
INTERNAL = "InternalServerErrorException"
NOT_FOUND = "NotFoundException"
SERVICE_UNAVAILABLE = "ServiceUnavailableError"
STATEMENT_TIMEOUT = "StatementTimeoutException"
THROTTLED = "ThrottlingException"  # in no model, but every SDK waits and tries again
TRANSACTION_NOT_FOUND = "TransactionNotFoundException"
UNSUPPORTED_RESULT = "UnsupportedResultException"

# As in the service's model. Those of 500 and above are sent again by the SDKs: only before a statement could have run.
STATUS = {
    ACCESS_DENIED: 403,
    BAD_REQUEST: 400,
    DATABASE_ERROR: 400,
    DATABASE_NOT_FOUND: 404,
    DATABASE_UNAVAILABLE: 504,
    FORBIDDEN: 403,
    INTERNAL: 500,
    NOT_FOUND: 404,
    SERVICE_UNAVAILABLE: 503,
    STATEMENT_TIMEOUT: 400,
    THROTTLED: 429,
    TRANSACTION_NOT_FOUND: 404,
    UNSUPPORTED_RESULT: 400,
}


class DataError(Exception):
    """An answer that is an error: `kind` is the service's name of it. The message goes to the client as it is."""

    def __init__(self, kind: str, message: str, **members: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.members = members  # beside the message: a statement timeout's dbConnectionId

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]


def bad_request(message: str) -> DataError:
    """Return the error for a request that is wrong in itself."""
    return DataError(BAD_REQUEST, message)
