"""One HTML page that needs nothing but itself: the manner that all our pages share.

Owns the templates' environment, plotly.js and the file; what stands on a page is its own module's.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from emberpool_local.errors import LocalStackError

SHARED = PackageLoader("emberpool_local.report")  # base.html.j2 and style.css


class PageNotWritable(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The page cannot be written where it was asked for."""


def templates(folder: Path | None = None) -> Environment:
    """Return the environment of the shared templates and of those in `folder`; every text is escaped."""
    own = [FileSystemLoader(folder)] if folder else []
    return Environment(
        loader=ChoiceLoader([*own, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def document(template: str, *, folder: Path | None = None, **parts: object) -> str:
    """Return the page of a template that extends base.html.j2: about 5 MB, most of them plotly.js."""
    # Our own JavaScript, from the package.
    plotly_js = Markup(get_plotlyjs())  # noqa: S704
    return templates(folder).get_template(template).render(plotly_js=plotly_js, **parts)


def write_document(text: str, path: Path) -> None:
    """Write the page. Raises PageNotWritable."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PageNotWritable(
            f"{path} cannot be written: {error.strerror}", "name another file for the page"
        ) from error


def shown_moment(measured_at: str) -> str:
    """Write an ISO 8601 time of UTC as people read it."""
    return datetime.fromisoformat(measured_at).strftime("%Y-%m-%d at %H:%M UTC")
