"""An embedded PostgreSQL: which one, and a throwaway server of it."""
