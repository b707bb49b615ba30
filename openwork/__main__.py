"""``python -m openwork``: the command line, where the ``openwork`` script is not on the path."""

import sys

from openwork.cli import main

if __name__ == "__main__":
    sys.exit(main())
