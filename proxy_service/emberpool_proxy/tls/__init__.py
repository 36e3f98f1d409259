"""TLS on both sides of the proxy: the certificate for clients, who signs it, and who may sign the database's."""
