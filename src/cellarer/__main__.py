"""`python -m cellarer`."""

from cellarer.cli.main import main

main()
