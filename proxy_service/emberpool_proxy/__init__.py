"""emberpool's pooling proxy: an agent that makes PgBouncer safe to run unattended.

`python -m emberpool_proxy` is its one entry; see docs/proxy.md.
"""
