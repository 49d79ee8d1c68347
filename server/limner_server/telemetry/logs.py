"""Logs as JSON, one object a line on standard error, so that a collector need not guess.

What is bound with `structlog.contextvars` during a call, its request id above all, stands in every line of it.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from limner.imaging.quiet import hush_dicom


def configure(level: str, **everywhere: str) -> None:
    """Send all logs of at least `level` ("debug" to "error") to standard error, each with what holds `everywhere`."""

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.update(everywhere)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        add,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    hush_dicom()
