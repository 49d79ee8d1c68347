"""The kinds of results that a gateway sends; apart from what makes them, so that the command's help needs no DICOM."""

from enum import StrEnum


class Kind(StrEnum):
    """A kind of result."""

    REPORT = "report"
    """What the model says of a series, as Comprehensive 3D SR."""
    HEAT_MAP = "heat-map"
    """Where it looks in every slice, as Parametric Map."""
    PICTURE = "picture"
    """The same over a few slices, as Secondary Capture, for viewers without parametric maps."""


DEFAULT = (Kind.REPORT,)
"""A coloured slice in a study is easily taken for a finding, and many a PACS refuses parametric maps."""
