"""The report: one HTML file that shows a cohort, its model, what the model looks at, and how far to believe it.

`collect` gathers what a server and a folder of DICOM know, `write_report` and `write_figures` show it. Needs the extra
`limner[report]`. Not for computing anything that a card or a reply already states.
"""

from limner.report.collect import LAYERS, cohort_slices, collect, read_simulation
from limner.report.data import HeatMapExample, RealSlice, ReportData
from limner.report.report import write_figures, write_report
from limner.report.words import not_measured, verdict_words

__all__ = [
    "LAYERS",
    "HeatMapExample",
    "RealSlice",
    "ReportData",
    "cohort_slices",
    "collect",
    "not_measured",
    "read_simulation",
    "verdict_words",
    "write_figures",
    "write_report",
]
