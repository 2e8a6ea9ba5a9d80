"""`python -m engine.doctor --data DATA`: examine a dataset and tell what is damaged."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from engine.bytes_shown import BytesShown
from engine.command import INTERRUPTED
from native.format import MANIFEST, DatasetError, read_manifest
from native.verify import Report, verify


def examine(data: str, as_json: bool, brief: bool) -> int:
    """Examine a dataset, print what is wrong with it, and return the exit status.

    Args:
        data: the dataset's folder.
        as_json: print one JSON object instead of text.
        brief: leave the summary out.

    Returns:
        0 nothing is wrong, 1 something is, 2 there is no dataset.
    """
    folder = Path(data)
    if not os.path.exists(folder / MANIFEST):
        try:
            read_manifest(folder)
        except DatasetError as error:
            print(f"engine.doctor: --data {error}", file=sys.stderr)
        return 2
    try:
        report = _verified(folder)
    except KeyboardInterrupt:
        print("engine.doctor: interrupted", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps({"data": data, **asdict(report)}))
    else:
        lines = [f"note: {note}" for note in report.notes] + [f"wrong: {problem}" for problem in report.problems]
        print("".join(f"{line}\n" for line in (lines if brief else [*lines, _summary(data, report)])), end="")
    return 1 if report.problems else 0


def _verified(folder: Path) -> Report:
    with ExitStack() as stack:
        shown: BytesShown | None = None
        before = 0

        def tell(done: int, whole: int) -> None:
            nonlocal shown, before
            if shown is None:
                shown = stack.enter_context(BytesShown(f"examining {folder}", whole, True, _say))
            shown.add(done - before)
            before = done

        return verify(folder, tell)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _summary(data: str, report: Report) -> str:
    count = len(report.problems)
    verdict = "all is right" if not count else "1 problem" if count == 1 else f"{count} problems"
    return (
        f"{data}: {verdict}; {report.parts} parts of {report.bytes / 1e6:,.1f} MB, {report.rows:,} rows in "
        f"{report.chunks:,} chunks read"
    )
