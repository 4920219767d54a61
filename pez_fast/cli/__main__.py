"""`python -m pez_fast.cli`."""

from pez_fast.cli import main

main()
