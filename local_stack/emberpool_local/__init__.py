"""The same parts on one machine, without AWS: the `emberpool` command and the servers, fleet and reports behind it."""
