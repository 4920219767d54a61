"""`python -m pez_fast`: the command line."""

from pez_fast.cli import main

main()
