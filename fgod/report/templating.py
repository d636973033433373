"""How templates become pages: one offline file each, with the style of report.css."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Templates of templates/; all that they show is escaped, and a name that is not known is an error."""
    return Environment(
        loader=PackageLoader("fgod.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
