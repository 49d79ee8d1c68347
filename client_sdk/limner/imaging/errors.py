"""The one error of `limner.imaging`."""


class ImageError(ValueError):
    """An image, or the DICOM that should hold one, cannot be used.

    Attributes
    ----------
    field
        What was wrong: a DICOM keyword, or the name of an argument.
    value
        What was found there, shortened, and without what could not be printed or sent.
    expected
        What would have been accepted.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        text = str(value)
        text = text if len(text) <= 80 else text[:77] + "..."
        self.field = field
        # Line ends, escape sequences, halves of surrogates: whoever wrote the file may have meant the log.
        self.value = "".join(character if character.isprintable() else " " for character in text)
        self.expected = expected
        super().__init__(f"{field} is {self.value}; expected {expected}")
