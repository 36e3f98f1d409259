"""`python -m emberpool_local` is the `emberpool` command."""

from emberpool_local.cli import main

if __name__ == "__main__":
    main()
