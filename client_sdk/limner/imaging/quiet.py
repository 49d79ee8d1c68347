"""pydicom's own remarks, kept off the terminal and out of the logs of our programs.

It warns of each oddity of a header with the value that it found, which may be a name, and logs what each codec raised
with its stack. What matters of it is in the `ImageError`. The SDK as a library leaves that to its caller.
"""

import logging
import warnings


def hush_pydicom() -> None:
    """Silence pydicom's logger and warnings in this process."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\b")
