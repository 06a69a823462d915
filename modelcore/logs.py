"""Log lines one can grep: time in UTC, level, message, on standard error."""

import logging
import sys
import time

from modelcore import launch


def of_rank() -> str:
    """What begins a line of one of several processes that does not speak for all: ``rank 3: ``; else nothing."""
    return f"rank {launch.rank()}: " if launch.rank() > 0 else ""


def configure(level: int = logging.INFO) -> None:
    """Sends log records of modelcore to standard error; does nothing where a handler is set already.

    Of processes that torchrun launched together, those that do not speak for all say only what goes wrong.
    """
    logger = logging.getLogger("modelcore")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    form = f"%(asctime)sZ %(levelname)s {of_rank()}%(message)s"
    formatter = logging.Formatter(form, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.setLevel(level if launch.rank() == 0 else max(level, logging.ERROR))
    logger.propagate = False
