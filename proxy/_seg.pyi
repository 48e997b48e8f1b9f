from collections.abc import Sequence
from typing import Any, final

from typing_extensions import Buffer

FIN: int
SYN: int
RST: int
PSH: int
ACK: int
URG: int
ECE: int
CWR: int
DSS_ACK: int
DSS_ACK64: int
DSS_MAP: int
DSS_DSN64: int
DSS_FIN: int
EMPTY: memoryview

@final
class Segment:
    """One parsed TCP segment (up to 64 KB of payload); all attributes are plain and writable.

    A new object has the values of "absent": -1 where an option may be missing, else 0, empty
    or False.
    """

    src: bytes
    dst: bytes
    sport: int
    dport: int
    key: bytes
    seq: int
    ack: int
    flags: int
    window: int
    urgent: int
    payload: memoryview
    length: int
    gso_size: int
    ecn: int
    ttl: int
    tos: int
    mss: int
    wscale: int
    sack_permitted: bool
    ts_val: int
    ts_ecr: int
    sack: tuple[tuple[int, int], ...]
    mptcp: tuple[bytes, ...]
    has_mptcp: bool
    dss_flags: int
    dss_count: int
    data_ack: int
    data_ack64: bool
    dsn: int
    dsn64: bool
    ssn: int
    data_length: int
    dss_checksum: int
    def __init__(self) -> None: ...

def parse(packet: bytes) -> Segment: ...
def build_header(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes,
    payload_length: int,
    gso_size: int,
    tos: int = 0,
    ttl: int = 64,
    ident: int = 0,
) -> bytes: ...
def timestamps_option(ts_val: int, ts_ecr: int) -> bytes: ...
def dss_option(
    data_ack: int, ack64: bool, dsn: int, ssn: int, length: int, checksum: int, fin: bool
) -> bytes: ...
def checksum(data: Buffer, initial: int = 0) -> int: ...
def dss_checksum(dsn: int, ssn: int, length: int, chunks: Sequence[Buffer]) -> int: ...
def gso_split(packet: bytes) -> list[bytes]: ...
def gro_merge(packets: list[bytes]) -> list[bytes]: ...
def finish_checksum(packet: bytes) -> bytes: ...
def read_packets(fd: int, limit: int) -> list[bytes]: ...
def write_packets(
    fd: int, packets: list[list[bytes | memoryview]], start: int
) -> tuple[int, int, int]: ...
def predict_tcp(self: Any, seg: Segment, now: float) -> bool: ...
def predict_subflow(self: Any, seg: Segment, now: float) -> bool: ...
