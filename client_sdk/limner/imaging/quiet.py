"""What DICOM libraries remark by themselves, kept off the terminal and out of the logs of our programs.

They quote what a header holds or what a PACS was asked for, which may be a name, and log what each codec raised with
its stack. What matters of it is in our own errors. The SDK as a library leaves that to its caller. A panic of the RLE
decoder, which is Rust, prints three lines of its own all the same.
"""

import logging
import warnings

_QUOTING = ("pydicom", "openjpeg", "pynetdicom", "highdicom", "dicomweb_client", "urllib3", "retrying")


def hush_dicom() -> None:
    """Silence the loggers and warnings of DICOM libraries in this process."""
    for name in _QUOTING:
        logger = logging.getLogger(name)
        logger.propagate = False  # not by its level, which pydicom sets anew when it is imported
        logger.addHandler(logging.NullHandler())
        warnings.filterwarnings("ignore", module=rf"{name}\b")
