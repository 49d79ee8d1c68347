"""The report: one HTML file that shows a cohort, its model, what the model looks at, and how far to believe it.

Needs the extra `limner[report]`. Not for computing anything that a card or a reply already states.
"""

from limner.report.report import HeatMapExample, RealSlice, ReportData, verdict_words, write_report

__all__ = ["HeatMapExample", "RealSlice", "ReportData", "verdict_words", "write_report"]
