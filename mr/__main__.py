"""`python -m mr`."""

import signal
import sys

# Until the command listens, Ctrl-C ends it as SIGTERM does: without a traceback of the imports.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from mr.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
