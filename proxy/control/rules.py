"""Path rules of a running proxy: which there are, what they took, which one would match."""

from __future__ import annotations

from proxy.config import RuleConfig, Via
from proxy.control.fields import CommandError, Request, number
from proxy.relay.rules import RuleBook, describe
from proxy.wire.address import Address, parse_ip


class RuleCommands:
    """The commands ``rules`` and ``rule-test``."""

    def __init__(self, book: RuleBook) -> None:
        self._book = book

    def rules(self, request: Request) -> dict[str, object]:
        """All rules in their order. Who sets up nft adds the hits of those that bypass."""
        del request
        book = self._book
        listed = [{**_fields(rule), "hits": book.hits[rule.name]} for rule in book.rules]
        return {"rules": listed, "others": book.others}

    def test(self, request: Request) -> dict[str, object]:
        """The rule for ``destination`` and ``port``, by ``source`` and ``sni`` if given."""
        destination = Address(_ip(request, "destination"), number(request, "port", 1, 65535))
        length = len(destination.ip)
        source = _ip(request, "source") if request.get("source") is not None else bytes(length)
        sni = str(request.get("sni") or "").lower()
        rule = self._book.find(source, destination, sni)
        notes = []
        if self._book.needs_sni(source, destination):
            notes.append("the connection is answered before the server is, to hear its name")
        if request.get("source") is None and any(rule.sources for rule in self._book.rules):
            notes.append("rules with from were judged as for no host of the LAN (--from HOST)")
        return {"rule": None if rule is None else _fields(rule), "notes": notes}


def add_bypassed(result: dict[str, object], bypassed: dict[str, int]) -> dict[str, object]:
    """``rules`` with what nft has counted."""
    rules = result["rules"]
    assert isinstance(rules, list)
    for rule in rules:
        if rule["via"] == Via.BYPASS.value:
            rule["hits"] += bypassed.get(rule["name"], 0)
    return result


def _fields(rule: RuleConfig) -> dict[str, object]:
    return {"name": rule.name, "via": rule.via.value, "text": describe(rule)}


def _ip(request: Request, name: str) -> bytes:
    try:
        return parse_ip(str(request.get(name)))
    except ValueError:
        raise CommandError("EINVAL", f"{name} is not an IP address") from None
