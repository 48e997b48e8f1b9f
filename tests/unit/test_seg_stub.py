"""The stub ``_seg.pyi`` says what the extension and its twin have: names, arguments, attributes."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from proxy import _seg, _seg_py
from proxy import seg as chosen

STUB = ast.parse((Path(__file__).parents[2] / "proxy" / "_seg.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CONSTANTS = {
    node.target.id
    for node in STUB.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}
(SEGMENT,) = (node for node in STUB.body if isinstance(node, ast.ClassDef))
ATTRIBUTES = {
    node.target.id: ast.unparse(node.annotation)
    for node in SEGMENT.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}


def public(module: ModuleType) -> set[str]:
    """Names that are the module's own: not imported from elsewhere, not private."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
        and getattr(value, "__name__", "") not in ("CodecError", "LocalProtocolError")
    }


def test_stub_names_all_there_is() -> None:
    assert public(_seg) == {*FUNCTIONS, *CONSTANTS, "Segment"}


def test_twin_and_chooser_offer_the_same_names() -> None:
    names = {*FUNCTIONS, *CONSTANTS, "Segment"}
    assert set(_seg_py.__all__) == names
    assert set(chosen.__all__) == names | {"PURE"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_agree(seg: ModuleType, name: str) -> None:
    node = FUNCTIONS[name]
    found = inspect.signature(getattr(seg, name)).parameters.values()
    assert [p.name for p in found] == [argument.arg for argument in node.args.args]
    defaults = [p.default for p in found if p.default is not inspect.Parameter.empty]
    assert defaults == [ast.literal_eval(default) for default in node.args.defaults]


def test_constants_agree() -> None:
    for name in CONSTANTS:
        assert getattr(_seg, name) == getattr(_seg_py, name) == getattr(chosen, name), name


def test_segment_attributes_agree(seg: ModuleType) -> None:
    if seg is _seg:
        names = {name for name in vars(_seg.Segment) if not name.startswith("_")}
    else:
        names = set(_seg_py.Segment.__slots__)
    assert names == set(ATTRIBUTES)


def test_segment_attributes_have_the_types_of_the_stub(seg: ModuleType) -> None:
    segment = seg.Segment()
    for name, annotation in ATTRIBUTES.items():
        assert type(getattr(segment, name)).__name__ == annotation.split("[")[0], name
