"""`python -m mr`."""

import sys

from mr.cli import main

if __name__ == "__main__":
    sys.exit(main())
