"""`python -m mr`."""

import signal
import sys

# Until the command listens, Ctrl-C ends it as SIGTERM does: without a traceback of the imports.
signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    from mr.cli import main
except ModuleNotFoundError as error:
    print(
        f"mr: {sys.executable} has no {error.name}, so it is not the Python that make setup has made: use "
        ".venv/bin/python, or first source .venv/bin/activate",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
