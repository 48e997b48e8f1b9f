"""``mptcp-proxy keygen``: make the secret that a proxy shares with its gateway."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from proxy.errors import MptcpProxyError
from proxy.secret_file import SECRET_LENGTH, format_secret


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "keygen",
        help="make a secret",
        description="Makes a secret of 256 random bits in base64. Give the same file to one proxy "
        "and to its gateway, over a channel that you trust, readable by the daemon's user alone.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write it to FILE, mode 0600, instead of the standard output; an existing file is "
        "never overwritten",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Writes a new secret."""
    line = format_secret(secrets.token_bytes(SECRET_LENGTH))
    if options.output is None:
        sys.stdout.write(line)
        return 0
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(options.output, flags, 0o600)
    except FileExistsError:
        raise MptcpProxyError(f"{options.output}: exists already, not overwritten") from None
    except OSError as error:
        raise MptcpProxyError(f"{options.output}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask
        file.write(line)
    return 0
