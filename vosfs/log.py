"""Logging and last resorts: one format, and stacks on SIGUSR1."""

import faulthandler
import logging
import signal
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = ("debug", "info", "warning", "error")


def start(level: str, file: str | None = None) -> None:
    """Log to stderr, or to a file of this user only; SIGUSR1 prints the stacks of all threads there."""
    if file:
        handler: logging.Handler = logging.FileHandler(file)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    faulthandler.register(signal.SIGUSR1, file=handler.stream if file else sys.stderr, all_threads=True)  # type: ignore[attr-defined]
