"""docs/conformance.md names every rule once, and only code and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from proxy.config import MPTCP_KEYS
from proxy.control import sysctls

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "conformance.md").read_text()

# All rules, in the order of the table: name and last number of each numbered group.
GROUPS = (
    ("OPT", 5), ("KEY", 6), ("CAP", 12), ("JOIN", 11), ("DSS", 13), ("WND", 7), ("FIN", 8),
    ("RTX", 4), ("ADDR", 7), ("FB", 16), ("FC", 2), ("RST", 2), ("SPC", 3), ("TFO", 4), ("SEC", 7),
    ("HEU", 8), ("CC", 3), ("TCP", 20), ("CV", 16),
)  # fmt: skip
SYSCTLS = (
    "enabled", "add_addr_timeout", "allow_join_initial_addr_port", "available_path_managers",
    "available_schedulers", "blackhole_timeout", "checksum_enabled", "close_timeout",
    "path_manager", "pm_type", "scheduler", "stale_loss_cnt", "syn_retrans_before_tcp_fallback",
)  # fmt: skip
KERNEL_RULES = (
    "EP-01", "EP-02", "EP-03", "EP-04", "EP-05", "PM-01", "NL-01", "SCH-01", "SCH-02", "RTX-K1",
    "RTX-K2", "STALE-01", "TMO-01", "BLK-01", "RCV-01", "MIB-01",
)  # fmt: skip
# The order of /proc/net/netstat.
COUNTERS = (
    "MPCapableSYNRX", "MPCapableSYNTX", "MPCapableSYNACKRX", "MPCapableACKRX",
    "MPCapableFallbackACK", "MPCapableFallbackSYNACK", "MPCapableSYNTXDrop",
    "MPCapableSYNTXDisabled", "MPCapableEndpAttempt", "MPFallbackTokenInit", "MPTCPRetrans",
    "MPJoinNoTokenFound", "MPJoinSynRx", "MPJoinSynBackupRx", "MPJoinSynAckRx",
    "MPJoinSynAckBackupRx", "MPJoinSynAckHMacFailure", "MPJoinAckRx", "MPJoinAckHMacFailure",
    "MPJoinRejected", "MPJoinSynTx", "MPJoinSynTxCreatSkErr", "MPJoinSynTxBindErr",
    "MPJoinSynTxConnectErr", "DSSNotMatching", "DSSCorruptionFallback", "DSSCorruptionReset",
    "InfiniteMapTx", "InfiniteMapRx", "DSSNoMatchTCP", "DataCsumErr", "OFOQueueTail", "OFOQueue",
    "OFOMerge", "NoDSSInWindow", "DuplicateData", "AddAddr", "AddAddrTx", "AddAddrTxDrop",
    "EchoAdd", "EchoAddTx", "EchoAddTxDrop", "PortAdd", "AddAddrDrop", "MPJoinPortSynRx",
    "MPJoinPortSynAckRx", "MPJoinPortAckRx", "MismatchPortSynRx", "MismatchPortAckRx", "RmAddr",
    "RmAddrDrop", "RmAddrTx", "RmAddrTxDrop", "RmSubflow", "MPPrioTx", "MPPrioRx", "MPFailTx",
    "MPFailRx", "MPFastcloseTx", "MPFastcloseRx", "MPRstTx", "MPRstRx", "SubflowStale",
    "SubflowRecover", "SndWndShared", "RcvWndShared", "RcvWndConflictUpdate", "RcvWndConflict",
    "MPCurrEstab", "Blackhole", "MPCapableDataFallback", "MD5SigFallback", "DssFallback",
    "SimultConnectFallback", "FallbackFailed", "WinProbe",
)  # fmt: skip
STATUS = re.compile(r"done|(partly|not done): \S.{9,}")


class Row(NamedTuple):
    """One line of the table."""

    rule: str
    source: str
    text: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    status: str


def rows() -> list[Row]:
    found = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 6 or cells[0] in ("Rule", "---"):
            continue
        rule, source, text, code, tests, status = cells
        quoted = [tuple(re.findall(r"`([^`]+)`", cell)) for cell in (code, tests)]
        found.append(Row(rule.strip("`"), source, text, *quoted, status))
    return found


ROWS = rows()


def rules() -> list[str]:
    numbered = [f"{group}-{number:02}" for group, last in GROUPS for number in range(1, last + 1)]
    return [*numbered, *SYSCTLS, *KERNEL_RULES, *COUNTERS]


@cache
def symbols(path: Path) -> frozenset[str]:
    """Classes, functions, methods (``Class.method``) and constants of a Python file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.add(f"{node.name}.{inner.name}")
    return frozenset(found)


def test_every_rule_is_there_once_and_in_order() -> None:
    wanted = rules()
    found = [row.rule for row in ROWS]
    assert sorted(found) == sorted(wanted), sorted(set(found) ^ set(wanted))
    assert found == wanted


def test_a_row_says_where_the_rule_is_obeyed_and_what_proves_it() -> None:
    for row in ROWS:
        assert STATUS.fullmatch(row.status), row
        assert row.text, row
        assert re.search(r"\d{4}|Linux", row.source), row  # an RFC with its section, or the kernel
        assert (row.code and row.tests) or row.status != "done", row


def test_code_that_a_row_names_exists() -> None:
    wrong = []
    for row in ROWS:
        for reference in row.code:
            name, _, symbol = reference.partition(":")
            path = ROOT / "proxy" / name
            if not path.is_file() or (symbol and symbol not in symbols(path)):
                wrong.append((row.rule, reference))
    assert wrong == []


def test_tests_that_a_row_names_are_collected() -> None:
    wrong = []
    for row in ROWS:
        for reference in row.tests:
            name, _, test = reference.partition("::")
            path = ROOT / "tests" / name
            found = path.name.startswith("test_") and test.startswith("test_") and path.is_file()
            if not found or test not in symbols(path):
                wrong.append((row.rule, reference))
    assert wrong == []


def test_a_counter_is_counted_exactly_where_its_row_says_so() -> None:
    sources = {path: path.read_text() for path in (ROOT / "proxy").rglob("*.py")}
    wrong = []
    for row in ROWS:
        if row.rule not in COUNTERS:
            continue
        places = {path for path, text in sources.items() if f'"MPTcpExt{row.rule}"' in text}
        named = {ROOT / "proxy" / reference.partition(":")[0] for reference in row.code}
        if not named <= places or bool(places) == row.status.startswith("not done"):
            wrong.append(row.rule)
    assert wrong == []


def test_no_counter_has_a_name_that_the_kernel_has_not() -> None:
    for path in (ROOT / "proxy").rglob("*.py"):
        assert set(re.findall(r'"MPTcpExt(\w+)"', path.read_text())) <= set(COUNTERS), path


def test_settings_of_the_kernel_have_their_names_in_the_engine() -> None:
    assert set(SYSCTLS) == set(sysctls.NAMES)
    # The kernel has keep-alive by socket option only, and opens subflows at once.
    ours = {"subflow_keepalive", "join_delay"}
    assert set(MPTCP_KEYS) - ours <= set(SYSCTLS)


def test_the_summary_is_that_of_the_rows() -> None:
    counts = [
        sum(row.status == "done" for row in ROWS),
        sum(row.status.startswith("partly") for row in ROWS),
        sum(row.status.startswith("not done") for row in ROWS),
    ]
    assert "{} done, {} partly, {} not done".format(*counts) in TEXT
