"""Header prediction in the Python twin: there is none, ``on_segment`` is its specification."""

from __future__ import annotations

from proxy._seg_py_codec import Segment


def predict_tcp(self: object, seg: Segment, now: float) -> bool:
    """False: ``on_segment`` has to look at it."""
    return False


def predict_subflow(self: object, seg: Segment, now: float) -> bool:
    """False: ``on_segment`` has to look at it."""
    return False
