"""Why a job failed on a cluster: the one line of its log that says it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

OUR_PACKAGES = ("mr", "native", "mrjob")
_MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError): No module named '?([\w.]+)'?")
_NO_PYTHON = re.compile(r'Cannot run program "([^"]*python[^"]*)"')
_OTHER_PYTHON = re.compile(r"PYTHON_VERSION_MISMATCH|Python in worker has different version")
# A Python error as a traceback ends with it, not one of Java's, whose names have dots.
_PYTHON_ERROR = re.compile(r"\s*([A-Za-z_]\w*(?:Error|Exception|Interrupt|Malformed)\b.*)")
_JAVA_ERROR = re.compile(r".*?\b((?:java|org\.apache)\.[\w.$]*(?:Error|Exception): .+)")
_SHOWN_CHARACTERS = 300


def cause_of_failure(lines: Sequence[str], python: Sequence[str]) -> str:
    """What the log gives as the first cause; "" where it says nothing that is known.

    Args:
        lines: of the log.
        python: the command that starts Python on the workers.
    """
    command = " ".join(python)
    for line in lines:
        missing = _MISSING.search(line)
        if missing and missing[1].partition(".")[0] in OUR_PACKAGES:
            return (
                f"the workers' Python ({command}) has no package {missing[1]}; install this project's wheel on every "
                "worker, or name the Python that has it as python_bin in mrjob.conf"
            )
        no_python = _NO_PYTHON.search(line)
        if no_python:
            return (
                f"there is no {no_python[1]} on a worker; install this project there, or name the Python that has it "
                "as python_bin in mrjob.conf"
            )
        if _OTHER_PYTHON.search(line):
            return (
                f"the workers' Python ({command}) is of another version than this one; every host needs the same, "
                "named as python_bin in mrjob.conf"
            )
    for pattern in (_PYTHON_ERROR, _JAVA_ERROR):
        found = next(filter(None, map(pattern.match, lines)), None)
        if found:
            return found[1].strip()[:_SHOWN_CHARACTERS]
    return ""
