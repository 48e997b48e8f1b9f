"""Which version of the software this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def software_version() -> str:
    """As the package that is installed says."""
    try:
        return version("mptcp-proxy")
    except PackageNotFoundError:
        return "(not installed)"
