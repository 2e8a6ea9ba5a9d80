"""The one line that says why a job failed on a cluster."""

import pytest

from mr.causes import cause_of_failure

PYTHON = ["/opt/python3.11"]


@pytest.mark.parametrize(("log", "told"), [
    ("Traceback:\nModuleNotFoundError: No module named 'native'\nValueError: 1", "no package native"),
    ("  ModuleNotFoundError: No module named 'mr.clean'", "no package mr.clean"),
    ("ModuleNotFoundError: No module named 'pandas'", "ModuleNotFoundError: No module named 'pandas'"),
    ('java.io.IOException: Cannot run program "/opt/python3.11": error=2', "there is no /opt/python3.11 on a worker"),
    ("[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9", "/opt/python3.11) is of another version"),
    ("at org.x\nZeroDivisionError: division by zero\nValueError: later", "ZeroDivisionError: division by zero"),
    ("Caused by: java.io.IOException: No space left", "java.io.IOException: No space left"),
    ("INFO all is well", ""),
    ("", ""),
])  # fmt: skip
def test_the_cause(log, told):
    found = cause_of_failure(log.splitlines(), PYTHON)
    assert told in found
    assert bool(told) == bool(found)
