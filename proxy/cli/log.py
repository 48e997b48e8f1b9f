"""Where log lines go: stderr, one line each."""

from __future__ import annotations

import logging
import os
import sys

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LineFormatter(logging.Formatter):
    """Makes one printable line of a record, so that no peer can forge lines or drive a terminal.

    Tracebacks keep their lines. ``journal``: lines begin with a priority for systemd's journal
    (sd-daemon(3)), which adds the time itself. ``prefix`` says which process writes.
    """

    def __init__(self, journal: bool, prefix: str = "") -> None:
        message = f"{prefix}%(message)s"
        super().__init__(message if journal else f"%(asctime)s %(levelname)s {message}")
        self._journal = journal

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's own line, escaped."""
        line = super().formatMessage(record)
        line = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
        )
        return f"<{_priority(record.levelno)}>{line}" if self._journal else line


def set_up(level: str, prefix: str = "") -> None:
    """Log to stderr from ``level`` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("JOURNAL_STREAM" in os.environ, prefix))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])


def _priority(level: int) -> int:
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7
