"""The documentation as a site: `sphinx-build -W docs docs/_build` (extra docs), with the library installed.

Sphinx, because the docstrings are Google's sections of reStructuredText (its roles, tables and literals), which it
reads as they are; MyST, because the pages are Markdown.
"""

from __future__ import annotations

import itertools
import operator
import re

import dcgan_fast

project = "dcgan_fast"
version = release = dcgan_fast.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"dcgan_fast {release}"
html_show_copyright = False

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are told with their class, and not a second time by autodoc
napoleon_use_rtype = False

_ENTRY = re.compile(r"(\w+(?:, \w+)*):\s+(\S.*)")


def _list_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """Make definition lists of paragraphs that are lines of ``name: what it is``, as our small classes tell theirs."""
    paragraphs = [list(part) for blank, part in itertools.groupby(lines, _is_blank) if not blank]
    lines[:] = [line for part in paragraphs for line in (*_defined(part), "")]


def _is_blank(line: str) -> bool:
    return not line.strip()


def _defined(part: list[str]) -> list[str]:
    entries = [_ENTRY.match(line) for line in part]
    follows = [line.startswith("  ") for line in part]
    if (
        entries[0] is None
        or sum(map(bool, entries)) < 2
        or not all(map(operator.or_, map(bool, entries), follows))
    ):
        return part
    pairs = zip(part, entries, strict=True)
    return [
        line
        for old, entry in pairs
        for line in ((f"``{entry[1]}``", f"    {entry[2]}") if entry else (f"    {old.strip()}",))
    ]


def _skip(app, what, name, obj, skip, options) -> bool | None:
    """Leave out what scikit-learn adds to its estimators, whose texts refer to its own pages."""
    return True if getattr(obj, "__module__", "").startswith("sklearn") else None


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _list_fields, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
