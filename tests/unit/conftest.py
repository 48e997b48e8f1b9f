"""Fixtures of the unit tests."""

from __future__ import annotations

from types import ModuleType

import pytest

from proxy import _seg, _seg_py


@pytest.fixture(params=[_seg, _seg_py], ids=["extension", "twin"], scope="session")
def seg(request: pytest.FixtureRequest) -> ModuleType:
    """The segment fast path: every test that uses it runs on the extension and on its twin."""
    module: ModuleType = request.param
    return module
