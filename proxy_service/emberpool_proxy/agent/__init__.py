"""The agent: makes PgBouncer safe to run unattended. It renders, watches and drains; it is never in a query's way."""
