"""`python -m ubond` is the `ubond` command."""

import sys

from ubond.cli import main

if __name__ == "__main__":
    sys.exit(main())
