"""A comparison as HTML: one offline file that looks like the report."""

from __future__ import annotations

from fgod.compare import words
from fgod.compare.document import Comparison
from fgod.report.templating import environment


def page(found: Comparison) -> str:
    """The comparison as a page."""
    templates = environment()
    functions = (words.side_line, words.asked_line, words.changed_line, words.asked_of, words.mark)
    templates.globals.update({function.__name__: function for function in functions})
    return templates.get_template("compare.html.j2").render(
        found=found,
        first=found.sides[0].letter,
        metrics=[words.metric_words(row, found.sides[0].letter) for row in found.metrics],
        how=words.HOW,
    )
