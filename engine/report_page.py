"""The page about one run or several: what engine/templates shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.report_compare import comparison
from engine.report_record import Record
from engine.report_run import RunView, view_of

TEMPLATES = Path(__file__).with_name("templates")


def page(records: Sequence[Record]) -> str:
    """The whole page; equal records give equal bytes.

    Args:
        records: of one run or several; several are compared before each is shown.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    names = names_of([record.folder for record in records])
    runs: list[RunView] = [
        view_of(record, name, f"r{number}") for number, (record, name) in enumerate(zip(records, names, strict=True))
    ]
    return environment.get_template("report.html").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        title=f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        comparison=comparison(runs) if len(runs) > 1 else None,
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Folders by as many of their last parts as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
