"""Who may log in where: the pool at the database, clients at the pool."""
