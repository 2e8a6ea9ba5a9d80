#!/bin/sh
# Prints the path of a Python 3.11, or one line on what to do and exit status 2. In sh, since there may be no Python
# at all to run anything else. $PYTHON, where it is set, is the only candidate: a choice is not overruled.
is_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython")' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    if is_311 "$PYTHON"; then command -v "$PYTHON"; exit 0; fi
    echo "setup: PYTHON=$PYTHON is not a working CPython 3.11, the version that Horovod 0.28.1 and mrjob 0.7.4 run on: name one, or unset PYTHON to search for it" >&2
    exit 2
fi
for candidate in python3.11 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python3.11 \
        /usr/local/bin/python3.11 /usr/bin/python3.11 /opt/python*/bin/python3.11; do
    if is_311 "$candidate"; then command -v "$candidate"; exit 0; fi
done
echo "setup: no Python 3.11 found (Horovod 0.28.1 and mrjob 0.7.4 do not run on 3.12 and newer): install it with its headers and venv (Debian 12: apt-get install python3.11-dev python3.11-venv), or name it: make setup PYTHON=/path/to/python3.11" >&2
exit 2
