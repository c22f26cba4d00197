"""`python -m localr1` is `localr1`."""

from localr1.cli import main

main()
