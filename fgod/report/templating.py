"""How templates become pages: one offline file each, with the style of report.css."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fgod.report.phrases import LABELS, decided, described, listed, say, short
from fgod.report.words import NAMES


def environment() -> Environment:
    """Templates of templates/; all that they show is escaped, and a name that is not known is an error."""
    templates = Environment(
        loader=PackageLoader("fgod.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(say=say, language_names=NAMES, label_names=LABELS, **_script())
    templates.filters.update(decided=decided, described=described, listed=listed, short=short)
    return templates


def _script() -> dict[str, Markup]:
    """The page's script, and its digest for the Content-Security-Policy: no other script runs, whatever models say."""
    text = files("fgod.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    sha256 = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_sha256": Markup(sha256)}
