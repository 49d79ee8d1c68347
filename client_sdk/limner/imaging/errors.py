"""The one error of `limner.imaging`."""


class ImageError(ValueError):
    """An image, or the DICOM that should hold one, cannot be used.

    Attributes
    ----------
    field
        What was wrong: a DICOM keyword, or the name of an argument.
    value
        What was found there, shortened.
    expected
        What would have been accepted.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        text = str(value)
        self.field = field
        self.value = text if len(text) <= 80 else text[:77] + "..."
        self.expected = expected
        super().__init__(f"{field} is {self.value}; expected {expected}")
