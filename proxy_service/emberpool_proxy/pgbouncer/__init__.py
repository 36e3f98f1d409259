"""PgBouncer as the proxy runs it: config renders its files, process runs it, admin speaks to its console."""
