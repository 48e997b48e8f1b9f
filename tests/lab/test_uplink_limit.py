"""The rate limit of an uplink, on real links."""

from __future__ import annotations

import time

from tests.lab.conftest import needs_boxes, running
from tests.lab.link import LinkSpec
from tests.lab.servers import start_iperf3
from tests.lab.topology import SERVER4, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


def test_all_connections_together_keep_to_the_limit_and_to_a_new_one() -> None:
    links = (LinkSpec.symmetric(50, 10), LinkSpec.symmetric(50, 10))
    with topology(*links) as lab, running(lab) as both:
        start_iperf3(lab.server)
        both.proxy.query("uplink-limit", uplink="fibre", up=10)
        bulk = lab.client.start("iperf3", "-c", SERVER4, "-t", "60", "-P", "4")

        def sent() -> list[int]:
            return [lab.link(index).statistics()["up"]["bytes_in"] for index in lab.indices]

        def rates() -> list[float]:
            before, began = sent(), time.monotonic()
            time.sleep(2)  # what is measured
            after, took = sent(), time.monotonic() - began
            return [8e-6 * (b - a) / took for a, b in zip(before, after, strict=True)]

        wait_for(lambda: min(sent()) > 1_000_000, "both uplinks are in use", within=30)
        limited, free = rates()
        # What is above is ACKs and probes, what is below a machine that has other work.
        assert 6 < limited < 11
        assert free > 1.5 * limited
        both.proxy.query("uplink-limit", uplink="fibre", up=0)
        assert rates()[0] > 15
        bulk.kill()
        bulk.wait()
