"""The report: one page made of everything in the results folder, that opens from disk and needs no network.

Python gathers (``numbers`` of the papers, ``board`` of the solvers, ``figures``) and writes the page's frame; its
tables are drawn by ``page.js`` from the data in the page, those in view first, so that many thousand rows open at once.
"""

from reproductions.report_page.page import write_report

__all__ = ["write_report"]
