"""What a middlebox does to the TCP packets of one direction of an emulated link.

The work is done by ``middlebox.c``; use as ``Shape(box=Middlebox(...))`` or ``Link.set(box=...)``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MPTCP = ("mptcp",)
NAT_PATTERN = 0x0101
"""An XOR of ports that leaves ephemeral ones ephemeral."""


@dataclass(frozen=True)
class Middlebox:
    """Changes, drops and makes packets; counts are per flow, from when the value was set.

    ``strip``           options that become NOPs: ``mptcp`` (all of it), ``capable``, ``join``,
                        ``dss``, ``add_addr``, ``timestamps``, ``sack_permitted``, ``sack``
    ``strip_on``        ``any`` packet, ``syn`` (without ACK), ``synack``, ``rest``
    ``strip_after``     packets of a flow that pass before
    ``drop_capable``    SYNs with MP_CAPABLE vanish
    ``shift``           added to sequence numbers of flows that begin from now on, and taken from
                        the ACKs and SACK blocks that come the other way
    ``split``           segments with more bytes than that are cut, options on every piece
    ``coalesce``        adjacent segments that wait are joined up to so many bytes; the first
                        one's options remain
    ``corrupt``         one byte of the so manieth segment with data is changed, and its checksum
                        made right
    ``rst_after``       a RST follows the so manieth packet, ``rst_offset`` above what its
                        receiver expects
    ``nat``             source ports are XORed with it; another value is a rebinding
    """

    strip: tuple[str, ...] = ()
    strip_on: str = "any"
    strip_after: int = 0
    drop_capable: bool = False
    shift: int = 0
    split: int = 0
    coalesce: int = 0
    corrupt: int = 0
    rst_after: int = 0
    rst_offset: int = 0
    nat: int = 0

    def words(self) -> dict[str, str]:
        """Keys and values in the emulator's command language."""
        words = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                value = "+".join(value) or "none"
            words[field.name] = value if isinstance(value, str) else str(int(value))
        return words


NO_BOX = Middlebox()
