"""`python -m fgod` is `fgod`."""

import sys

from fgod.cli import main

if __name__ == "__main__":
    sys.exit(main())
