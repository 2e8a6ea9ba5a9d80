"""How `make docs` builds build/docs: docs/*.md and README.md as they stand, and the API from the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from command_help import help_of  # noqa: E402 -- found beside this file

project = "uneven-engine"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "Training for GPUs that are not all alike"
html_copy_source = html_show_sourcelink = False
html_show_copyright = html_show_sphinx = False
html_static_path, html_css_files = ["_static"], ["pages.css"]

# Headings are anchors by GitHub's rules, so that a link holds in the checkout and in the built pages alike.
myst_heading_anchors = 4

# Docstrings are Google style, and what stands in single backticks is code.
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# What stands before a colon under "Returns:" is prose too, not a type to be linked.
napoleon_use_rtype = False
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

# Every name in a signature must be one of these pages', or belong to a package that documents itself elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(np|numpy|torch|nn|pathlib|collections|typing|os|weakref|threading)\..*"),
    (r"py:.*", r"(Any|Callable|Iterator|Iterable|Sequence|Mapping|Path|Tensor|PathLike|Protocol|WeakSet)"),
    # Attributes that show where they come from, and are of no use without the rest of the engine.
    (
        r"py:.*",
        r"engine\.heartbeat\.Heartbeat|(engine\.display\.)?Display|(engine\.watch\.)?Watch|(engine\.trace\.)?Trace|native\.reader\.ChunkReader|native\.vocabulary\.WordTable",
    ),
]


def keep_as_written(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon for a type; a field's line here is prose."""
    if what in ("attribute", "data", "property"):
        prose = app.env.temp_data.setdefault("prose", {})
        lines[:] = prose.pop((what, name), None) or prose.setdefault((what, name), list(lines))


def shorten(
    app: Any, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that is a lambda says nothing; and where it is a field's, its arguments are not the field's."""
    if getattr(obj, "__name__", "") == "<lambda>":
        return "", None
    return re.sub(r"<(function|factory)[^,]*>", "...", signature) if signature else signature, returns


class Commands(Directive):
    """`.. command:: MODULE ...`: a section for each `python -m MODULE`, with what it prints for --help."""

    required_arguments, optional_arguments = 1, 1000

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of the arguments."""
        sections: list[nodes.Node] = []
        for module, text in help_of(self.arguments).items():
            section = nodes.section(ids=[module.replace(".", "-")])
            section += [nodes.title(text=module), nodes.literal_block(text=text, language="text")]
            sections.append(section)
        return sections


def setup(app: Any) -> None:
    """Before and after Napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", keep_as_written, priority=400)
    app.connect("autodoc-process-docstring", keep_as_written, priority=600)
    app.connect("autodoc-process-signature", shorten)
    app.add_directive("command", Commands)
