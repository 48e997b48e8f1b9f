"""The file that holds the secret shared by a proxy and its gateway."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from proxy.errors import ConfigError

SECRET_LENGTH = 32
MAX_SECRETS = 4  # one in use, the others on their way out


def read_secrets(file: Path, path: str) -> tuple[bytes, ...]:
    """The secrets in ``file``, the one in use first.

    One secret of 32 bytes in base64 per line, as ``mptcp-proxy keygen`` writes it; blank lines and
    lines that begin with ``#`` do not count. A file that others than its owner may read or write is
    refused. ``path`` is the key that messages name; they never quote what is in the file.
    """
    try:
        with file.open("rb") as handle:
            status = os.fstat(handle.fileno())
            text = handle.read(65536)
    except OSError as error:
        raise ConfigError(path, f'cannot read "{file}": {error.strerror}') from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(path, f'"{file}" is not a file')
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        message = f'"{file}" has mode {mode:04o}, so others can get at it: chmod 600 it'
        raise ConfigError(path, message)
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(path, f'"{file}" belongs to another user (uid {status.st_uid})')
    lines = [line.strip() for line in text.splitlines()]
    secrets = tuple(
        _secret(line, file, path) for line in lines if line and not line.startswith(b"#")
    )
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ConfigError(path, f'"{file}" must have 1 to {MAX_SECRETS} secrets')
    return secrets


def _secret(line: bytes, file: Path, path: str) -> bytes:
    try:
        secret = base64.b64decode(line, validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != SECRET_LENGTH:
        message = f'"{file}" has a line that is not 32 bytes in base64: make one with '
        raise ConfigError(path, message + '"mptcp-proxy keygen"')
    return secret


def format_secret(secret: bytes) -> str:
    """The line that holds ``secret`` in such a file."""
    return base64.b64encode(secret).decode() + "\n"
