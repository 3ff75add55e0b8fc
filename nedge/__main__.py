"""`python -m nedge` is the `nedge` command."""

from nedge.cli import main

main()
