"""The segment fast path: the extension ``_seg``, or its Python twin where that is asked for.

The twin is hundreds of times slower and is never a silent substitute: without the extension the
import fails, unless MPTCP_PROXY_PURE=1 is in the environment (tests, debugging).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

PURE = os.environ.get("MPTCP_PROXY_PURE") == "1"

if TYPE_CHECKING or not PURE:
    try:
        from proxy._seg import (
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
            finish_checksum,
            gro_merge,
            gso_split,
            parse,
            predict_subflow,
            predict_tcp,
            read_packets,
            timestamps_option,
            write_packets,
        )
    except ImportError as error:
        raise ImportError(
            "the extension proxy._seg is not built: run `make build` "
            "(or set MPTCP_PROXY_PURE=1 for the slow Python twin)"
        ) from error
else:
    from proxy._seg_py import (
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
        finish_checksum,
        gro_merge,
        gso_split,
        parse,
        predict_subflow,
        predict_tcp,
        read_packets,
        timestamps_option,
        write_packets,
    )

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
    "PURE",
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
