"""report.html from results/tables alone: one file, offline, no request to anywhere.

`reading` reads and checks the tables, `svg` draws, `page` decides what is shown, templates/ say how it looks.
"""

from fgod.report.page import render, write_report

__all__ = ["render", "write_report"]
