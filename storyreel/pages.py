"""HTML pages, from templates that lie beside the code that fills them."""

from __future__ import annotations

from pathlib import Path


def filled(template: Path, **values: object) -> str:
    """Return a jinja2 template with ``values`` put in. All of them are escaped: no text becomes markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
