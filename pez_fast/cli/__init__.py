"""The command `pez-fast`. It prints results on stdout and all else on stderr, and imports torch only if it must."""

import pez_fast.cli.learning  # the help lists the commands in the order of these imports

# isort: split
import pez_fast.cli.mix

# isort: split
import pez_fast.cli.style

# isort: split
import pez_fast.cli.classify

# isort: split
import pez_fast.cli.batch
import pez_fast.cli.classify_looking
import pez_fast.cli.describing
import pez_fast.cli.export
import pez_fast.cli.generate
import pez_fast.cli.looking
import pez_fast.cli.study
import pez_fast.cli.through_diffusion  # noqa: F401
from pez_fast.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line."""
    app()
