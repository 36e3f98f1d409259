"""How far an invocation of a transfer is, in the words of the line that it prints when it fails."""

BEFORE_HANDLER = "before the handler"
FIRST_STATEMENT = "first statement"
LATER_STATEMENT = "later statement"
COMMIT = "commit"
