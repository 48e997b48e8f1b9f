"""Addresses and priorities: ADD_ADDR, REMOVE_ADDR, MP_PRIO (RFC 8684 §3.3.8, §3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp import keys
from proxy.mptcp.notes import Note
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.mptcp_options import AddAddr, MpPrio, RemoveAddr

if TYPE_CHECKING:
    from proxy.mptcp.paths import Paths
    from proxy.mptcp.subflow import Subflow

MAX_REMOTE_ADDRESSES = 8
_MAX_WAITING = 8
_RETRANSMISSIONS = 3  # of an ADD_ADDR (Linux: ADD_ADDR_RETRANS_MAX)
_MAX_IDS = 8  # of one REMOVE_ADDR that are acted on
_INFINITE = float("inf")
# What fits beside timestamps; with them an IPv6 address and a port do not (P15).
_ROOM = 28


class Signals:
    """What both ends told each other about addresses; one ADD_ADDR is in flight at a time."""

    __slots__ = ("_address", "_address_id", "_conn", "_tries", "_waiting", "remote", "repeat_at")

    def __init__(self, conn: Paths) -> None:
        self._conn = conn
        self.remote: dict[int, Address] = {}
        self._address: Address | None = None
        self._address_id = -1
        self._tries = 0
        self._waiting: list[tuple[Address, int]] = []
        self.repeat_at = _INFINITE

    # -- received -----------------------------------------------------------------------------

    def valid(self, option: AddAddr) -> bool:
        """Whether the HMAC of an ADD_ADDR is the peer's (KEY-04)."""
        conn = self._conn
        wanted = keys.add_addr_hmac(
            conn.remote_key, conn.local_key.key, option.address_id, option.ip, option.port
        )
        return keys.same(wanted, option.hmac)

    def on_add_addr(self, subflow: Subflow, option: AddAddr, now: float) -> None:
        """An announcement is echoed and told to the path manager; an echo ends repetition."""
        conn = self._conn
        counters = conn.host.counters
        if option.echo:
            counters.add("MPTcpExtEchoAdd")
            if option.address_id == self._address_id:
                self._done(now)
            return
        counters.add("MPTcpExtAddAddr")
        if option.port is not None:
            counters.add("MPTcpExtPortAdd")
        if not self.valid(option):
            return
        if not conn.path_manager.takes_announcements():
            counters.add("MPTcpExtAddAddrDrop")
            return
        echo = AddAddr(option.address_id, option.ip, option.port, echo=True).build()
        sent = subflow.send_option(echo)
        counters.add("MPTcpExtEchoAddTx" if sent else "MPTcpExtEchoAddTxDrop")
        port = conn.remote.port if option.port is None else option.port
        address = Address(option.ip, port)
        if self.remote.get(option.address_id) == address:
            return
        if not _plausible(address) or not self._store(option.address_id, address):
            counters.add("MPTcpExtAddAddrDrop")
            return
        conn.note(Note(Event.ADDR_ANNOUNCED, remote=address, address_id=option.address_id))
        conn.path_manager.on_addr_announced(conn, option.address_id, address, now)

    def _store(self, address_id: int, address: Address) -> bool:
        known = self.remote.get(address_id)
        if known is None:
            if len(self.remote) >= MAX_REMOTE_ADDRESSES:
                return False
        elif known.ip != address.ip:
            return False  # ADDR-01: an id keeps its address until it is removed
        self.remote[address_id] = address
        return True

    def on_remove_addr(self, subflow: Subflow, option: RemoveAddr, now: float) -> None:
        """Close what runs to these addresses (ADDR-05); unknown ids do nothing."""
        conn = self._conn
        for address_id in option.address_ids[:_MAX_IDS]:
            conn.host.counters.add("MPTcpExtRmAddr")
            known = self.remote.pop(address_id, None)
            affected = [s for s in conn.subflows if s.remote_id == address_id]
            if known is None and not affected:
                continue
            conn.note(Note(Event.ADDR_REMOVED, remote=known, address_id=address_id))
            conn.path_manager.on_addr_removed(conn, address_id, now)
            for victim in affected:
                if conn.may_close(victim):
                    conn.finish_subflow(victim, now)

    # -- sent -----------------------------------------------------------------------------------

    @property
    def announcing(self) -> bool:
        """Whether an announcement waits for its echo."""
        return self._address is not None

    def announce(self, address: Address, address_id: int, now: float) -> None:
        """Announce ``address``; repeated until it is echoed."""
        if self._address is not None:
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append((address, address_id))
            return
        self._address = address
        self._address_id = address_id
        self._tries = 0
        self._send(now)

    def withdraw(self, address_id: int, now: float) -> None:
        """Tell the peer not to use ``address_id`` any more, not over that address (P22)."""
        conn = self._conn
        self._waiting = [entry for entry in self._waiting if entry[1] != address_id]
        if address_id == self._address_id:
            self._done(now)
        usable = [s for s in conn.usable_subflows() if s.local_id != address_id]
        subflow = next(iter(usable or conn.usable_subflows()), None)
        option = RemoveAddr((address_id,)).build()
        sent = subflow is not None and subflow.send_option(option)
        conn.host.counters.add("MPTcpExtRmAddrTx" if sent else "MPTcpExtRmAddrTxDrop")

    def set_backup(self, subflow: Subflow, backup: bool) -> None:
        """Ask the peer to use ``subflow`` as a last resort only, or again (ADDR-06)."""
        subflow.backup = backup
        if subflow.fully_established and subflow.send_option(MpPrio(backup).build()):
            self._conn.host.counters.add("MPTcpExtMPPrioTx")

    def on_timer(self, now: float) -> None:
        """Repeat the announcement, or give it up."""
        if now < self.repeat_at:
            return
        self._tries += 1
        if self._tries > _RETRANSMISSIONS or self._conn.config.add_addr_timeout <= 0:
            self._done(now)
        else:
            self._send(now)

    def _send(self, now: float) -> None:
        conn = self._conn
        address = self._address
        subflow = next(iter(conn.usable_subflows()), None)
        if address is None:
            return
        self.repeat_at = now + self._pause(subflow)
        conn.arm()
        if subflow is None:
            return
        port = None if address.port == conn.local.port else address.port
        mac = keys.add_addr_hmac(
            conn.local_key.key, conn.remote_key, self._address_id, address.ip, port
        )
        option = AddAddr(self._address_id, address.ip, port, hmac=mac).build()
        fits = len(option) <= (_ROOM if subflow.timestamps else _ROOM + 12)
        sent = fits and subflow.send_option(option)
        conn.host.counters.add("MPTcpExtAddAddrTx" if sent else "MPTcpExtAddAddrTxDrop")
        if not fits:
            self._done(now)

    def _pause(self, subflow: Subflow | None) -> float:
        # Linux 6.18: the RTO, doubled each time, at most add_addr_timeout (ADDR-03).
        rto = 1.0 if subflow is None else subflow.rto
        return min(rto * (1 << self._tries), self._conn.config.add_addr_timeout or 1.0)

    def _done(self, now: float) -> None:
        address_id, self._address_id = self._address_id, -1
        self._address = None
        self.repeat_at = _INFINITE
        if self._waiting:
            address, following = self._waiting.pop(0)
            self.announce(address, following, now)
        if address_id >= 0:
            self._conn.path_manager.on_announced(self._conn, address_id, now)


def _plausible(address: Address) -> bool:
    """ADDR-04: never a loopback, multicast, broadcast or unspecified address, nor port 0."""
    ip = address.ip
    if address.port == 0:
        return False
    if len(ip) == 4:
        return ip[0] not in (0, 127) and ip[0] < 224
    if ip[:12] == b"\x00" * 10 + b"\xff\xff":
        return _plausible(Address(ip[12:], address.port))
    return ip[0] != 0xFF and ip[:15] != b"\x00" * 15 and ip[:2] != b"\xfe\x80"
