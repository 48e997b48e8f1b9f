"""A TOML table that is read key by key and refuses what it does not know, naming the key's path."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Mapping

from proxy.errors import ConfigError

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")


class Table:
    """One table of a configuration file.

    ``path`` is where the table stands in the file (``uplink[1]``; empty for the root), ``known``
    the keys it may have. Every reader raises ``ConfigError`` with the key's full path; a reader
    without a default insists on the key.
    """

    def __init__(self, data: Mapping[str, object], path: str, known: Collection[str]) -> None:
        self._data = data
        self._path = path
        for key in data:
            if key not in known:
                raise ConfigError(self.path_of(key), _unknown(key, known))

    def path_of(self, key: str) -> str:
        """The path of ``key`` in the file, for messages."""
        shown = key if key.isprintable() else ascii(key)
        return f"{self._path}.{shown}" if self._path else shown

    def get(self, key: str) -> object:
        """What is there, unchecked; None when it is absent."""
        return self._data.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def _get(self, key: str) -> object:
        try:
            return self._data[key]
        except KeyError:
            raise ConfigError(self.path_of(key), "missing key") from None

    def _wrong(self, key: str, wanted: str) -> ConfigError:
        return ConfigError(self.path_of(key), f"must be {wanted}, not {_show(self._data[key])}")

    def string(self, key: str, default: str | None = None) -> str:
        """A string without control characters."""
        if default is not None and key not in self._data:
            return default
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        if not value.isprintable():
            raise self._wrong(key, "printable text")
        return value

    def name(self, key: str, pattern: re.Pattern[str], wanted: str) -> str:
        """A string that matches ``pattern`` wholly; ``wanted`` describes it to the operator."""
        value = self.string(key)
        if not pattern.fullmatch(value):
            raise self._wrong(key, wanted)
        return value

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        """One of ``choices``."""
        value = self.string(key, default)
        if value not in choices:
            listed = ", ".join(f'"{choice}"' for choice in choices)
            raise ConfigError(self.path_of(key), f"{_show(value)} is not one of {listed}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within ``low..high``."""
        if default is not None and key not in self._data:
            return default
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number (integer or with decimals) within ``low..high``."""
        if default is not None and key not in self._data:
            return default
        value = self._get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """``true`` or ``false``."""
        if default is not None and key not in self._data:
            return default
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def interface(self, key: str, default: str | None = None) -> str:
        """The name of a network interface (1 to 15 characters)."""
        value = self.string(key, default)
        if not is_interface(value):
            raise self._wrong(key, "the name of a network interface")
        return value

    def address(self, key: str, family: int = 0) -> bytes:
        """An IP address, packed; ``family`` 4 or 6 insists on that version."""
        return parse_address(self.string(key), self.path_of(key), family)

    def strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """An array of strings, none of them twice; empty is allowed only with a default."""
        if default is not None and key not in self._data:
            return default
        value = self._get(key)
        if not isinstance(value, list) or (default is None and not value):
            raise self._wrong(key, "an array with at least one string")
        texts: list[str] = []
        for index, item in enumerate(value):
            path = f"{self.path_of(key)}[{index}]"
            if not isinstance(item, str) or not item.isprintable():
                raise ConfigError(path, f"must be a string, not {_show(item)}")
            if item in texts:
                raise ConfigError(path, f"{_show(item)} is listed twice")
            texts.append(item)
        return tuple(texts)

    def array(self, key: str) -> list[object]:
        """An array of anything; empty when absent."""
        if key not in self._data:
            return []
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "an array")
        return value

    def integers(self, key: str, low: int, high: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """An array of integers within ``low..high``; it may be empty."""
        if key not in self._data:
            return default
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "an array of integers")
        for index, item in enumerate(value):
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                path = f"{self.path_of(key)}[{index}]"
                raise ConfigError(path, f"must be an integer from {low} to {high}")
        return tuple(value)

    def networks(self, key: str) -> tuple[IpNetwork, ...]:
        """An array of networks in CIDR form, or of single addresses; empty when absent."""
        texts = self.strings(key, ())
        return tuple(
            parse_network(text, f"{self.path_of(key)}[{index}]") for index, text in enumerate(texts)
        )

    def table(self, key: str, known: Collection[str], optional: bool = False) -> Table:
        """A sub-table; an absent ``optional`` one reads as an empty one."""
        if optional and key not in self._data:
            return Table({}, self.path_of(key), known)
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, f"a table: [{self.path_of(key)}]")
        return Table(value, self.path_of(key), known)

    def tables(self, key: str, known: Collection[str], most: int) -> list[Table]:
        """An array of 1 to ``most`` tables (``[[key]]``)."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, f"an array of tables: [[{self.path_of(key)}]]")
        if not 1 <= len(value) <= most:
            raise ConfigError(self.path_of(key), f"must have 1 to {most} tables, not {len(value)}")
        path = self.path_of(key)
        return [Table(item, f"{path}[{index}]", known) for index, item in enumerate(value)]


def is_interface(name: str) -> bool:
    """Whether the kernel would take ``name`` as the name of an interface (IFNAMSIZ 16)."""
    return _INTERFACE.fullmatch(name) is not None and name not in {".", ".."}


def parse_address(text: str, path: str, family: int = 0) -> bytes:
    """The packed form of the IP address ``text``; scope identifiers (``%eth0``) are refused."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(path, f"{_show(text)} is not an IP address") from None
    if "%" in text:
        raise ConfigError(path, f"{_show(text)} must not have a scope identifier")
    if family and address.version != family:
        raise ConfigError(path, f"{_show(text)} is not an IPv{family} address")
    return address.packed


def parse_network(text: str, path: str) -> IpNetwork:
    """The network ``text``: CIDR or one address; bits to the right of the prefix are refused."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            rather = ipaddress.ip_network(text, strict=False)
            message = f"{_show(text)} has bits set to the right of the prefix: did you mean "
            raise ConfigError(path, f'{message}"{rather}"?') from None
        raise ConfigError(path, f"{_show(text)} is not an IP network") from None


def _unknown(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return "unknown key" + (f": did you mean {close[0]}?" if close else "")


def _show(value: object) -> str:
    """``value`` as it may be put in a message: one line, short, as TOML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = "".join(c if c.isprintable() else "?" for c in value)
        return f'"{text[:57]}..."' if len(text) > 60 else f'"{text}"'
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge integer"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    return str(value)[:60]
