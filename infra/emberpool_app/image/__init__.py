"""The proxy's image as `make image` makes and tries it: docker's command line, one container, the smoke test."""
