"""What docs/congestion.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.cc.base import CongestionControl, names
from tests.pair import grid

TEXT = (Path(__file__).parents[2] / "docs" / "congestion.md").read_text()
MSS = 1448


def test_the_table_has_every_control() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) == [
        n for n in names() if n in grid.CONTROLS
    ]


def test_the_example_works() -> None:
    example = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert example is not None
    scope: dict[str, type[CongestionControl]] = {}
    exec(example[1], scope)
    cc = scope["Double"](MSS, 10 * MSS)
    cc.on_ack(10 * MSS, 0.05, 1.0, 0, False)
    assert cc.cwnd == 20 * MSS
    cc.on_congestion(1.0)
    assert cc.cwnd == 10 * MSS
    for _ in range(10):
        cc.on_ack(MSS, 0.05, 1.0, 0, False)
    assert 11.7 * MSS < cc.cwnd <= 12 * MSS
    cc.on_ack(MSS, 0.05, 1.0, 0, True)
    assert cc.cwnd <= 12 * MSS
