"""The RDS Data API (rds-data, 2018-08-01) over HTTP, in front of the PgBouncer of the same task."""
