"""What pydicom and its codecs remark by themselves, kept off the terminal and out of the logs of our programs.

pydicom warns of each oddity of a header with the value that it found, which may be a name, and logs what each codec
raised with its stack. What matters of it is in the `ImageError`. The SDK as a library leaves that to its caller.
The RLE decoder is Rust: what it prints when it panics is printed all the same.
"""

import logging
import warnings


def hush_pydicom() -> None:
    """Silence the loggers and warnings of pydicom and its codecs in this process."""
    for name in ("pydicom", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom\b")
