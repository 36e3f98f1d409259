"""A burst of invocations at a fleet: firing it, watching the database meanwhile, and what came out."""
