"""The status page of running boxes in Chromium, on a phone and on a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import PROGRAM, Browser, Tab, browser
from tests.lab.conftest import FIBRE, LTE, needs_boxes, running
from tests.lab.daemons import Boxes, edit
from tests.lab.servers import Nginx
from tests.lab.topology import CLIENT4, Topology, topology
from tests.lab.transfer import Download

pytestmark = [needs_boxes, pytest.mark.lab("nginx", "curl", PROGRAM)]

LISTEN = '[metrics]\nlisten = "127.0.0.1:9180"\n'
PAGE = "http://127.0.0.1:9180/"
PHONE, DESK = (360, 740), (1280, 900)
RATES = (
    "[...document.querySelectorAll('.scale')].every(s => /up to [0-9.]+ Mbit/.test(s.innerText))"
)
SIZE = 20_000_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture(scope="module")
def home(lab: Topology) -> Iterator[Boxes]:
    with running(lab, proxy={"extra": LISTEN}, gateway={"extra": LISTEN}) as both:
        yield both


@pytest.fixture(scope="module")
def carried(lab: Topology, home: Boxes, nginx: Nginx) -> None:
    """A download has used both uplinks."""
    digest = nginx.add("large", SIZE)
    assert Download(lab.client, nginx.url("large")).finish().sha256 == digest


@pytest.fixture(scope="module")
def chromium(lab: Topology) -> Iterator[Browser]:
    """In the home router's namespace."""
    with browser(("ip", "netns", "exec", lab.proxy.name)) as program:
        yield program


def assert_fits(tab: Tab) -> None:
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.complaints == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_rates_and_who_moves_how_much(
    carried: None, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    tab = chromium.tab()
    tab.open(PAGE, *size, dark=dark)
    tab.wait("document.querySelectorAll('#lines article').length === 2")
    tab.wait(RATES)
    tab.wait(f"document.querySelector('#who')?.innerText.includes('{CLIENT4}')")
    tab.wait("document.querySelector('#health')?.innerText.startsWith('All is well')")
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 19, 24)" if dark else "rgb(246, 247, 249)")
    assert_fits(tab)
    tab.value("document.getElementById('day').click()")
    assert tab.value("document.querySelector('.scale').innerText.includes('24 hours')")
    assert_fits(tab)


def test_what_happens_to_an_uplink_is_told(home: Boxes, carried: None, chromium: Browser) -> None:
    tab = chromium.tab()
    tab.open(PAGE, *PHONE, dark=False)
    tab.wait("document.querySelector('#health')?.innerText.startsWith('All is well')")
    edit(home.proxy, "backup = false", "backup = true")
    home.proxy.hang_up()
    told = "fibre: works, for when no other does"
    tab.wait(f"document.querySelector('#events')?.innerText.includes('{told}')")
    assert_fits(tab)


def test_the_gateways_page(lab: Topology, home: Boxes, carried: None) -> None:
    with browser(("ip", "netns", "exec", lab.gateway.name)) as program:
        tab = program.tab()
        tab.open(PAGE, *PHONE, dark=True)
        tab.wait(RATES)
        tab.wait("document.querySelector('#who')?.innerText.includes('home-1')")
        assert tab.value("document.querySelector('#health').innerText").startswith("The gateway")
        assert_fits(tab)
