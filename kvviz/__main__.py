"""`python -m kvviz` is the `kvviz` command."""

import sys

from kvviz.cli import main

if __name__ == "__main__":
    sys.exit(main())
