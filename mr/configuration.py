"""What mrjob.conf says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrjob.conf import combine_dicts, load_opts_from_mrjob_confs

from mr.errors import UsageError
from mr.job import RUNNERS_HERE, silence_mrjob


def read_configuration(runner: str, conf: Path | None) -> dict[str, Any]:
    """The runner's section, with the last word on each option.

    Args:
        runner: one of RUNNERS.
        conf: a file; None: none for inline and local, and mrjob's usual places for the others.

    Raises:
        UsageError: it cannot be read.
    """
    if conf is None and runner in RUNNERS_HERE:
        return {}
    if conf is not None and not conf.is_file():
        raise UsageError(f"--conf-path {conf}: no such file; see examples/mrjob.conf.example")
    silence_mrjob()  # it warns of sections that are not there
    try:
        loaded = load_opts_from_mrjob_confs(runner, None if conf is None else [str(conf)])
        return dict(combine_dicts(*(section for _, section in loaded)))
    except Exception as error:  # yaml's own, and whatever its contents lead to
        reason = " ".join(str(error).split())
        raise UsageError(f"{conf or 'mrjob.conf'}: cannot be read ({reason}); correct it") from None
