"""The Python twin of ``_seg``: the oracle of its tests, and its readable specification.

Never a silent substitute (see ``proxy.seg``). The same names, arguments, errors and results.
"""

from __future__ import annotations

from proxy._seg_py_codec import (
    ACK,
    CWR,
    DSS_ACK,
    DSS_ACK64,
    DSS_DSN64,
    DSS_FIN,
    DSS_MAP,
    ECE,
    EMPTY,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Segment,
    build_header,
    checksum,
    dss_checksum,
    dss_option,
    parse,
    timestamps_option,
)
from proxy._seg_py_device import read_packets, write_packets
from proxy._seg_py_offload import finish_checksum, gro_merge, gso_split
from proxy._seg_py_predict import predict_subflow, predict_tcp

__all__ = [
    "ACK",
    "CWR",
    "DSS_ACK",
    "DSS_ACK64",
    "DSS_DSN64",
    "DSS_FIN",
    "DSS_MAP",
    "ECE",
    "EMPTY",
    "FIN",
    "PSH",
    "RST",
    "SYN",
    "URG",
    "Segment",
    "build_header",
    "checksum",
    "dss_checksum",
    "dss_option",
    "finish_checksum",
    "gro_merge",
    "gso_split",
    "parse",
    "predict_subflow",
    "predict_tcp",
    "read_packets",
    "timestamps_option",
    "write_packets",
]
