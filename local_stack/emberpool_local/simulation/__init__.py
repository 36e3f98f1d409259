"""A fleet in virtual time: the real decisions, a modelled database, modelled PgBouncers, faults and oracles."""
