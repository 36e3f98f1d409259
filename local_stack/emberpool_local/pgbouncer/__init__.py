"""PgBouncer for this machine: the system's, or one that is built once from the distribution's source package."""
