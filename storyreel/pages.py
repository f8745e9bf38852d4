"""HTML pages, from templates that lie beside the code that fills them."""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def filled(template: Path, **values: object) -> str:
    """Return a jinja2 template with ``values`` put in. All of them are escaped: no text becomes markup."""
    return _environment(template.parent).get_template(template.name).render(values)


@cache
def _environment(folder: Path) -> Environment:
    """Return what reads a folder's templates, each once as long as its file stays as it is."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def address(path: str) -> str:
    """Return a relative path with slashes as a page names it: what an address reads otherwise is encoded."""
    return PurePosixPath("/", path).as_uri().removeprefix("file:///")
