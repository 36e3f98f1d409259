"""How the pool does, for people and machines: readings become samples, and those /metrics, EMF lines and /status."""
