"""The report of runs: one HTML file that needs nothing else, made from what their folders hold."""

from nas.show.report.page import REPORT, render, write_report

__all__ = ["REPORT", "render", "write_report"]
