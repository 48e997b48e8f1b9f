"""The modes of the matrix, and what RFC 8684 and the kernel make of each.

``MPTcpExt`` counters are the witness. They mean the same whoever plays a role, so there is one
expectation per role, for the kernel and for the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.matrix import Ending, Middle, Peer, Setting, Toward, Trouble
from tests.lab.middlebox import MPTCP, NAT_PATTERN, Middlebox

BOTH = (1, 2)
ALL = tuple(Ending)
CLEAN = (Ending.CLEAN,)


@dataclass(frozen=True)
class Role:
    """``fallback``: the engine's, in this role (TCP: it was plain TCP from the SYN on). ``moves``:
    counters that must move (``A|B``: one of both); of those in ``kernel.COMPLAINTS`` no others
    may, but for ``may``. ``sum_moves``: those that must only with checksums."""

    fallback: str = "NONE"
    moves: tuple[str, ...] = ()
    sum_moves: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mode:
    """``joins``: whether the additional subflow comes to be. ``altered``: bytes that arrive
    changed at the listener, as in plain TCP, without and with checksums. ``fails``: the
    connection cannot live."""

    middle: Middle
    initiator: Role = Role()
    listener: Role = Role()
    joins: bool = False
    altered: tuple[int, int] = (0, 0)
    fails: bool = False
    endings: tuple[Ending, ...] = ALL


_PLAIN = "AT_HANDSHAKE"
_UNMAPPED = Role("INFINITE_MAPPING", ("DssFallback",))
_NO_KEY = Role(_PLAIN, ("MPCapableFallbackSYNACK",))
_RESET = ("MPRstTx", "MPRstRx", "FallbackFailed", "MPJoinNoTokenFound", "MPJoinRejected")
_HURT = Role(may=_RESET)
_MERGED = Role("INFINITE_MAPPING", ("DssFallback|DSSCorruptionFallback",))
# If the listener fell back before it had sent anything, that comes first.
_MERGED_FIRST = Role(
    "INFINITE_MAPPING|AT_HANDSHAKE",
    ("DssFallback|DSSCorruptionFallback|MPCapableDataFallback",),
)

MODES = {
    "none": Mode(Middle()),
    "joined": Mode(Middle(paths=2), joins=True),
    "announced": Mode(Middle(paths=2, endpoints="signal"), joins=True),
    # FB-01
    "strip-all": Mode(Middle(Middlebox(strip=MPTCP)), _NO_KEY, Role("TCP")),
    "strip-syn": Mode(
        Middle(Middlebox(strip=MPTCP, strip_on="syn")), _NO_KEY, Role("TCP"), endings=CLEAN
    ),
    # FB-02
    "strip-synack": Mode(
        Middle(Middlebox(strip=MPTCP, strip_on="synack")),
        _NO_KEY,
        Role(_PLAIN, ("MPCapableFallbackACK",)),
    ),
    # FB-03
    "strip-rest-to-listener": Mode(
        Middle(Middlebox(strip=MPTCP, strip_on="rest"), Toward.LISTENER),
        Role(_PLAIN, ("MPCapableDataFallback",)),
        Role(_PLAIN, ("MPCapableFallbackACK",)),
        endings=CLEAN,
    ),
    # FB-04
    "strip-rest-to-initiator": Mode(
        Middle(Middlebox(strip=MPTCP, strip_on="rest"), Toward.INITIATOR),
        Role(_PLAIN, ("MPCapableDataFallback",)),
        _UNMAPPED,
        endings=CLEAN,
    ),
    # FB-11
    "strip-later": Mode(Middle(Middlebox(strip=MPTCP, strip_after=40)), _UNMAPPED, _UNMAPPED),
    "strip-later-to-listener": Mode(
        Middle(Middlebox(strip=MPTCP, strip_after=40), Toward.LISTENER),
        _UNMAPPED,
        _UNMAPPED,
        endings=CLEAN,
    ),
    "strip-later-to-initiator": Mode(
        Middle(Middlebox(strip=MPTCP, strip_after=40), Toward.INITIATOR),
        _UNMAPPED,
        _UNMAPPED,
        endings=CLEAN,
    ),
    # FB-12
    "strip-later-joined": Mode(
        Middle(Middlebox(strip=MPTCP), paths=2, trouble=Trouble.BOX),
        Role(may=("DSSCorruptionReset", *_RESET)),
        Role(may=("DSSCorruptionReset", *_RESET)),
        joins=True,
    ),
    # FB-14
    "drop-capable": Mode(
        Middle(Middlebox(drop_capable=True)), Role(_PLAIN, ("MPCapableSYNTXDrop",)), Role("TCP")
    ),
    # JOIN-03
    "strip-join": Mode(
        Middle(Middlebox(strip=("join",)), links=BOTH, paths=2),
        Role(moves=("MPJoinSynTx",), may=("MPRstTx",)),
    ),
    # ADDR-03
    "strip-add-addr": Mode(
        Middle(Middlebox(strip=("add_addr",)), links=BOTH, paths=2, endpoints="signal"),
        listener=Role(moves=("AddAddrTx",)),
    ),
    "shift": Mode(Middle(Middlebox(shift=0x9ABCDEF0), links=BOTH, paths=2), joins=True),
    "split": Mode(Middle(Middlebox(split=500), links=BOTH, paths=2), joins=True),
    # Where two mappings meet in one segment the second is lost: FB-11, FB-12.
    "coalesce": Mode(Middle(Middlebox(coalesce=5000)), _MERGED_FIRST, _MERGED),
    "coalesce-joined": Mode(
        Middle(Middlebox(coalesce=5000), paths=2, trouble=Trouble.BOX),
        Role(may=("DSSCorruptionReset", *_RESET)),
        Role(may=("DSSCorruptionReset", *_RESET)),
        joins=True,
    ),
    # FB-09
    "corrupt-first": Mode(
        Middle(Middlebox(corrupt=1), Toward.LISTENER),
        Role("NONE|INFINITE_MAPPING", sum_moves=("DssFallback",)),
        Role("NONE|INFINITE_MAPPING", sum_moves=("DataCsumErr", "DssFallback|MPFailTx")),
        altered=(1, 1),
        endings=CLEAN,
    ),
    # FB-08
    "corrupt": Mode(
        Middle(Middlebox(corrupt=100), Toward.LISTENER),
        Role(
            "NONE|INFINITE_MAPPING",
            sum_moves=("MPFailRx", "MPFailTx", "InfiniteMapTx"),
            may=("DssFallback", "InfiniteMapRx"),
        ),
        Role(
            "NONE|INFINITE_MAPPING",
            sum_moves=("DataCsumErr", "MPFailTx"),
            may=("MPFailRx", "InfiniteMapRx", "InfiniteMapTx", "DssFallback"),
        ),
        altered=(1, 1),
    ),
    # FB-07
    "corrupt-joined": Mode(
        Middle(Middlebox(corrupt=3), Toward.LISTENER, paths=2, trouble=Trouble.BOX),
        Role(may=("MPFailRx", *_RESET)),
        Role(may=("DataCsumErr", "MPFailTx", *_RESET)),
        joins=True,
        altered=(1, 0),
    ),
    "strip-timestamps": Mode(
        Middle(Middlebox(strip=("timestamps",)), links=BOTH, paths=2), joins=True
    ),
    "strip-sack": Mode(
        Middle(Middlebox(strip=("sack_permitted",)), links=BOTH, paths=2), joins=True
    ),
    # RFC 5961 §3.2: challenged, not believed
    # A subflow that still repairs losses when the connection is closed at data level may be reset.
    "rst-inexact": Mode(
        Middle(Middlebox(rst_after=20, rst_offset=1), paths=2),
        Role(may=("MPRstTx", "MPRstRx")),
        Role(may=("MPRstTx", "MPRstRx")),
        joins=True,
    ),
    # RST-01
    "rst-exact": Mode(
        Middle(Middlebox(rst_after=3), paths=2, trouble=Trouble.BOX), _HURT, _HURT, joins=True
    ),
    "rst-exact-single": Mode(
        Middle(Middlebox(rst_after=60)), _HURT, _HURT, fails=True, endings=CLEAN
    ),
    "nat": Mode(Middle(Middlebox(nat=NAT_PATTERN), Toward.LISTENER, paths=2), joins=True),
    # HEU-03
    "nat-rebound": Mode(
        Middle(Middlebox(nat=NAT_PATTERN), Toward.LISTENER, paths=2, trouble=Trouble.REBIND),
        _HURT,
        _HURT,
        joins=True,
    ),
    "mtu-silent": Mode(Middle(paths=2, trouble=Trouble.MTU_SILENT), _HURT, _HURT, joins=True),
    "mtu-icmp": Mode(Middle(paths=2, trouble=Trouble.MTU_ICMP), joins=True),
    "mtu-silent-single": Mode(Middle(trouble=Trouble.MTU_SILENT), endings=CLEAN),
    "mtu-icmp-single": Mode(Middle(trouble=Trouble.MTU_ICMP), endings=CLEAN),
}


@dataclass(frozen=True)
class OpenCells:
    """Cells that may fail, and why; they are played and counted all the same."""

    mode: str
    peers: tuple[Peer, ...]
    checksums: tuple[bool, ...]
    endings: tuple[Ending, ...]
    reason: str

    def holds(self, mode: str, setting: Setting) -> bool:
        """Whether a cell is one of these."""
        return (
            mode == self.mode
            and setting.peer in self.peers
            and setting.checksum in self.checksums
            and setting.ending in self.endings
        )


OPEN = (
    OpenCells(
        "strip-later",
        (Peer.KERNEL_LISTENS, Peer.KERNEL_CONNECTS),
        (False, True),
        (Ending.LOSS,),
        "seen once, not captured: after both had fallen back Linux 6.18 threw away what TCP had "
        "delivered (198 NoDSSInWindow), and its application got the stream's end after a gap",
    ),
    OpenCells(
        "corrupt",
        (Peer.KERNEL_CONNECTS,),
        (True,),
        (Ending.CLEAN, Ending.LOSS),
        "after MP_FAIL Linux 6.18 fills segments to the MTU without room for the infinite mapping "
        "that they carry: IP refuses them (IpFragFails), and its stream stands still",
    ),
    OpenCells(
        "corrupt",
        (Peer.KERNEL_LISTENS,),
        (True,),
        (Ending.CLEAN, Ending.LOSS),
        "after the fall-back by MP_FAIL Linux 6.18 may send its FIN before the last bytes that it "
        "was given: its stream ends early",
    ),
    OpenCells(
        "coalesce",
        (Peer.KERNEL_LISTENS, Peer.KERNEL_CONNECTS),
        (False, True),
        (Ending.LOSS,),
        "seen once, not captured: it seems that when we fall back in silence while Linux waits "
        "for what the cut path lost, it sends data again at the data level (MPTCPRetrans), and we "
        "take that for new",
    ),
)
